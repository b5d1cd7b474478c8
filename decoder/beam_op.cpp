#include "beam_op.h"

#include <algorithm>
#include <limits>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

// Of one thread.
struct Scratch {
  std::vector<float> scored;        // [vocab_size]
  std::vector<Candidate> of_group;  // ids are beam * vocab_size + token
  TopCandidates top;
};

// Adds the best of a row; false where it is not finite.
bool add_row(const BeamCall& call, const CpuKernels& kernels, std::int32_t row, Scratch& scratch) {
  const std::int32_t n = call.logits.vocab_size;
  const float* const x = call.logits.row(row);
  float max = 0.0f;
  bool is_finite = false;
  const float log_sum_exp = kernels.log_sum_exp(x, n, &max, &is_finite);
  if (!is_finite || max == -std::numeric_limits<float>::infinity()) return false;
  for (std::int32_t i = 0; i < n; ++i)
    scratch.scored[static_cast<std::size_t>(i)] = x[i] - log_sum_exp + call.scores[row];
  scratch.top.reset(scratch.scored.data(), n);
  for (const Candidate& candidate : scratch.top.gather(std::min(call.n, n))) {
    scratch.of_group.push_back({candidate.value, row % call.n_beams * n + candidate.id});
  }
  return true;
}

}  // namespace

void best_of_beams_op(const BeamCall& call, const CpuKernels& kernels, ThreadPool& pool) {
  constexpr char kPlace[] = "ops.best_of_beams";
  const std::int32_t n_vocab = call.logits.vocab_size;
  check_arg(call.n_beams >= 1 && call.logits.n_rows % call.n_beams == 0, kPlace, "the ", call.logits.n_rows,
            " rows of logits must be whole groups of n_beams, got ", call.n_beams);
  const std::int64_t n_choices = std::int64_t{call.n_beams} * n_vocab;
  check_arg(n_choices < std::int64_t{1} << 31, kPlace, "n_beams * vocab_size must be below 2^31, got ", n_choices);
  check_arg(call.n >= 0 && call.n <= n_choices, kPlace, "n must be 0 to ", n_choices, ", got ", call.n);
  std::vector<Scratch> scratch(static_cast<std::size_t>(pool.n_threads()));
  const std::int64_t n_gathered = std::int64_t{call.n_beams} * std::min(call.n, n_vocab);
  for (Scratch& of_thread : scratch) {
    of_thread.scored.resize(static_cast<std::size_t>(n_vocab));
    of_thread.of_group.reserve(static_cast<std::size_t>(n_gathered));
    of_thread.top.reserve(n_vocab);
  }
  pool.parallel_for(call.logits.n_rows / call.n_beams, [&](std::int64_t group, int thread) {
    Scratch& mine = scratch[static_cast<std::size_t>(thread)];
    mine.of_group.clear();
    bool is_usable = true;
    for (std::int32_t beam = 0; beam < call.n_beams && is_usable; ++beam) {
      is_usable = add_row(call, kernels, static_cast<std::int32_t>(group) * call.n_beams + beam, mine);
    }
    if (is_usable) {
      std::partial_sort(mine.of_group.begin(), mine.of_group.begin() + call.n, mine.of_group.end(), comes_before);
    }
    for (std::int64_t i = 0; i < call.n; ++i) {
      const std::int64_t at = group * call.n + i;
      const Candidate none = {std::numeric_limits<float>::quiet_NaN(), 0};
      const Candidate best = is_usable ? mine.of_group[static_cast<std::size_t>(i)] : none;
      call.tokens[at] = is_usable ? best.id % n_vocab : kNotFinite;
      call.beams[at] = is_usable ? best.id / n_vocab : -1;
      call.new_scores[at] = best.value;
    }
  });
}

}  // namespace llm_decoder
