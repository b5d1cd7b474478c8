// _study_cuda and _study_host: the methods of attention/study on a device and on the host machine, for their tests and
// for benchmarks/attention_methods.py. No part of the package. Compiled once for each; STUDY_MODULE is the name. Arrays
// cross as addresses, in the order of Arrays.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "device_guard.h"
#include "gpu_tensor.h"
#include "hopper_attention_launch.h"
#include "paged_attention_plan.h"
#include "study/study_launch.h"

namespace py = pybind11;

namespace llm_decoder {
namespace gpu {
namespace study {
namespace {

// n_batch, n_queries, n_keys, n_heads, n_kv_heads, head_dim
using Shape = std::tuple<int, int, int, int, int, int>;
// q, k, v, out, block_table, scores, states, state_max, state_sum, is_wrong; what a method does not need may be 0
using Arrays = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t,
                          std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t>;

StudyArgs args_of(const Shape& shape, int n_splits) {
  StudyArgs a;
  std::tie(a.n_batch, a.n_queries, a.n_keys, a.n_heads, a.n_kv_heads, a.head_dim) = shape;
  a.n_splits = n_splits;
  a.scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim));
  return a;
}

py::dict facts_of(std::int64_t n_bytes, int n_launches, int n_splits) {
  py::dict facts;
  facts["n_bytes"] = n_bytes;
  facts["n_launches"] = n_launches;
  facts["n_splits"] = n_splits;
  return facts;
}

py::dict describe(const std::string& name, const Shape& shape, int n_multiprocessors) {
  const Method method = method_named(name.c_str());
  StudyArgs a = args_of(shape, 1);
  a.n_splits = n_splits_for(method, a, n_multiprocessors);
  const ScratchSizes sizes = scratch_sizes(method, a);
  py::dict facts = facts_of(bytes_moved(method, a), n_launches(method), a.n_splits);
  facts["n_scores"] = sizes.n_scores;
  facts["n_states"] = sizes.n_states;
  facts["n_wrong_flags"] = sizes.n_wrong_flags;
  return facts;
}

// The kernel that runs models, over the same inputs in pages, by its plan: keys and values of every item, states of
// every split, queries and result. is_hopper: prompts by the kernel for Hopper, whose items have more rows.
py::dict describe_fused(const Shape& shape, int n_multiprocessors, bool is_hopper) {
  constexpr int kBlocksPerSm = 2;  // as _cuda plans
  const StudyArgs a = args_of(shape, 1);
  const std::vector<int> seq_lens(static_cast<std::size_t>(a.n_batch), a.n_keys);
  std::vector<int> cu_seqlens_q = {0};
  for (int i = 0; i < a.n_batch; ++i) cu_seqlens_q.push_back(cu_seqlens_q.back() + a.n_queries);
  PlanRequest request;
  request.seq_lens = seq_lens;
  request.cu_seqlens_q = cu_seqlens_q;
  request.n_heads = a.n_heads;
  request.n_kv_heads = a.n_kv_heads;
  request.n_blocks = kBlocksPerSm * n_multiprocessors;
  request.wide_rows = is_hopper ? kHopperRows : kWideRows;
  const PagedAttentionPlan plan = plan_paged_attention(request);
  std::int64_t n_keys = 0;
  for (const auto* items : {&plan.narrow, &plan.wide}) {
    for (const PagedAttentionItem& item : *items) n_keys += item.key_end - item.key_begin;
  }
  int n_splits = 1;
  for (const int n : plan.n_states) n_splits = n > n_splits ? n : n_splits;
  const std::int64_t row_bytes = std::int64_t{a.head_dim} * 2, n_rows = std::int64_t{cu_seqlens_q.back()} * a.n_heads;
  const std::int64_t states = std::int64_t{plan.n_all_states} * a.n_heads * (a.head_dim + 1) * 4 * 2;
  const int n_launches = !plan.narrow.empty() + !plan.wide.empty() + !plan.merged_tokens.empty();
  return facts_of(n_keys * a.n_kv_heads * row_bytes * 2 + states + n_rows * row_bytes * 2, n_launches, n_splits);
}

void run(const std::string& name, const Shape& shape, int n_splits, int page_size, const Arrays& arrays,
         float unified_max, int device, std::uintptr_t stream) {
  StudyArgs a = args_of(shape, n_splits);
  const auto& [q, k, v, out, block_table, scores, states, state_max, state_sum, is_wrong] = arrays;
  a.q = pointer<const Bf16>(q);
  a.k = pointer<const Bf16>(k);
  a.v = pointer<const Bf16>(v);
  a.out = pointer<Bf16>(out);
  a.block_table = pointer<const int>(block_table);
  a.page_size = page_size;
  a.scores = pointer<float>(scores);
  a.states = pointer<float>(states);
  a.state_max = pointer<float>(state_max);
  a.state_sum = pointer<float>(state_sum);
  a.is_wrong = pointer<int>(is_wrong);
  a.unified_max = unified_max;
  const DeviceGuard guard(device);
  run_method(method_named(name.c_str()), a, stream_of(stream));
}

}  // namespace
}  // namespace study
}  // namespace gpu
}  // namespace llm_decoder

PYBIND11_MODULE(STUDY_MODULE, m) {
  using namespace llm_decoder::gpu::study;
  using py::arg;
  m.doc() = "The methods of attention/study, on pointers to a device's memory.";
  m.attr("METHODS") = method_names();
  m.def("describe", &describe, arg("method"), arg("shape"), arg("n_multiprocessors"));
  m.def("describe_fused", &describe_fused, arg("shape"), arg("n_multiprocessors"), arg("is_hopper"));
  m.def("run", &run, arg("method"), arg("shape"), arg("n_splits"), arg("page_size"), arg("arrays"), arg("unified_max"),
        arg("device"), arg("stream"));
}
