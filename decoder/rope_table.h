// Angles of rotary position embedding by position, kept from step to step.
#pragma once

#include <cstdint>
#include <vector>

#include "rope_rows.h"

namespace llm_decoder {

class RopeTable {
 public:
  // Makes rows below position_end.
  void reach(const ModelConfig& config, std::int32_t position_end) {
    const auto half = static_cast<std::int64_t>(config.rope_inv_freq.size());
    if (position_end <= n_positions_) return;
    cos_.resize(static_cast<std::size_t>(position_end * half));
    sin_.resize(cos_.size());
    for (; n_positions_ < position_end; ++n_positions_) {
      fill_rope_row(config, n_positions_, cos_.data() + n_positions_ * half, sin_.data() + n_positions_ * half);
    }
  }

  const float* cos() const { return cos_.data(); }  // [position, half]
  const float* sin() const { return sin_.data(); }

 private:
  std::vector<float> cos_, sin_;
  std::int32_t n_positions_ = 0;
};

}  // namespace llm_decoder
