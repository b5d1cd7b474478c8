// _core.sample and _core.log_probs on logits that the caller brings.
#include <pybind11/pybind11.h>

#include "array_view.h"
#include "sampling_arrays.h"

namespace py = pybind11;

namespace llm_decoder {
namespace {

LogitsView read_logits(const py::array& logits, const char* place) {
  const Span<const float> data = read_array<float>(logits, place, "logits", {kAny, kAny});
  check_arg(logits.shape(1) > 0, place, "logits must have at least one column, got none");
  return {data.data, static_cast<std::int32_t>(logits.shape(0)), static_cast<std::int32_t>(logits.shape(1))};
}

py::tuple sample(const py::array& logits, const py::array& rows, const py::dict& params, std::int32_t n_top) {
  const LogitsView view = read_logits(logits, "sample");
  const SamplingParams read = read_sampling_params(rows, params);
  const SampleArrays arrays(rows.size(), n_top);
  {
    py::gil_scoped_release release;
    ThreadPool pool(1);
    Sampler(1).sample(view, read, n_top, select_cpu_kernels("auto"), pool, arrays.result());
  }
  return arrays.with_tokens();
}

py::tuple continuations(const py::array& logits, const py::array& rows, const py::dict& params, std::int32_t n,
                        std::int32_t n_top) {
  const LogitsView view = read_logits(logits, "continuations");
  const SamplingParams read = read_sampling_params(rows, params);
  const ContinuationArrays arrays(rows.size(), n, n_top);
  {
    py::gil_scoped_release release;
    ThreadPool pool(1);
    Sampler(1).continuations(view, read, select_cpu_kernels("auto"), pool, arrays.result());
  }
  return arrays.as_tuple();
}

py::tuple log_probs(const py::array& logits, const py::array& targets, std::int32_t n_top) {
  const LogitsView view = read_logits(logits, "log_probs");
  const Span<const std::int32_t> ids = read_array<std::int32_t>(targets, "log_probs", "targets");
  const SampleArrays arrays(targets.size(), n_top);
  {
    py::gil_scoped_release release;
    ThreadPool pool(1);
    Sampler(1).log_probs(view, ids, n_top, select_cpu_kernels("auto"), pool, arrays.result());
  }
  return arrays.without_tokens();
}

}  // namespace

void register_sampling(py::module_& m) {
  m.def(
      "sample", &sample, py::arg("logits"), py::arg("rows"), py::arg("params"), py::arg("n_top"),
      "Draws one token for each entry of rows (int32 [R]) from logits (float32 [n_rows, vocab_size]).\n\n"
      "params: a dict of arrays with one entry a draw (temperature, top_p, min_p, repetition_penalty, "
      "presence_penalty,\nfrequency_penalty float32; top_k int32; seed uint64; position int64) and of ragged ids "
      "(prompt_offsets int64 [R + 1],\nprompt_tokens int32, likewise output_tokens, bias_ids with bias_values float32, "
      "banned_ids, allowed_ids).\nTokens that a draw may give, beside: masks (uint32 [n_masks, n_words], token t is "
      "bit t % 32 of word t / 32) "
      "and\nmask_of_draw (int32 [R], -1: all); both may be left out.\n"
      "Returns (tokens int32 [R], logprobs float32 [R], ranks int32 [R], top_ids int32 [R, n_top], top_logprobs "
      "float32 [R, n_top]);\nlog probabilities are those of the raw logits. Token -1: the row holds NaN or +inf, or "
      "nothing above -inf.\nToken -2: the row is sound, but penalties, bias and bans leave nothing to choose.\n"
      "The draw is Philox4x32-10 on (seed, position). ValueError for a value or id out of range.");
  m.def("continuations", &continuations, py::arg("logits"), py::arg("rows"), py::arg("params"), py::arg("n"),
        py::arg("n_top"),
        "The n likeliest continuations of each entry of rows, as a beam search wants them; arguments as for sample.\n\n"
        "Returns (tokens int32 [R, n], scores, keys, logprobs float32 [R, n], ranks int32 [R, n], top_ids int32 [R, "
        "n_top],\ntop_logprobs float32 [R, n_top]), by descending key, then ascending id.\n"
        "scores: log probabilities after penalties, bias and bans, and with a temperature above 0 divided by it after "
        "top_k,\ntop_p and min_p; none is followed by a softmax. keys: the same, and Gumbel noise of (seed, position, "
        "token) where the\ntemperature is above 0. logprobs and the last three: of the raw logits, as in sample; n_top "
        "= -1 leaves those empty.\n"
        "Token -1: no more are left; as the first also: the row is not finite. Token -2 as the first: penalties, bias "
        "and bans\nleave nothing.");
  m.def("log_probs", &log_probs, py::arg("logits"), py::arg("targets"), py::arg("n_top"),
        "Log probability and rank of targets[i] (int32 [n_rows]) in row i of logits (float32 [n_rows, vocab_size]).\n\n"
        "Returns (logprobs float32 [n_rows], ranks int32 [n_rows], top_ids int32 [n_rows, n_top], top_logprobs float32 "
        "[n_rows, n_top]).");
}

}  // namespace llm_decoder
