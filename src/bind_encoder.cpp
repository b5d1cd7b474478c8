// _core.Encoder: weights in, ragged batches of tokens, hidden states out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "array_view.h"
#include "encoder.h"
#include "model_binding.h"

namespace py = pybind11;

namespace llm_decoder {
namespace {

Activation read_activation(const std::string& name) {
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  check_arg(name == "silu", "Encoder", "activation must be 'gelu', 'gelu_tanh', 'relu' or 'silu', got '", name, "'");
  return Activation::silu;
}

EncoderConfig read_config(const py::dict& config) {
  ConfigReader reader("Encoder", config);
  EncoderConfig read;
  std::string norm_placement, activation;
  reader.read("n_layers", &read.n_layers);
  reader.read("hidden_size", &read.hidden_size);
  reader.read("intermediate_size", &read.intermediate_size);
  reader.read("n_heads", &read.n_heads);
  reader.read("vocab_size", &read.vocab_size);
  reader.read("n_positions", &read.n_positions);
  reader.read("position_offset", &read.position_offset);
  reader.read("n_types", &read.n_types);
  reader.read("norm_eps", &read.norm_eps);
  reader.read("norm_bias", &read.norm_bias);
  reader.read("norm_placement", &norm_placement);
  reader.read("embedding_norm", &read.embedding_norm);
  reader.read("has_first_norm", &read.has_first_norm);
  reader.read("final_norm", &read.final_norm);
  reader.read("activation", &activation);
  reader.read("gated", &read.gated);
  reader.read("rope_theta", &read.rope_theta);
  reader.read("local_rope_theta", &read.local_rope_theta);
  reader.read("local_window", &read.local_window);
  reader.read("global_every", &read.global_every);
  reader.check_all_read();
  check_arg(norm_placement == "post" || norm_placement == "pre", "Encoder",
            "norm_placement must be 'post' or 'pre', got '", norm_placement, "'");
  read.is_post_norm = norm_placement == "post";
  read.activation = read_activation(activation);
  return read;
}

Pooling read_pooling(const std::string& name) {
  if (name == "first") return Pooling::first;
  if (name == "mean") return Pooling::mean;
  check_arg(name == "none", "Encoder.encode", "pooling must be 'none', 'first' or 'mean', got '", name, "'");
  return Pooling::none;
}

class PyEncoder {
 public:
  PyEncoder(const py::dict& config, int threads, const std::string& isa)
      : encoder_(read_config(config), threads, isa.c_str()) {}

  void set_weight(const std::string& name, const std::string& layout, const Shape& shape, const py::array& data,
                  const std::optional<py::array>& scales) {
    const OneCaller::Use use(caller_, "Encoder.set_weight");
    encoder_.set_weight(name, borrowed_.read("Encoder.set_weight", name, layout, shape, data, scales));
  }

  void finalize(std::int32_t max_tokens) {
    const OneCaller::Use use(caller_, "Encoder.finalize");
    const py::gil_scoped_release release;
    encoder_.finalize(max_tokens);
  }

  py::array_t<float> encode(const py::array& token_ids, const py::array& counts,
                            const std::optional<py::array>& type_ids, const std::string& pooling_name) {
    constexpr char kPlace[] = "Encoder.encode";
    const OneCaller::Use use(caller_, kPlace);
    const Pooling pooling = read_pooling(pooling_name);
    EncoderBatch batch;
    batch.tokens = read_array<std::int32_t>(token_ids, kPlace, "token_ids");
    batch.counts = read_array<std::int32_t>(counts, kPlace, "counts");
    if (type_ids) batch.types = read_array<std::int32_t>(*type_ids, kPlace, "type_ids");
    const py::ssize_t n_rows = pooling == Pooling::none ? token_ids.size() : counts.size();
    py::array_t<float> rows({n_rows, py::ssize_t{encoder_.config().hidden_size}});
    float* out = rows.mutable_data();
    {
      const py::gil_scoped_release release;
      encoder_.encode(batch, pooling, out);
    }
    return rows;
  }

  const char* isa() const { return encoder_.isa(); }
  int threads() const { return encoder_.n_threads(); }
  std::int32_t max_tokens() const { return encoder_.max_tokens(); }

 private:
  BorrowedWeights borrowed_;
  Encoder encoder_;
  OneCaller caller_;
};

}  // namespace

void register_encoder(py::module_& m) {
  py::class_<PyEncoder>(
      m, "Encoder",
      "An encoder on the CPU, with quantised (w8, w4) or float (f32, bf16) matrices. One thread uses it at a time; a "
      "second one gets RuntimeError.\n\nconfig: a dict with the fields of EncoderConfig (encoders/config.py). threads: "
      "how many compute, the caller included.\nisa: 'generic', 'avx2', 'avx512vnni' or 'auto'. ValueError for a "
      "configuration that contradicts itself or an isa that this machine lacks.")
      .def(py::init<const py::dict&, int, const std::string&>(), py::arg("config"), py::arg("threads"),
           py::arg("isa") = "auto")
      .def_property_readonly("isa", &PyEncoder::isa, "The kernels in use.")
      .def_property_readonly("threads", &PyEncoder::threads)
      .def_property_readonly("max_tokens", &PyEncoder::max_tokens, "Tokens of a batch, at most; 0 before finalize.")
      .def("set_weight", &PyEncoder::set_weight, py::arg("name"), py::arg("layout"), py::arg("shape"), py::arg("data"),
           py::arg("scales") = py::none(),
           "A weight by our name, as INT8Decoder.set_weight takes it; the encoder borrows the arrays.")
      .def("finalize", &PyEncoder::finalize, py::arg("max_tokens"),
           "Checks the weights and sizes the scratch. ValueError names the weight at fault.")
      .def("encode", &PyEncoder::encode, py::arg("token_ids"), py::arg("counts"), py::arg("type_ids") = py::none(),
           py::arg("pooling") = "none",
           "Hidden states float32 [n_tokens, hidden_size] ('none'), or of each sequence's first token ('first') or the "
           "mean of each sequence's ('mean') [n_seqs, hidden_size].\ntoken_ids: int32 [n_tokens], sequences one behind "
           "the other. counts: int32 [n_seqs], tokens of each. type_ids: int32 [n_tokens], None: all 0.\nValueError "
           "for a batch that does not fit.");
}

}  // namespace llm_decoder
