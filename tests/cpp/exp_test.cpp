// exp in the compiled kernels of every table, against the library's in float64: a compiler that breaks a table shows
// here before any result of a model does.
#include <cmath>
#include <vector>

#include "check.h"
#include "llm_decoder/cpu_kernels.h"

namespace {

using namespace llm_decoder;

constexpr std::int32_t kPositions = 64;  // of the one page, which has one head
constexpr std::int32_t kChannels = 16;

struct alignas(64) CacheLine {
  std::byte bytes[64];
};

std::vector<CacheLine> lines_for(std::size_t n_bytes) {
  return std::vector<CacheLine>(n_bytes / sizeof(CacheLine) + 1);
}

// NaN is close to nothing.
bool all_close(const std::vector<float>& got, const std::vector<double>& want, double relative) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!(std::fabs(static_cast<double>(got[i]) / want[i] - 1.0) < relative)) return false;
  }
  return true;
}

// silu(x) = x exp(x) / (1 + exp(x)): for x far below zero an error of exp is one of silu.
TEST(silu_of_every_table_follows_exp_of_the_library) {
  constexpr std::int32_t n = 5000;
  std::vector<float> gate_up(2 * n, 1.0f);
  std::vector<double> want(n);
  for (std::size_t i = 0; i < n; ++i) {
    gate_up[i] = -0.0171f * static_cast<float>(i + 1);
    const double gate = static_cast<double>(gate_up[i]);
    want[i] = gate / (1.0 + std::exp(-gate));
  }
  for (const CpuKernels* kernels : cpu_kernels()) {
    std::vector<float> got(n);
    kernels->silu_mul(gate_up.data(), 2 * n, 1, n, got.data(), n);
    CHECK(all_close(got, want, 1e-6));
  }
}

TEST(log_sum_exp_of_every_table_follows_exp_of_the_library) {
  constexpr std::int32_t n = 5000;
  std::vector<float> x(n);
  double sum = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    x[i] = -0.00171f * static_cast<float>(i);
    sum += std::exp(static_cast<double>(x[i]));
  }
  for (const CpuKernels* kernels : cpu_kernels()) {
    float max = -1.0f;
    bool is_finite = false;
    const float got = kernels->log_sum_exp(x.data(), n, &max, &is_finite);
    CHECK(is_finite && max == 0.0f);
    CHECK(std::fabs(static_cast<double>(got) - std::log(sum)) < 1e-5);
  }
}

// One query over one page. Position p scores -p / 8 and its value is 1 at channel p % 16, so each channel of the result
// is a sum of four exponentials over the sum of all.
std::vector<float> attend(const CpuKernels& kernels, Dtype dtype) {
  constexpr std::size_t n_floats = kPositions * kChannels;
  std::vector<CacheLine> k = lines_for(n_floats * sizeof(float)), v = k;
  std::vector<float> k_scale(kPositions), v_scale(kPositions), q(kChannels), out(kChannels);
  PagedKvView kv;
  kv.dtype = dtype;
  kv.page_size = kPositions;
  kv.n_kv_heads = 1;
  kv.head_dim = kv.head_dim_padded = kChannels;
  kv.page_stride_bytes = kv.head_stride_bytes = static_cast<std::int64_t>(n_floats) * element_bytes(dtype);
  kv.k = k[0].bytes;
  kv.v = v[0].bytes;
  kv.k_scale = dtype == Dtype::s8 ? k_scale.data() : nullptr;
  kv.v_scale = dtype == Dtype::s8 ? v_scale.data() : nullptr;
  for (std::int32_t position = 0; position < kPositions; ++position) {
    std::vector<float> key(kChannels), value(kChannels);
    key[0] = static_cast<float>(-position) / 8.0f;
    value[static_cast<std::size_t>(position % kChannels)] = 1.0f;
    kernels.append_kv(kv, 0, position, key.data(), value.data());
  }
  q[0] = 1.0f;
  QueryRun run;
  run.n_tokens = 1;
  run.position_begin = kPositions - 1;
  run.state_begin = kNoStates;
  AttentionArgs args;
  args.kv = kv;
  args.q = q.data();
  args.out = out.data();
  args.q_stride = args.out_stride = kChannels;
  args.n_heads = 1;
  args.scale = 1.0f;
  args.runs = &run;
  const std::int32_t page = 0;
  AttentionItem item;
  item.block_table = &page;
  item.n_runs = 1;
  item.span_end = 1;
  std::vector<CacheLine> scratch = lines_for(kernels.attention_scratch_bytes(kv, 1));
  kernels.paged_attention(args, item, nullptr, scratch[0].bytes);
  return out;
}

// int8 pages round every weight to 1/255 of the page's largest, so they are told from a broken exp only roughly.
TEST(attention_of_every_table_follows_exp_of_the_library) {
  std::vector<double> want(kChannels);
  double sum = 0.0;
  for (std::int32_t position = 0; position < kPositions; ++position) {
    const double p = std::exp(-position / 8.0);
    want[static_cast<std::size_t>(position % kChannels)] += p;
    sum += p;
  }
  for (double& weight : want) weight /= sum;
  for (const CpuKernels* kernels : cpu_kernels()) {
    CHECK(all_close(attend(*kernels, Dtype::f32), want, 1e-6));
    CHECK(all_close(attend(*kernels, Dtype::s8), want, 0.02));
  }
}

}  // namespace
