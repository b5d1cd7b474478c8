// _core.INT8Decoder: weights in, steps, logits out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "array_view.h"
#include "int8_decoder.h"
#include "model_binding.h"
#include "sampling_arrays.h"

namespace py = pybind11;

namespace llm_decoder {
namespace {

ModelConfig read_config(const py::dict& config) {
  ConfigReader reader("INT8Decoder", config);
  ModelConfig read;
  reader.read("n_layers", &read.n_layers);
  reader.read("hidden_size", &read.hidden_size);
  reader.read("n_heads", &read.n_heads);
  reader.read("n_kv_heads", &read.n_kv_heads);
  reader.read("head_dim", &read.head_dim);
  reader.read("intermediate_size", &read.intermediate_size);
  reader.read("vocab_size", &read.vocab_size);
  reader.read("max_model_len", &read.max_model_len);
  reader.read("norm_eps", &read.norm_eps);
  reader.read("attention_scale", &read.attention_scale);
  reader.read("qk_norm", &read.qk_norm);
  reader.read("windows", &read.windows);
  reader.read("rope_inv_freq", &read.rope_inv_freq);
  reader.read("rope_attention_factor", &read.rope_attention_factor);
  reader.check_all_read();
  return read;
}

// The decoder, the arrays that it borrows, and a guard: two threads at once are a bug of the caller, not a wait.
class PyDecoder {
 public:
  PyDecoder(const py::dict& config, int threads, const std::string& isa)
      : decoder_(read_config(config), threads, isa.c_str()) {}

  void set_weight(const std::string& name, const std::string& layout, const Shape& shape, const py::array& data,
                  const std::optional<py::array>& scales) {
    const OneCaller::Use use(caller_, "INT8Decoder.set_weight");
    decoder_.set_weight(name, borrowed_.read("INT8Decoder.set_weight", name, layout, shape, data, scales));
  }

  void finalize(std::int32_t max_tokens_per_step) {
    const OneCaller::Use use(caller_, "INT8Decoder.finalize");
    py::gil_scoped_release release;
    decoder_.finalize(max_tokens_per_step);
  }

  std::int32_t step(const KvCache& cache, const py::array& tokens, const py::array& seq_ids, const py::array& counts,
                    const py::array& want) {
    constexpr char kPlace[] = "INT8Decoder.step";
    const OneCaller::Use use(caller_, kPlace);
    StepBatch batch;
    batch.tokens = read_array<std::int32_t>(tokens, kPlace, "tokens");
    batch.seq_ids = read_array<std::int64_t>(seq_ids, kPlace, "seq_ids");
    batch.counts = read_array<std::int32_t>(counts, kPlace, "counts");
    batch.want = read_array<std::uint8_t>(want, kPlace, "want");
    py::gil_scoped_release release;
    return decoder_.step(cache, batch);
  }

  py::array_t<float> logits() {
    const OneCaller::Use use(caller_, "INT8Decoder.logits");
    const LogitsView logits = decoder_.logits();
    return copy_to_array(logits.data, {logits.n_rows, logits.vocab_size});
  }

  py::array_t<float> hidden() {
    const OneCaller::Use use(caller_, "INT8Decoder.hidden");
    return copy_to_array(decoder_.hidden(), {decoder_.logits().n_rows, decoder_.config().hidden_size});
  }

  py::tuple sample(const py::array& rows, const py::dict& params, std::int32_t n_top) {
    const OneCaller::Use use(caller_, "INT8Decoder.sample");
    const SamplingParams read = read_sampling_params(rows, params);
    const SampleArrays arrays(rows.size(), n_top);
    {
      py::gil_scoped_release release;
      decoder_.sample(read, n_top, arrays.result());
    }
    return arrays.with_tokens();
  }

  py::tuple continuations(const py::array& rows, const py::dict& params, std::int32_t n, std::int32_t n_top) {
    const OneCaller::Use use(caller_, "INT8Decoder.continuations");
    const SamplingParams read = read_sampling_params(rows, params);
    const ContinuationArrays arrays(rows.size(), n, n_top);
    {
      py::gil_scoped_release release;
      decoder_.continuations(read, arrays.result());
    }
    return arrays.as_tuple();
  }

  py::tuple log_probs(const py::array& targets, std::int32_t n_top) {
    const OneCaller::Use use(caller_, "INT8Decoder.log_probs");
    const Span<const std::int32_t> ids = read_array<std::int32_t>(targets, "INT8Decoder.log_probs", "targets");
    const SampleArrays arrays(targets.size(), n_top);
    {
      py::gil_scoped_release release;
      decoder_.log_probs(ids, n_top, arrays.result());
    }
    return arrays.without_tokens();
  }

  void start_profile() {
    const OneCaller::Use use(caller_, "INT8Decoder.start_profile");
    decoder_.start_profile();
  }

