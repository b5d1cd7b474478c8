// The verbs that decoders have in common, as Python sees them: arrays checked, the GIL let go, results as arrays.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "array_view.h"
#include "llm_decoder/decoder.h"
#include "model_binding.h"
#include "sampler.h"
#include "sampling_arrays.h"
#include "step_profile.h"

namespace llm_decoder {

// A decoder and a guard: two threads at once are a bug of the caller, not a wait.
template <class Decoder>
class PyDecoder {
 public:
  template <class... Args>
  explicit PyDecoder(const char* name, Args&&... args) : name_(name), decoder_(std::forward<Args>(args)...) {}

  void finalize(std::int32_t max_tokens_per_step) {
    const OneCaller::Use use(caller_, place("finalize").c_str());
    pybind11::gil_scoped_release release;
    decoder_.finalize(max_tokens_per_step);
  }

  std::int32_t step(const KvCache& cache, const pybind11::array& tokens, const pybind11::array& seq_ids,
                    const pybind11::array& counts, const pybind11::array& want) {
    const std::string here = place("step");
    const OneCaller::Use use(caller_, here.c_str());
    StepBatch batch;
    batch.tokens = read_array<std::int32_t>(tokens, here.c_str(), "tokens");
    batch.seq_ids = read_array<std::int64_t>(seq_ids, here.c_str(), "seq_ids");
    batch.counts = read_array<std::int32_t>(counts, here.c_str(), "counts");
    batch.want = read_array<std::uint8_t>(want, here.c_str(), "want");
    pybind11::gil_scoped_release release;
    return decoder_.step(cache, batch);
  }

  pybind11::array_t<float> logits() {
    const OneCaller::Use use(caller_, place("logits").c_str());
    const LogitsView logits = without_gil([this] { return decoder_.logits(); });
    return copy_to_array(logits.data, {logits.n_rows, logits.vocab_size});
  }

  pybind11::array_t<float> hidden() {
    const OneCaller::Use use(caller_, place("hidden").c_str());
    const float* const hidden = without_gil([this] { return decoder_.hidden(); });
    return copy_to_array(hidden, {decoder_.n_logits_rows(), decoder_.config().hidden_size});
  }

  pybind11::tuple sample(const pybind11::array& rows, const pybind11::dict& params, std::int32_t n_top) {
    const OneCaller::Use use(caller_, place("sample").c_str());
    const SamplingParams read = read_sampling_params(rows, params);
    const SampleArrays arrays(rows.size(), n_top);
    {
      pybind11::gil_scoped_release release;
      decoder_.sample(read, n_top, arrays.result());
    }
    return arrays.with_tokens();
  }

  pybind11::tuple continuations(const pybind11::array& rows, const pybind11::dict& params, std::int32_t n,
                                std::int32_t n_top) {
    const OneCaller::Use use(caller_, place("continuations").c_str());
    const SamplingParams read = read_sampling_params(rows, params);
    const ContinuationArrays arrays(rows.size(), n, n_top);
    {
      pybind11::gil_scoped_release release;
      decoder_.continuations(read, arrays.result());
    }
    return arrays.as_tuple();
  }

  pybind11::tuple log_probs(const pybind11::array& targets, std::int32_t n_top) {
    const std::string here = place("log_probs");
    const OneCaller::Use use(caller_, here.c_str());
    const Span<const std::int32_t> ids = read_array<std::int32_t>(targets, here.c_str(), "targets");
    const SampleArrays arrays(targets.size(), n_top);
    {
      pybind11::gil_scoped_release release;
      decoder_.log_probs(ids, n_top, arrays.result());
    }
    return arrays.without_tokens();
  }

  void start_profile() {
    const OneCaller::Use use(caller_, place("start_profile").c_str());
    decoder_.start_profile();
  }

  pybind11::tuple stop_profile() {
    const OneCaller::Use use(caller_, place("stop_profile").c_str());
    const std::vector<StepRecord> steps = decoder_.stop_profile();
    const auto n_steps = static_cast<pybind11::ssize_t>(steps.size());
    pybind11::array_t<std::int32_t> n_tokens(n_steps), n_sequences(n_steps);
    pybind11::array_t<double> seconds({n_steps, static_cast<pybind11::ssize_t>(kStepParts)});
    for (pybind11::ssize_t i = 0; i < n_steps; ++i) {
      const StepRecord& step = steps[static_cast<std::size_t>(i)];
      n_tokens.mutable_at(i) = step.n_tokens;
      n_sequences.mutable_at(i) = step.n_sequences;
      std::copy(step.seconds.begin(), step.seconds.end(), seconds.mutable_data(i, 0));
    }
    return pybind11::make_tuple(n_tokens, n_sequences, seconds);
  }

  auto workspace_bytes() const { return decoder_.workspace_bytes(); }

 protected:
  // Others run while a device is waited for.
  template <class Call>
  static auto without_gil(const Call& call) {
    const pybind11::gil_scoped_release release;
    return call();
  }
  std::string place(const char* verb) const { return concat(name_, ".", verb); }

  const char* name_;
  Decoder decoder_;
  OneCaller caller_;
};

// Decoder: a PyDecoder.
template <class Decoder>
void add_decoder_verbs(pybind11::module_& m, pybind11::class_<Decoder>& decoder) {
  namespace py = pybind11;
  decoder.def_property_readonly("workspace_bytes", &Decoder::workspace_bytes, "Scratch memory held.")
      .def("finalize", &Decoder::finalize, py::arg("max_tokens_per_step"),
           "Checks the weights and takes all scratch memory. ValueError names a weight that is missing, unknown or of "
           "a wrong "
           "shape.")
      .def("step", &Decoder::step, py::arg("cache"), py::arg("tokens"), py::arg("seq_ids"), py::arg("counts"),
           py::arg("want"),
           "Runs counts[i] (int32 [B]) tokens of each sequence (seq_ids: int64 [B]) through the model; tokens: int32 "
           "[sum(counts)].\nTheir KV is written to the pages that cache has reserved; commit them afterwards. want: "
           "uint8 [B], "
           "logits of 0 no token,\n1 the last, 2 all. Returns the number of rows of logits, sequences in order. "
           "ValueError, "
           "with nothing written, for a batch\nthat does not fit the model, the cache or its reservations.")
      .def("logits", &Decoder::logits, "float32 [n_rows, vocab_size] of the last step, a copy.")
      .def("hidden", &Decoder::hidden, "float32 [n_rows, hidden_size] of the last step after the final norm, a copy.")
      .def("sample", &Decoder::sample, py::arg("rows"), py::arg("params"), py::arg("n_top"),
           "As _core.sample, on the logits of the last step.")
      .def("continuations", &Decoder::continuations, py::arg("rows"), py::arg("params"), py::arg("n"), py::arg("n_top"),
           "As _core.continuations, on the logits of the last step.")
      .def("log_probs", &Decoder::log_probs, py::arg("targets"), py::arg("n_top"),
           "As _core.log_probs, on the logits of the last step.")
      .def("start_profile", &Decoder::start_profile,
           "From here on every step notes where its time goes; what was noted before is dropped.")
      .def("stop_profile", &Decoder::stop_profile,
           "Ends that. Returns (n_tokens, n_sequences, seconds) of each step since: int32 [n_steps], int32 [n_steps], "
           "float64\n[n_steps, n_parts], parts in the order of STEP_PARTS. ValueError without start_profile.");
  py::tuple parts(kStepParts);
  for (std::size_t i = 0; i < kStepParts; ++i) parts[i] = kStepPartNames[i];
  m.attr("STEP_PARTS") = parts;
}

}  // namespace llm_decoder
