#include "sampling_arrays.h"

#include <algorithm>
#include <string>

#include "array_view.h"

namespace py = pybind11;

namespace llm_decoder {
namespace {

constexpr char kPlace[] = "sample";

// Takes arrays out of the dict by name and counts them, so that a name nobody asked for is noticed.
class Reader {
 public:
  explicit Reader(const py::dict& params) : params_(params) {}

  template <class T>
  Span<const T> read(const char* name, const Shape& shape = {kAny}) {
    check_arg(params_.contains(name), kPlace, "params must have ", name);
    const py::object value = params_[name];
    check_arg(py::isinstance<py::array>(value), kPlace, name, " must be an ndarray, got ",
              std::string(py::str(py::type::of(value).attr("__name__"))));
    names_.push_back(name);
    return read_array<T>(py::reinterpret_borrow<py::array>(value), kPlace, name, shape);
  }

  // Both or neither.
  TokenMasks read_masks() {
    TokenMasks masks;
    if (!params_.contains("masks") && !params_.contains("mask_of_draw")) return masks;
    masks.of_draw = read<std::int32_t>("mask_of_draw");
    masks.words = read<std::uint32_t>("masks", {kAny, kAny});
    masks.n_words = static_cast<std::int32_t>(py::cast<py::array>(params_["masks"]).shape(1));
    return masks;
  }

  RaggedIds read_ids(const char* offsets, const char* ids) {
    return {read<std::int64_t>(offsets), read<std::int32_t>(ids)};
  }

  void check_all_read() const {
    for (const auto& [key, value] : params_) {
      const std::string name = py::str(key);
      check_arg(std::find(names_.begin(), names_.end(), name) != names_.end(), kPlace,
                "params has an unknown name: ", name);
    }
  }

 private:
  const py::dict& params_;
  std::vector<std::string> names_;
};

}  // namespace

SamplingParams read_sampling_params(const py::array& rows, const py::dict& params) {
  Reader reader(params);
  SamplingParams read;
  read.rows = read_array<std::int32_t>(rows, kPlace, "rows");
  read.temperature = reader.read<float>("temperature");
  read.top_k = reader.read<std::int32_t>("top_k");
  read.top_p = reader.read<float>("top_p");
  read.min_p = reader.read<float>("min_p");
  read.repetition_penalty = reader.read<float>("repetition_penalty");
  read.presence_penalty = reader.read<float>("presence_penalty");
  read.frequency_penalty = reader.read<float>("frequency_penalty");
  read.seed = reader.read<std::uint64_t>("seed");
  read.position = reader.read<std::int64_t>("position");
  read.prompt = reader.read_ids("prompt_offsets", "prompt_tokens");
  read.output = reader.read_ids("output_offsets", "output_tokens");
  read.bias = reader.read_ids("bias_offsets", "bias_ids");
  read.bias_values = reader.read<float>("bias_values");
  read.banned = reader.read_ids("banned_offsets", "banned_ids");
  read.allowed = reader.read_ids("allowed_offsets", "allowed_ids");
  read.masks = reader.read_masks();
  reader.check_all_read();
  return read;
}

SampleArrays::SampleArrays(py::ssize_t n_draws, std::int32_t n_top)
    : tokens_(n_draws),
      ranks_(n_draws),
      top_ids_({n_draws, static_cast<py::ssize_t>(std::max(n_top, 0))}),
      logprobs_(n_draws),
      top_logprobs_({n_draws, static_cast<py::ssize_t>(std::max(n_top, 0))}) {
  result_.tokens = tokens_.mutable_data();
  result_.ranks = ranks_.mutable_data();
  result_.top_ids = top_ids_.mutable_data();
  result_.logprobs = logprobs_.mutable_data();
  result_.top_logprobs = top_logprobs_.mutable_data();
}

py::tuple SampleArrays::with_tokens() const {
  return py::make_tuple(tokens_, logprobs_, ranks_, top_ids_, top_logprobs_);
}

py::tuple SampleArrays::without_tokens() const { return py::make_tuple(logprobs_, ranks_, top_ids_, top_logprobs_); }

ContinuationArrays::ContinuationArrays(py::ssize_t n_draws, std::int32_t n, std::int32_t n_top) {
  const bool has_ranks = n_top >= 0;
  result_.n = n;
  result_.n_top = std::max(n_top, 0);
  const py::ssize_t width = std::max(n, 0), n_ranks = has_ranks ? width : 0;
  tokens_ = py::array_t<std::int32_t>({n_draws, width});
  scores_ = py::array_t<float>({n_draws, width});
  keys_ = py::array_t<float>({n_draws, width});
  logprobs_ = py::array_t<float>({n_draws, width});
  ranks_ = py::array_t<std::int32_t>({n_draws, n_ranks});
  top_ids_ = py::array_t<std::int32_t>({n_draws, static_cast<py::ssize_t>(result_.n_top)});
  top_logprobs_ = py::array_t<float>({n_draws, static_cast<py::ssize_t>(result_.n_top)});
  result_.tokens = tokens_.mutable_data();
  result_.scores = scores_.mutable_data();
  result_.keys = keys_.mutable_data();
  result_.logprobs = logprobs_.mutable_data();
  result_.ranks = has_ranks ? ranks_.mutable_data() : nullptr;
  result_.top_ids = top_ids_.mutable_data();
  result_.top_logprobs = top_logprobs_.mutable_data();
}

py::tuple ContinuationArrays::as_tuple() const {
  return py::make_tuple(tokens_, scores_, keys_, logprobs_, ranks_, top_ids_, top_logprobs_);
}

}  // namespace llm_decoder
