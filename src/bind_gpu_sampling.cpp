// _cuda and _cuda_host: from logits to tokens.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>

#include "device_guard.h"
#include "gpu_tensor.h"
#include "sampling_launch.h"
#include "token_weights.h"

namespace py = pybind11;

namespace llm_decoder {
namespace gpu {
namespace {

LogitRowsTensor logits_of(const TensorTuple& tuple) {
  const Tensor logits = tensor_of(tuple);
  return {{logits.data, logits.dtype, logits.strides.at(0)}, logits.size(0), logits.size(1)};
}

// Addresses of a call's parameters by the names of sampling_args.h; what is not there is switched off. Lists have an
// address of their offsets and one of their ids: "prompt_offsets", "prompt_ids".
using Addresses = std::map<std::string, std::uintptr_t>;

class Params {
 public:
  explicit Params(const Addresses& addresses) : addresses_(addresses) {}

  template <class T>
  const T* get(const std::string& name) const {
    const auto found = addresses_.find(name);
    return found == addresses_.end() ? nullptr : pointer<const T>(found->second);
  }
  TokenLists lists(const std::string& name) const {
    return {get<std::int64_t>(name + "_offsets"), get<std::int32_t>(name + "_ids")};
  }

 private:
  const Addresses& addresses_;
};

DrawParams draw_params_of(const Addresses& addresses, int vocab_size) {
  const Params params(addresses);
  DrawParams p;
  p.rows = params.get<std::int32_t>("rows");
  p.temperature = params.get<float>("temperature");
  p.top_k = params.get<std::int32_t>("top_k");
  p.top_p = params.get<float>("top_p");
  p.min_p = params.get<float>("min_p");
  p.repetition_penalty = params.get<float>("repetition_penalty");
  p.presence_penalty = params.get<float>("presence_penalty");
  p.frequency_penalty = params.get<float>("frequency_penalty");
  p.seed = params.get<std::uint64_t>("seed");
  p.position = params.get<std::int64_t>("position");
  p.prompt = params.lists("prompt");
  p.output = params.lists("output");
  p.bias = params.lists("bias");
  p.bias_values = params.get<float>("bias_values");
  p.banned = params.lists("banned");
  p.allowed = params.lists("allowed");
  p.masks.of_draw = params.get<std::int32_t>("mask_of_draw");
  p.masks.words = params.get<std::uint32_t>("masks");
  p.masks.n_words = (vocab_size + 31) / 32;
  return p;
}

// Addresses of tokens, logprobs, ranks [n], best tokens and their logprobs [n, n_best].
using ResultTuple = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t>;

template <class Launch>
void add_results(Launch& launch, const ResultTuple& results) {
  launch.logprobs = pointer<float>(std::get<1>(results));
  launch.ranks = pointer<std::int32_t>(std::get<2>(results));
  launch.best.tokens = pointer<std::int32_t>(std::get<3>(results));
  launch.best.logprobs = pointer<float>(std::get<4>(results));
}

SampleLaunch sample_launch(const TensorTuple& logits, const Addresses& params, int n_draws, int n_best) {
  SampleLaunch launch;
  launch.logits = logits_of(logits);
  launch.params = draw_params_of(params, launch.logits.vocab_size);
  launch.n_draws = n_draws;
  launch.best.n = n_best;
  return launch;
}

LogProbsLaunch log_probs_launch(const TensorTuple& logits, int n_best) {
  LogProbsLaunch launch;
  launch.logits = logits_of(logits);
  launch.best.n = n_best;
  return launch;
}

BeamLaunch beam_launch(const TensorTuple& logits, int n_beams, int n) {
  BeamLaunch launch;
  launch.logits = logits_of(logits);
  launch.n_beams = n_beams;
  launch.n = n;
  return launch;
}

void run_sample(const TensorTuple& logits, const Addresses& params, int n_draws, int n_best, const ResultTuple& results,
                std::uintptr_t workspace, int device, std::uintptr_t stream) {
  SampleLaunch launch = sample_launch(logits, params, n_draws, n_best);
  launch.tokens = pointer<std::int32_t>(std::get<0>(results));
  add_results(launch, results);
  launch.workspace = pointer<void>(workspace);
  const DeviceGuard guard(device);
  sample(launch, stream_of(stream));
}

// targets: address of int32 [n_rows].
void run_log_probs(const TensorTuple& logits, std::uintptr_t targets, int n_best, const ResultTuple& results,
                   std::uintptr_t workspace, int device, std::uintptr_t stream) {
  LogProbsLaunch launch = log_probs_launch(logits, n_best);
  launch.targets = pointer<const std::int32_t>(targets);
  add_results(launch, results);
  launch.workspace = pointer<void>(workspace);
  const DeviceGuard guard(device);
  log_probs(launch, stream_of(stream));
}

// Addresses of scores float32 [n_rows]; tokens, beams int32 and new_scores float32 [n_rows / n_beams, n].
void run_best_of_beams(const TensorTuple& logits, std::uintptr_t scores, int n_beams, int n, std::uintptr_t tokens,
                       std::uintptr_t beams, std::uintptr_t new_scores, std::uintptr_t workspace, int device,
                       std::uintptr_t stream) {
  BeamLaunch launch = beam_launch(logits, n_beams, n);
  launch.scores = pointer<const float>(scores);
  launch.tokens = pointer<std::int32_t>(tokens);
  launch.beams = pointer<std::int32_t>(beams);
  launch.new_scores = pointer<float>(new_scores);
  launch.workspace = pointer<void>(workspace);
  const DeviceGuard guard(device);
  best_of_beams(launch, stream_of(stream));
}

}  // namespace

void register_gpu_sampling(py::module_& m);

void register_gpu_sampling(py::module_& m) {
  using py::arg;
  m.def(
      "sample_workspace_bytes",
      [](const TensorTuple& logits, const Addresses& params, int n_draws, int n_best) {
        return workspace_bytes(sample_launch(logits, params, n_draws, n_best));
      },
      arg("logits"), arg("params"), arg("n_draws"), arg("n_best"));
  m.def("sample", &run_sample, arg("logits"), arg("params"), arg("n_draws"), arg("n_best"), arg("results"),
        arg("workspace"), arg("device"), arg("stream"));
  m.def(
      "log_probs_workspace_bytes",
      [](const TensorTuple& logits, int n_best) { return workspace_bytes(log_probs_launch(logits, n_best)); },
      arg("logits"), arg("n_best"));
  m.def("log_probs", &run_log_probs, arg("logits"), arg("targets"), arg("n_best"), arg("results"), arg("workspace"),
        arg("device"), arg("stream"));
  m.def(
      "best_of_beams_workspace_bytes",
      [](const TensorTuple& logits, int n_beams, int n) { return workspace_bytes(beam_launch(logits, n_beams, n)); },
      arg("logits"), arg("n_beams"), arg("n"));
  m.def("best_of_beams", &run_best_of_beams, arg("logits"), arg("scores"), arg("n_beams"), arg("n"), arg("tokens"),
        arg("beams"), arg("new_scores"), arg("workspace"), arg("device"), arg("stream"));
  m.attr("MAX_VOCAB_SIZE") = kMaxVocabSize;
}

}  // namespace gpu
}  // namespace llm_decoder
