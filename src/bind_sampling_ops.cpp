// _core.*_op, sampling: on logits of any float dtype, into arrays that the caller brings.
#include "beam_op.h"
#include "op_arrays.h"
#include "sampling_arrays.h"
#include "workspace.h"

namespace llm_decoder {

void register_sampling_ops(py::module_& m);

namespace {

// Logits as the sampler wants them: a copy but of float32 without gaps.
class FloatLogits {
 public:
  FloatLogits(const NamedArray& logits, const char* place) : rows_(rows_of(logits, place, "logits", {kAny, kAny})) {
    check_arg(rows_.n_cols > 0, place, "logits must have at least one column, got none");
    view_ = {nullptr, static_cast<std::int32_t>(rows_.n_rows), rows_.n_cols};
    if (rows_.dtype == Dtype::f32 && (rows_.n_rows < 2 || rows_.stride_bytes == std::int64_t{rows_.n_cols} * 4)) {
      view_.data = static_cast<const float*>(static_cast<const void*>(rows_.data));
    } else {
      copy_ = AlignedBuffer(static_cast<std::size_t>(rows_.n_rows * rows_.n_cols) * sizeof(float));
      view_.data = copy_.as<float>();
    }
  }

  const LogitsView& view() const { return view_; }

  void make(ThreadPool& pool) const {
    if (view_.data != copy_.as<float>()) return;
    for_rows(pool, rows_.n_rows,
             [&](std::int64_t row, int) { rows_.read(row, copy_.as<float>() + row * rows_.n_cols); });
  }

 private:
  OpRows rows_;
  LogitsView view_;
  AlignedBuffer copy_;
};

// tokens (or None), logprobs, ranks [n], top_ids, top_logprobs [n, n_top]
using ResultArrays = std::tuple<py::object, py::array, py::array, py::array, py::array>;

SampleResult result_of(ResultArrays& arrays, py::ssize_t n, std::int32_t& n_top, const char* place) {
  auto& [tokens, logprobs, ranks, top_ids, top_logprobs] = arrays;
  SampleResult result;
  if (!tokens.is_none()) {
    py::array array = py::cast<py::array>(tokens);
    result.tokens = write_array<std::int32_t>(array, place, "tokens", {n}).data;
  }
  result.logprobs = write_array<float>(logprobs, place, "logprobs", {n}).data;
  result.ranks = write_array<std::int32_t>(ranks, place, "ranks", {n}).data;
  result.top_ids = write_array<std::int32_t>(top_ids, place, "best_tokens", {n, kAny}).data;
  n_top = static_cast<std::int32_t>(top_ids.shape(1));
  result.top_logprobs = write_array<float>(top_logprobs, place, "best_logprobs", {n, n_top}).data;
  return result;
}

void py_sample(const NamedArray& logits, const py::array& rows, const py::dict& params, ResultArrays results,
               int n_threads) {
  constexpr char kPlace[] = "ops.sample";
  const FloatLogits floats(logits, kPlace);
  const SamplingParams read = read_sampling_params(rows, params);
  std::int32_t n_top = 0;
  const SampleResult result = result_of(results, rows.size(), n_top, kPlace);
  run_op(kPlace, n_threads, [&](ThreadPool& pool) {
    floats.make(pool);
    Sampler(n_threads).sample(floats.view(), read, n_top, select_cpu_kernels("auto"), pool, result);
  });
}

void py_log_probs(const NamedArray& logits, const py::array& targets, ResultArrays results, int n_threads) {
  constexpr char kPlace[] = "ops.log_probs";
  const FloatLogits floats(logits, kPlace);
  const Span<const std::int32_t> ids = read_array<std::int32_t>(targets, kPlace, "targets");
  std::int32_t n_top = 0;
  const SampleResult result = result_of(results, floats.view().n_rows, n_top, kPlace);
  run_op(kPlace, n_threads, [&](ThreadPool& pool) {
    floats.make(pool);
    Sampler(n_threads).log_probs(floats.view(), ids, n_top, select_cpu_kernels("auto"), pool, result);
  });
}

void py_best_of_beams(const NamedArray& logits, const py::array& scores, std::int32_t n_beams, py::array& tokens,
                      py::array& beams, py::array& new_scores, int n_threads) {
  constexpr char kPlace[] = "ops.best_of_beams";
  const FloatLogits floats(logits, kPlace);
  BeamCall call;
  call.logits = floats.view();
  check_arg(n_beams >= 1, kPlace, "n_beams must be at least 1, got ", n_beams);
  const py::ssize_t n_groups = call.logits.n_rows / n_beams;
  call.n_beams = n_beams;
  call.scores = read_array<float>(scores, kPlace, "scores", {call.logits.n_rows}).data;
  call.tokens = write_array<std::int32_t>(tokens, kPlace, "tokens", {n_groups, kAny}).data;
  call.n = static_cast<std::int32_t>(tokens.shape(1));
  call.beams = write_array<std::int32_t>(beams, kPlace, "beams", {n_groups, call.n}).data;
  call.new_scores = write_array<float>(new_scores, kPlace, "new_scores", {n_groups, call.n}).data;
  run_op(kPlace, n_threads, [&](ThreadPool& pool) {
    floats.make(pool);
    best_of_beams_op(call, select_cpu_kernels("auto"), pool);
  });
}

}  // namespace

void register_sampling_ops(py::module_& m) {
  using py::arg;
  m.def(
      "sample_op", &py_sample,
      "As sample, of logits (array [n_rows, vocab_size], dtype), into results: (tokens, logprobs, ranks [R], top_ids, "
      "top_logprobs\n[R, n_top]).",
      arg("logits"), arg("rows"), arg("params"), arg("results"), arg("n_threads"));
  m.def("log_probs_op", &py_log_probs, "As log_probs, into results: (None, logprobs, ranks, top_ids, top_logprobs).",
        arg("logits"), arg("targets"), arg("results"), arg("n_threads"));
  m.def("best_of_beams_op", &py_best_of_beams,
        "The n best (beam, token) of each group of n_beams rows, by scores float32 [n_rows] plus log probability, into "
        "tokens, beams\nint32 and new_scores float32 [n_rows / n_beams, n].",
        arg("logits"), arg("scores"), arg("n_beams"), arg("tokens"), arg("beams"), arg("new_scores"), arg("n_threads"));
}

}  // namespace llm_decoder
