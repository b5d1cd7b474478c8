// _core.*_op, mixtures of experts: routing, sorting, the whole mixture.
#include <array>

#include "moe_ops.h"
#include "op_arrays.h"

namespace llm_decoder {

void register_moe_ops(py::module_& m);

namespace {

void py_moe_routing(const NamedArray& logits, const py::object& bias, py::array& weights, py::array& ids,
                    bool is_sigmoid, bool is_normalized, float scale, std::int32_t n_groups, std::int32_t top_k_groups,
                    std::int32_t group_best, int n_threads) {
  constexpr char kPlace[] = "ops.moe_routing";
  MoeRoutingCall call;
  call.logits = rows_of(logits, kPlace, "logits", {kAny, kAny});
  const std::int32_t n_experts = call.logits.n_cols;
  call.bias = optional_array<float>(bias, kPlace, "bias", {n_experts});
  call.weights = write_array<float>(weights, kPlace, "weights", {call.logits.n_rows, kAny}).data;
  call.top_k = static_cast<std::int32_t>(weights.shape(1));
  call.ids = write_array<std::int32_t>(ids, kPlace, "ids", {call.logits.n_rows, call.top_k}).data;
  check_arg(n_groups >= 1 && n_experts >= n_groups && n_experts % n_groups == 0, kPlace, "n_groups must divide the ",
            n_experts, " experts, got ", n_groups);
  check_arg(top_k_groups >= 1 && top_k_groups <= n_groups, kPlace, "top_k_groups must be 1 to ", n_groups, ", got ",
            top_k_groups);
  const std::int32_t group_size = n_experts / n_groups;
  check_arg(group_best == 1 || (group_best == 2 && group_size >= 2), kPlace,
            "group_best must be 1, or 2 where a group has two experts, got ", group_best, " with groups of ",
            group_size);
  check_arg(call.top_k >= 1 && call.top_k <= group_size * top_k_groups, kPlace, "top_k must be 1 to ",
            group_size * top_k_groups, ", the experts of ", top_k_groups, " groups, got ", call.top_k);
  call.is_sigmoid = is_sigmoid;
  call.is_normalized = is_normalized;
  call.scale = scale;
  call.n_groups = n_groups;
  call.top_k_groups = top_k_groups;
  call.group_best = group_best;
  run_op(kPlace, n_threads, [&](ThreadPool& pool) { moe_routing_op(call, pool); });
}

MoePairs pairs_of(const py::array& ids, const py::object& expert_map, std::int32_t n_experts, const char* place) {
  MoePairs pairs;
  pairs.ids = read_array<std::int32_t>(ids, place, "topk_ids", {kAny, kAny}).data;
  pairs.n_pairs = ids.size();
  pairs.n_experts = pairs.n_ids = n_experts;
  pairs.expert_map = optional_array<std::int32_t>(expert_map, place, "expert_map", {kAny});
  if (pairs.expert_map != nullptr) pairs.n_ids = static_cast<std::int32_t>(py::cast<py::array>(expert_map).size());
  return pairs;
}

void py_moe_sort(const py::array& topk_ids, const py::object& expert_map, std::int32_t n_experts,
                 std::int32_t tile_rows, py::array& sorted_pairs, py::array& tiles, py::array& n_tiles) {
  constexpr char kPlace[] = "ops.moe_sort";
  check_arg(n_experts >= 1 && tile_rows >= 1, kPlace, "n_experts and tile_rows must be positive, got ", n_experts,
            " and ", tile_rows);
  const MoePairs pairs = pairs_of(topk_ids, expert_map, n_experts, kPlace);
  std::int32_t* const sorted = write_array<std::int32_t>(sorted_pairs, kPlace, "sorted_pairs", {pairs.n_pairs}).data;
  const Span<std::int32_t> rows = write_array<std::int32_t>(tiles, kPlace, "tiles", {kAny, 4});
  std::int32_t* const n = write_array<std::int32_t>(n_tiles, kPlace, "n_tiles", {1}).data;
  std::vector<std::int64_t> begin(static_cast<std::size_t>(n_experts) + 1);
  sort_pairs(pairs, {sorted, begin.data()});
  std::vector<std::array<std::int32_t, 4>> found;
  for (std::int32_t e = 0; e < n_experts; ++e) {
    const std::int64_t end = begin[static_cast<std::size_t>(e) + 1];
    for (std::int64_t at = begin[static_cast<std::size_t>(e)]; at < end; at += tile_rows) {
      found.push_back({e, static_cast<std::int32_t>(at),
                       static_cast<std::int32_t>(std::min<std::int64_t>(tile_rows, end - at)), 0});
    }
  }
  check_arg(found.size() * 4 <= rows.size, kPlace, "tiles must have ", found.size(), " rows, got ", rows.size / 4);
  for (std::size_t i = 0; i < found.size(); ++i) std::copy_n(found[i].data(), 4, rows.data + i * 4);
  *n = static_cast<std::int32_t>(found.size());
}

const std::vector<Dtype> kWeightDtypes = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::s8};

// w1, w2: [E * rows, columns].
void py_fused_moe(const NamedArray& hidden, const NamedArray& w1, const NamedArray& w2, const py::object& w1_scale,
                  const py::object& w2_scale, const py::array& topk_weights, const py::array& topk_ids,
                  const py::object& expert_map, const NamedArray& out, int n_threads, const std::string& isa) {
  constexpr char kPlace[] = "ops.fused_moe";
  FusedMoeCall call;
  call.hidden = rows_of(hidden, kPlace, "hidden", {kAny, kAny});
  const std::int32_t k = call.hidden.n_cols;
  call.w1 = rows_of(w1, kPlace, "w1", {kAny, k}, kWeightDtypes);
  call.w2 = rows_of(w2, kPlace, "w2", {kAny, kAny}, kWeightDtypes);
  const std::int64_t n = call.w2.n_cols;
  check_arg(k > 0 && n > 0 && call.w2.n_rows % k == 0 && call.w1.n_rows == call.w2.n_rows / k * 2 * n, kPlace,
            "w1 and w2 must have rows of as many experts, got ", call.w1.n_rows, " and ", call.w2.n_rows);
  call.w1_scale = optional_array<float>(w1_scale, kPlace, "w1_scale", {call.w1.n_rows});
  call.w2_scale = optional_array<float>(w2_scale, kPlace, "w2_scale", {call.w2.n_rows});
  call.pairs = pairs_of(topk_ids, expert_map, static_cast<std::int32_t>(call.w2.n_rows / k), kPlace);
  call.top_k = static_cast<std::int32_t>(topk_ids.shape(1));
  call.topk_weights = read_array<float>(topk_weights, kPlace, "topk_weights", {call.hidden.n_rows, call.top_k}).data;
  check_arg(topk_ids.shape(0) == call.hidden.n_rows, kPlace, "topk_ids must have ", call.hidden.n_rows, " rows, got ",
            topk_ids.shape(0));
  call.out = out_rows_of(out, kPlace, "out", {call.hidden.n_rows, k});
  const CpuKernels& kernels = select_cpu_kernels(isa.c_str());
  run_op(kPlace, n_threads, [&](ThreadPool& pool) { fused_moe_op(call, kernels, pool); });
}

}  // namespace