  py::tuple stop_profile() {
    const OneCaller::Use use(caller_, "INT8Decoder.stop_profile");
    const std::vector<StepRecord> steps = decoder_.stop_profile();
    const auto n_steps = static_cast<py::ssize_t>(steps.size());
    py::array_t<std::int32_t> n_tokens(n_steps), n_sequences(n_steps);
    py::array_t<double> seconds({n_steps, static_cast<py::ssize_t>(kStepParts)});
    for (py::ssize_t i = 0; i < n_steps; ++i) {
      const StepRecord& step = steps[static_cast<std::size_t>(i)];
      n_tokens.mutable_at(i) = step.n_tokens;
      n_sequences.mutable_at(i) = step.n_sequences;
      std::copy(step.seconds.begin(), step.seconds.end(), seconds.mutable_data(i, 0));
    }
    return py::make_tuple(n_tokens, n_sequences, seconds);
  }

  const char* isa() const { return decoder_.isa(); }
  int threads() const { return decoder_.n_threads(); }
  std::size_t workspace_bytes() const { return decoder_.workspace_bytes(); }

 private:
  BorrowedWeights borrowed_;
  INT8Decoder decoder_;
  OneCaller caller_;
};

}  // namespace

void register_decoder(py::module_& m) {
  py::class_<PyDecoder>(
      m, "INT8Decoder",
      "A decoder on the CPU, with quantised (w8, w4) or float (f32, bf16) matrices. One thread uses it at a time; a "
      "second "
      "one gets RuntimeError.\n\nconfig: a dict with the fields of ModelConfig (model_config.h). threads: "
      "how many compute, the caller included.\nisa: 'generic', 'avx2', 'avx512vnni' or 'auto'. ValueError "
      "for a configuration that contradicts itself or an isa that this machine lacks.")
      .def(py::init<const py::dict&, int, const std::string&>(), py::arg("config"), py::arg("threads"),
           py::arg("isa") = "auto")
      .def_property_readonly("isa", &PyDecoder::isa, "The kernels in use.")
      .def_property_readonly("threads", &PyDecoder::threads)
      .def_property_readonly("workspace_bytes", &PyDecoder::workspace_bytes, "Scratch memory held.")
      .def("set_weight", &PyDecoder::set_weight, py::arg("name"), py::arg("layout"), py::arg("shape"), py::arg("data"),
           py::arg("scales") = py::none(),
           "Gives the decoder a weight; it keeps a reference, never a copy. layout 'vector': float32 [n]; 'f32', "
           "'bf16', 'w8' and 'w4': as\npack_f32, pack_bf16, pack_w8 and pack_w4 return, aligned to 64 bytes, of a "
           "matrix with shape "
           "(n, k); w8 and w4 with scales float32 [n].")
      .def("finalize", &PyDecoder::finalize, py::arg("max_tokens_per_step"),
           "Checks the weights and takes all scratch memory. ValueError names a weight that is missing, unknown or of "
           "a wrong "
           "shape.")
      .def("step", &PyDecoder::step, py::arg("cache"), py::arg("tokens"), py::arg("seq_ids"), py::arg("counts"),
           py::arg("want"),
           "Runs counts[i] (int32 [B]) tokens of each sequence (seq_ids: int64 [B]) through the model; tokens: int32 "
           "[sum(counts)].\nTheir KV is written to the pages that cache has reserved; commit them afterwards. want: "
           "uint8 [B], "
           "logits of 0 no token,\n1 the last, 2 all. Returns the number of rows of logits, sequences in order. "
           "ValueError, "
           "with nothing written, for a batch\nthat does not fit the model, the cache or its reservations.")
      .def("logits", &PyDecoder::logits, "float32 [n_rows, vocab_size] of the last step, a copy.")
      .def("hidden", &PyDecoder::hidden, "float32 [n_rows, hidden_size] of the last step after the final norm, a copy.")
      .def("sample", &PyDecoder::sample, py::arg("rows"), py::arg("params"), py::arg("n_top"),
           "As _core.sample, on the logits of the last step.")
      .def("continuations", &PyDecoder::continuations, py::arg("rows"), py::arg("params"), py::arg("n"),
           py::arg("n_top"), "As _core.continuations, on the logits of the last step.")
      .def("log_probs", &PyDecoder::log_probs, py::arg("targets"), py::arg("n_top"),
           "As _core.log_probs, on the logits of the last step.")
      .def("start_profile", &PyDecoder::start_profile,
           "From here on every step notes where its time goes; what was noted before is dropped.")
      .def("stop_profile", &PyDecoder::stop_profile,
           "Ends that. Returns (n_tokens, n_sequences, seconds) of each step since: int32 [n_steps], int32 [n_steps], "
           "float64\n[n_steps, n_parts], parts in the order of STEP_PARTS. ValueError without start_profile.");
  py::tuple parts(kStepParts);
  for (std::size_t i = 0; i < kStepParts; ++i) parts[i] = kStepPartNames[i];
  m.attr("STEP_PARTS") = parts;
}

}  // namespace llm_decoder
