#include "sampling_launch.h"

#include "sampling.h"
#include "sampling_parts.h"

namespace llm_decoder {
namespace gpu {
namespace {

// What a launch of each kind keeps between its kernels.
struct Plan {
  SamplingArgs sampling;
  BestArgs best;
  std::int64_t n_bytes = 0;
};

Plan plan_of(const SampleLaunch& l) {
  Workspace workspace(l.workspace);
  Plan plan;
  plan.sampling = plan_rows(l.logits, l.params, l.n_draws, workspace);
  if (needs_edits(l.params)) plan.sampling.edited = take_edited_rows(plan.sampling, workspace);
  if (l.params.temperature != nullptr) {
    plan.sampling.bins = workspace.take<BinTable>(l.n_draws);
    plan.sampling.gathered = workspace.take<std::int32_t>(std::int64_t{l.n_draws} * l.logits.vocab_size);
  }
  plan.sampling.tokens = l.tokens;
  plan.sampling.logprobs = l.logprobs;
  plan.sampling.ranks = l.ranks;
  plan.best = plan_best(plan.sampling, l.best, 1, workspace);
  plan.n_bytes = workspace.n_bytes();
  return plan;
}

Plan plan_of(const LogProbsLaunch& l) {
  Workspace workspace(l.workspace);
  Plan plan;
  plan.sampling = plan_rows(l.logits, {}, l.logits.n_rows, workspace);
  plan.sampling.targets = l.targets;
  plan.sampling.logprobs = l.logprobs;
  plan.sampling.ranks = l.ranks;
  plan.best = plan_best(plan.sampling, l.best, 1, workspace);
  plan.n_bytes = workspace.n_bytes();
  return plan;
}

Plan plan_of(const BeamLaunch& l) {
  Workspace workspace(l.workspace);
  Plan plan;
  plan.sampling = plan_rows(l.logits, {}, l.logits.n_rows, workspace);
  plan.best = plan_best(plan.sampling, {l.n, l.tokens, l.new_scores}, l.n_beams, workspace);
  plan.best.beam_scores = l.scores;
  plan.best.beams = l.beams;
  plan.n_bytes = workspace.n_bytes();
  return plan;
}

}  // namespace

std::int64_t workspace_bytes(const SampleLaunch& launch) { return plan_of(launch).n_bytes; }
std::int64_t workspace_bytes(const LogProbsLaunch& launch) { return plan_of(launch).n_bytes; }
std::int64_t workspace_bytes(const BeamLaunch& launch) { return plan_of(launch).n_bytes; }

void sample(const SampleLaunch& l, Stream stream) {
  constexpr char kPlace[] = "sample";
  check_logits(l.logits, l.workspace, kPlace);
  check_n_best(l.best.n, l.logits.vocab_size, kPlace);
  check_draws(l.logits, l.params, l.n_draws, kPlace);
  if (l.n_draws == 0) return;
  const Plan plan = plan_of(l);
  const SamplingArgs& args = plan.sampling;
  const Dtype dtype = l.logits.rows.dtype;
  summarise(args, dtype, stream);
  with_logits(dtype, [&](auto tag) {
    using H = typename decltype(tag)::type;
    if (l.params.temperature != nullptr) {
      over_splits<weigh_split_kernel<H>>(args, l.n_draws, args.n_splits, kWeighSharedBytes, stream);
      over_splits<gather_split_kernel<H>>(args, l.n_draws, args.n_splits, BinLadder::kSharedBytes, stream);
    }
    over_splits<draw_token_kernel<H>>(args, l.n_draws, 1, BinLadder::kSharedBytes + BinSearch<H>::kSharedBytes, stream);
  });
  count_larger(args, dtype, stream);
  find_best(plan.best, l.n_draws, dtype, stream);
}

void log_probs(const LogProbsLaunch& l, Stream stream) {
  constexpr char kPlace[] = "log_probs";
  check_logits(l.logits, l.workspace, kPlace);
  check_n_best(l.best.n, l.logits.vocab_size, kPlace);
  const int n_rows = l.logits.n_rows;
  if (n_rows == 0) return;
  const Plan plan = plan_of(l);
  const Dtype dtype = l.logits.rows.dtype;
  summarise(plan.sampling, dtype, stream);
  with_logits(dtype, [&](auto tag) {
    using H = typename decltype(tag)::type;
    const int n_blocks = static_cast<int>(ceil_div(n_rows, kSampleThreads / kWarpSize));
    over_splits<report_targets_kernel<H>>(plan.sampling, n_blocks, 1, 0, stream);
  });
  count_larger(plan.sampling, dtype, stream);
  find_best(plan.best, n_rows, dtype, stream);
}

void best_of_beams(const BeamLaunch& l, Stream stream) {
  constexpr char kPlace[] = "best_of_beams";
  const std::int64_t n_choices = std::int64_t{l.n_beams} * l.logits.vocab_size;
  check_logits(l.logits, l.workspace, kPlace);
  check_n_best(l.n, n_choices, kPlace);
  check_arg(l.n_beams >= 1 && l.logits.n_rows % l.n_beams == 0, kPlace, "the ", l.logits.n_rows,
            " rows must be whole groups of n_beams, got ", l.n_beams);
  check_arg(n_choices < std::int64_t{1} << 31, kPlace, "n_beams * vocab_size must be below 2^31, got ", n_choices);
  check_arg(l.scores != nullptr, kPlace, "scores must be there, one a row; zeros for beams that begin");
  if (l.logits.n_rows == 0) return;
  const Plan plan = plan_of(l);
  summarise(plan.sampling, l.logits.rows.dtype, stream);
  find_best(plan.best, l.logits.n_rows, l.logits.rows.dtype, stream);
}

}  // namespace gpu
}  // namespace llm_decoder
