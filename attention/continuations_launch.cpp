#include "continuations_launch.h"

#include "continuations.h"
#include "sampling_parts.h"

namespace llm_decoder {
namespace gpu {
namespace {

// What a launch keeps between its kernels.
struct Plan {
  ContinuationArgs args;
  BestArgs best;
  std::int64_t n_bytes = 0;
};

Plan plan_of(const ContinuationLaunch& l) {
  Workspace workspace(l.workspace);
  Plan plan;
  SamplingArgs& rows = plan.args.rows;
  rows = plan_rows(l.logits, l.params, l.n_draws, workspace);
  if (l.params.temperature != nullptr || needs_edits(l.params)) {
    rows.edited = take_edited_rows(rows, workspace);
    plan.args.largest = workspace.take<float>(std::int64_t{l.n_draws} * rows.n_splits);
  }
  if (l.params.temperature != nullptr && (l.params.top_k != nullptr || l.params.top_p != nullptr)) {
    plan.args.last = workspace.take<std::uint64_t>(l.n_draws);
  }
  plan.args.best = plan_keys(rows, l.n, 1, workspace);
  rows.n_tokens = l.n;
  rows.tokens = l.tokens;
  rows.logprobs = l.logprobs;
  rows.ranks = l.ranks;
  plan.args.scores = l.scores;
  plan.args.keys = l.keys;
  plan.best = plan_best(rows, l.best, 1, workspace);
  plan.n_bytes = workspace.n_bytes();
  return plan;
}

}  // namespace

std::int64_t workspace_bytes(const ContinuationLaunch& launch) { return plan_of(launch).n_bytes; }

void find_continuations(const ContinuationLaunch& l, Stream stream) {
  constexpr char kPlace[] = "find_continuations";
  check_logits(l.logits, l.workspace, kPlace);
  check_n_best(l.best.n, l.logits.vocab_size, kPlace);
  check_draws(l.logits, l.params, l.n_draws, kPlace);
  check_arg(l.n >= 1 && l.n <= l.logits.vocab_size, kPlace, "n must be 1 to ", l.logits.vocab_size, ", got ", l.n);
  if (l.n_draws == 0) return;
  const Plan plan = plan_of(l);
  const ContinuationArgs& args = plan.args;
  const int n_draws = l.n_draws, n_splits = args.rows.n_splits;
  const Dtype dtype = l.logits.rows.dtype;
  SamplingArgs raw = args.rows;
  raw.edited = {};
  summarise(raw, dtype, stream);
  with_logits(dtype, [&](auto tag) {
    using H = typename decltype(tag)::type;
    if (args.rows.edited.data != nullptr) {
      over_splits<edit_split_kernel<H>>(args, n_draws, n_splits, kEditSplitSharedBytes, stream);
    }
    if (args.last != nullptr) over_splits<cut_row_kernel>(args, n_draws, 1, RowCut::kSharedBytes, stream);
    over_splits<continue_split_kernel<H>>(args, n_draws, n_splits, kKeepBestSharedBytes, stream);
    merge_best(args.best, n_draws, stream);
    over_splits<report_continuations_kernel<H>>(args, n_draws, n_reporters(l.n), 0, stream);
  });
  count_larger(args.rows, dtype, stream);
  find_best(plan.best, n_draws, dtype, stream);
}

}  // namespace gpu
}  // namespace llm_decoder