void register_moe_ops(py::module_& m) {
  using py::arg;
  m.def("moe_routing_op", &py_moe_routing,
        "The top_k experts of each row of logits, (array [T, E], dtype), into weights float32 and ids int32 [T, "
        "top_k].",
        arg("logits"), arg("bias").none(true), arg("weights"), arg("ids"), arg("is_sigmoid"), arg("is_normalized"),
        arg("scale"), arg("n_groups"), arg("top_k_groups"), arg("group_best"), arg("n_threads"));
  m.def("moe_sort_op", &py_moe_sort,
        "Pairs of topk_ids int32 [T, top_k] by expert into sorted_pairs int32 [T * top_k], and runs of at most "
        "tile_rows of them\ninto tiles int32 [n, 4] (expert, begin, pairs, 0), n_tiles int32 [1] of them.",
        arg("topk_ids"), arg("expert_map").none(true), arg("n_experts"), arg("tile_rows"), arg("sorted_pairs"),
        arg("tiles"), arg("n_tiles"));
  m.def("fused_moe_op", &py_fused_moe,
        "hidden, out [T, K], w1 [E * 2 N, K], w2 [E * K, N], each (array, dtype); scales float32 [E * 2 N], [E * K] or "
        "None.",
        arg("hidden"), arg("w1"), arg("w2"), arg("w1_scale").none(true), arg("w2_scale").none(true),
        arg("topk_weights"), arg("topk_ids"), arg("expert_map").none(true), arg("out"), arg("n_threads"),
        arg("isa") = "auto");
}

}  // namespace llm_decoder
