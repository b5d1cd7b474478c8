#include "append_kv_launch.h"

#include <limits>

#include "check_rows.h"
#include "dtype_tags.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "append_kv";
constexpr std::int64_t kVectorBytes = 16;

void check_pages(const char* name, const AppendTarget& to, Dtype dtype) {
  check_rows(kPlace, name, to.data, kChunk * element_bytes(dtype), {to.page_stride, to.slot_stride, to.head_stride},
             dtype);
  check_arg(to.scale > 0.0f && to.scale <= std::numeric_limits<float>::max(), kPlace, "the scale of ", name,
            " must be positive and finite, got ", to.scale);
  check_arg(to.per_slot == nullptr || element_bytes(dtype) == 1, kPlace,
            "scales a slot and head are for fp8 and int8, ", name, " is ", dtype_name(dtype),
            "; give one scale, or one a head");
}

void check_floats(const char* name, const float* data) {
  check_arg(reinterpret_cast<std::uintptr_t>(data) % kVectorBytes == 0, kPlace, name, " must be aligned to ",
            kVectorBytes, " bytes");
}

void check(const AppendKvLaunch& l) {
  const AppendKvArgs& a = l.args;
  check_arg(a.head_dim > 0 && a.head_dim % kChunk == 0 && a.head_dim <= kMaxRowChannels, kPlace,
            "head_dim must be a multiple of ", kChunk, " up to ", kMaxRowChannels, ", got ", a.head_dim);
  check_arg(a.page_size > 0 && a.page_size % 16 == 0, kPlace, "page_size must be a multiple of 16, got ", a.page_size);
  check_arg(a.n_kv_heads > 0 && a.n_heads >= 0, kPlace, "heads must be at least 1 of keys and 0 of queries, got ",
            a.n_kv_heads, " and ", a.n_heads);
  constexpr std::int64_t kMaxRows = std::numeric_limits<int>::max() - kAppendThreads;
  check_arg(a.n_tokens >= 0 && std::int64_t{a.n_tokens} * (a.n_heads + 2 * std::int64_t{a.n_kv_heads}) <= kMaxRows,
            kPlace, "n_tokens times heads must be 0 to ", kMaxRows, ", got ", a.n_tokens, " tokens");
  if (a.n_heads > 0) check_rows(kPlace, "q", a.q, kVectorBytes, {a.q_token_stride, a.q_head_stride}, l.dtype);
  check_rows(kPlace, "key", a.key, kVectorBytes, {a.key_token_stride, a.key_head_stride}, l.dtype);
  check_rows(kPlace, "value", a.value, kVectorBytes, {a.value_token_stride, a.value_head_stride}, l.dtype);
  check_pages("k_cache", a.k_pages, l.page_dtype);
  check_pages("v_cache", a.v_pages, l.page_dtype);
  check_arg(a.half >= 0 && 2 * a.half <= a.head_dim, kPlace, "half must be 0 to head_dim / 2 = ", a.head_dim / 2,
            ", got ", a.half);
  check_arg(a.half == 0 || (a.cos != nullptr && a.sin != nullptr), kPlace, "cos and sin must be there to rotate");
  check_floats("cos", a.cos);
  check_floats("sin", a.sin);
  check_floats("q_norm", a.q_norm);
  check_floats("k_norm", a.k_norm);
}

}  // namespace

void append_kv(const AppendKvLaunch& l, Stream stream) {
  with_activation(l.dtype, kPlace, "q, key and value", [&](auto tag) {
    with_page(l.page_dtype, kPlace, "k_cache and v_cache", [&](auto page_tag) {
      if (l.args.n_tokens == 0) return;
      check(l);
      AppendKvArgs args = l.args;
      args.row_lanes = row_lanes_of(args.head_dim);
      const std::int64_t n_rows = std::int64_t{args.n_tokens} * (args.n_heads + 2 * args.n_kv_heads);
      const auto n_blocks = static_cast<int>(ceil_div(n_rows * args.row_lanes, kAppendThreads));
      gpu::launch<append_kv_kernel<typename decltype(tag)::type, typename decltype(page_tag)::type>>(
          stream, {{n_blocks, 1, 1}, kAppendThreads, 0}, args);
    });
  });
}

}  // namespace gpu
}  // namespace llm_decoder
