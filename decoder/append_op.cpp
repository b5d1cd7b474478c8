#include "append_op.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "llm_decoder/errors.h"
#include "op_rows.h"

namespace llm_decoder {
namespace {

// The scale of a row: max|x| / largest, 1 for zeros, NaN when any value is NaN or infinite.
float scale_of(const float* x, std::int32_t n, float largest_code) {
  float largest = 0.0f, poison = 0.0f;
  for (std::int32_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::fabs(x[i]));
    poison += x[i] * 0.0f;
  }
  const float scale = largest / largest_code + poison;
  return scale < std::numeric_limits<float>::min() ? 1.0f : scale;
}

struct CacheSlot {
  std::int64_t page, slot;
};

// row: [head_dim], scratch of the thread.
class TokenRows {
 public:
  TokenRows(const AppendKvCall& call, const CpuKernels& kernels, std::int64_t token, float* row)
      : call_(call), kernels_(kernels), token_(token), row_(row) {}

  void change_query(std::int32_t head) const {
    std::byte* const at = call_.q.row(token_, head);
    widen_row(call_.q.dtype, at, head_dim(), row_);
    norm_and_rotate(call_.q_norm);
    narrow_row(call_.q.dtype, row_, head_dim(), 1.0f, at);
  }

  void append_key(std::int32_t head, const CacheSlot& at) const {
    widen_row(call_.key.dtype, call_.key.row(token_, head), head_dim(), row_);
    norm_and_rotate(call_.k_norm);
    store(call_.pool.pages.k, call_.pool.makes_k_scale, head, at);
  }

  void append_value(std::int32_t head, const CacheSlot& at) const {
    widen_row(call_.value.dtype, call_.value.row(token_, head), head_dim(), row_);
    store(call_.pool.pages.v, call_.pool.makes_v_scale, head, at);
  }

 private:
  std::int32_t head_dim() const { return call_.pool.head_dim; }

  void norm_and_rotate(const float* norm) const {
    if (norm != nullptr) kernels_.rms_norm(row_, head_dim(), norm, call_.norm_eps, 1, head_dim(), row_, head_dim());
    const float *cos = call_.cos + token_ * call_.half, *sin = call_.sin + token_ * call_.half;
    if (!call_.is_interleaved) {
      if (call_.half > 0) kernels_.rope(row_, 1, head_dim(), call_.half, cos, sin);
      return;
    }
    for (std::int32_t i = 0; i < call_.half; ++i) {
      const float first = row_[2 * i], second = row_[2 * i + 1];
      row_[2 * i] = first * cos[i] - second * sin[i];
      row_[2 * i + 1] = second * cos[i] + first * sin[i];
    }
  }

  void store(const NhdTensor& to, bool makes_scale, std::int32_t head, const CacheSlot& at) const {
    const Dtype dtype = call_.pool.pages.dtype;
    float scale = to.scale_of(at.page, at.slot, head);
    if (makes_scale) {
      scale = scale_of(row_, head_dim(), dtype == Dtype::s8 ? 127.0f : 448.0f);
      to.scale[at.page * to.scale_page_stride + at.slot * to.scale_slot_stride + head * to.scale_head_stride] = scale;
    }
    narrow_row(dtype, row_, head_dim(), scale, to.row(at.page, at.slot, head));
  }

  const AppendKvCall& call_;
  const CpuKernels& kernels_;
  const std::int64_t token_;
  float* const row_;
};

}  // namespace

void append_kv_op(const AppendKvCall& call, const CpuKernels& kernels, ThreadPool& pool) {
  const std::int64_t page_size = call.pool.page_size, n_slots = call.pool.n_pages * page_size;
  for (std::int64_t token = 0; token < call.n_tokens; ++token) {
    check_arg(call.slots[token] < n_slots, "ops.append_kv", "slot_mapping[", token, "] must be below ", n_slots,
              ", the slots of the pages; got ", call.slots[token]);
  }
  const auto head_dim = static_cast<std::size_t>(call.pool.head_dim);
  std::vector<float> rows(static_cast<std::size_t>(pool.n_threads()) * head_dim);
  for_rows(pool, call.n_tokens, [&](std::int64_t token, int thread) {
    const TokenRows of(call, kernels, token, rows.data() + static_cast<std::size_t>(thread) * head_dim);
    for (std::int32_t head = 0; head < call.n_heads; ++head) of.change_query(head);
    const std::int64_t slot = call.slots[token];
    if (slot < 0) return;
    for (std::int32_t head = 0; head < call.pool.n_kv_heads; ++head) {
      of.append_key(head, {slot / page_size, slot % page_size});
      of.append_value(head, {slot / page_size, slot % page_size});
    }
  });
}

}  // namespace llm_decoder
