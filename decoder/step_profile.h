// Where the time of steps goes: one record a step, the clock read between its parts on the calling thread.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llm_decoder {

enum class StepPart : std::uint8_t {
  plan,      // what the step will do, checked
  embed,     // embedding rows, rope's cos and sin
  rows,      // norms, on a CPU gated activations, and quantising what comes out of them and of attention
  attn_qkv,  // products, by the name of their weight; on a GPU mlp_gate_up with its activation
  attn_o,
  mlp_gate_up,
  mlp_down,
  lm_head,
  store_kv,  // norm and rope of q and k; k and v into their pages
  attention,
  sample,
  outside,  // from this step to the next one, what is not spent in `sample`: scheduler, cache, events
};
constexpr const char* kStepPartNames[] = {"plan",     "embed",   "rows",     "attn_qkv",  "attn_o", "mlp_gate_up",
                                          "mlp_down", "lm_head", "store_kv", "attention", "sample", "outside"};
constexpr std::size_t kStepParts = static_cast<std::size_t>(StepPart::outside) + 1;
static_assert(sizeof(kStepPartNames) / sizeof(kStepPartNames[0]) == kStepParts, "a name for each part");

struct StepRecord {
  std::int32_t n_tokens, n_sequences;
  std::array<double, kStepParts> seconds;
};

class StepProfile {
 public:
  std::vector<StepRecord> steps;

  void begin_step(std::int32_t n_tokens, std::int32_t n_sequences) {
    spent(StepPart::outside);
    steps.push_back({n_tokens, n_sequences, {}});
  }
  // What passed since the clock was last read was spent in `part` of the last step; before the first one nobody counts.
  void spent(StepPart part) {
    const Clock::time_point now = Clock::now();
    if (!steps.empty()) {
      steps.back().seconds[static_cast<std::size_t>(part)] += std::chrono::duration<double>(now - last_).count();
    }
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_;
};

}  // namespace llm_decoder
