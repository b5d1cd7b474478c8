#include "sampling_launch.h"

#include <algorithm>

#include "best_tokens.h"
#include "sampling.h"

namespace llm_decoder {
namespace gpu {
namespace {

int n_splits_of(const LogitRowsTensor& logits) { return static_cast<int>(ceil_div(logits.vocab_size, kSplitTokens)); }

bool needs_edits(const DrawParams& p) {
  const bool has_history = p.prompt.offsets != nullptr || p.output.offsets != nullptr;
  const bool has_penalty =
      p.repetition_penalty != nullptr || p.presence_penalty != nullptr || p.frequency_penalty != nullptr;
  return (has_history && has_penalty) || p.bias.offsets != nullptr || p.banned.offsets != nullptr ||
         p.allowed.offsets != nullptr || p.masks.of_draw != nullptr;
}

// Hands out runs of a workspace, or only counts where there is none.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  template <class T>
  T* take(std::int64_t n) {
    std::byte* const at = memory_ != nullptr ? memory_ + n_bytes_ : nullptr;
    n_bytes_ += round_up(n * static_cast<std::int64_t>(sizeof(T)), 16);
    return static_cast<T*>(static_cast<void*>(at));
  }
  std::int64_t n_bytes() const { return n_bytes_; }

 private:
  std::byte* memory_;
  std::int64_t n_bytes_ = 0;
};

// What a launch of each kind keeps between its kernels.
struct Plan {
  SamplingArgs sampling;
  BestArgs best;
  std::int64_t n_bytes = 0;
};

void plan_best(const LogitRowsTensor& logits, int n_draws, int n_best, Workspace& workspace, Plan& plan) {
  plan.best.logits = plan.sampling.logits;
  plan.best.vocab_size = logits.vocab_size;
  plan.best.n_splits = plan.sampling.n_splits;
  plan.best.rows = plan.sampling.params.rows;
  plan.best.summaries = plan.sampling.summaries;
  plan.best.n_best = n_best;
  plan.best.keys = workspace.take<std::uint64_t>(std::int64_t{n_draws} * plan.sampling.n_splits * n_best);
  plan.n_bytes = workspace.n_bytes();
}

Plan plan_rows(const LogitRowsTensor& logits, int n_draws, Workspace& workspace) {
  Plan plan;
  plan.sampling.logits = row_array(logits.rows);
  plan.sampling.vocab_size = logits.vocab_size;
  plan.sampling.n_splits = n_splits_of(logits);
  plan.sampling.n_draws = n_draws;
  plan.sampling.summaries = workspace.take<SplitSummary>(std::int64_t{n_draws} * plan.sampling.n_splits);
  return plan;
}

Plan plan_of(const SampleLaunch& l) {
  Workspace workspace(l.workspace);
  Plan plan = plan_rows(l.logits, l.n_draws, workspace);
  plan.sampling.params = l.params;
  if (needs_edits(l.params)) {
    const std::int64_t stride = round_up(l.logits.vocab_size, kEight);
    plan.sampling.edited = row_array(OutRowTensor{workspace.take<float>(l.n_draws * stride), Dtype::f32, stride});
  }
  if (l.params.temperature != nullptr) {
    plan.sampling.bins = workspace.take<BinTable>(l.n_draws);
    plan.sampling.gathered = workspace.take<std::int32_t>(std::int64_t{l.n_draws} * l.logits.vocab_size);
  }
  plan.sampling.tokens = l.tokens;
  plan.sampling.logprobs = l.logprobs;
  plan.sampling.ranks = l.ranks;
  plan_best(l.logits, l.n_draws, l.best.n, workspace, plan);
  plan.best.tokens = l.best.tokens;
  plan.best.scores = l.best.logprobs;
  return plan;
}

Plan plan_of(const LogProbsLaunch& l) {
  Workspace workspace(l.workspace);
  Plan plan = plan_rows(l.logits, l.logits.n_rows, workspace);
  plan.sampling.targets = l.targets;
  plan.sampling.logprobs = l.logprobs;
  plan.sampling.ranks = l.ranks;
  plan_best(l.logits, l.logits.n_rows, l.best.n, workspace, plan);
  plan.best.tokens = l.best.tokens;
  plan.best.scores = l.best.logprobs;
  return plan;
}

Plan plan_of(const BeamLaunch& l) {
  Workspace workspace(l.workspace);
  Plan plan = plan_rows(l.logits, l.logits.n_rows, workspace);
  plan_best(l.logits, l.logits.n_rows, l.n, workspace, plan);
  plan.best.n_beams = l.n_beams;
  plan.best.beam_scores = l.scores;
  plan.best.tokens = l.tokens;
  plan.best.beams = l.beams;
  plan.best.scores = l.new_scores;
  return plan;
}

void check_launch(const LogitRowsTensor& logits, int n_best, std::int64_t n_choices, const void* workspace,
                  const char* place) {
  check_arg(logits.vocab_size >= 1 && logits.vocab_size <= kMaxVocabSize, place, "vocab_size must be 1 to ",
            kMaxVocabSize, ", got ", logits.vocab_size);
  const std::int64_t most = std::min<std::int64_t>(kMaxBest, n_choices);
  check_arg(n_best >= 0 && n_best <= most, place, "the number of best tokens must be 0 to ", most, ", got ", n_best,
            "; ask for fewer");
  check_arg(workspace != nullptr && reinterpret_cast<std::uintptr_t>(workspace) % 16 == 0, place,
            "workspace must be workspace_bytes(launch) of device memory aligned to 16 bytes, got ", workspace);
}

template <auto kernel, class Args>
void over_splits(const Args& args, int n_draws, int shared_bytes, Stream stream) {
  gpu::launch<kernel>(stream, {{n_draws, args.n_splits, 1}, kSampleThreads, shared_bytes}, args);
}

template <class H>
void find_best(const BestArgs& args, int n_draws, Stream stream) {
  if (args.n_best == 0) return;
  over_splits<best_of_split_kernel<H>>(args, n_draws, kBestSharedBytes, stream);
  gpu::launch<merge_best_kernel>(stream, {{n_draws / args.n_beams, 1, 1}, kSampleThreads, kMergeSharedBytes}, args);
}

}  // namespace

std::int64_t workspace_bytes(const SampleLaunch& launch) { return plan_of(launch).n_bytes; }
std::int64_t workspace_bytes(const LogProbsLaunch& launch) { return plan_of(launch).n_bytes; }
std::int64_t workspace_bytes(const BeamLaunch& launch) { return plan_of(launch).n_bytes; }

void sample(const SampleLaunch& l, Stream stream) {
  constexpr char kPlace[] = "sample";
  check_launch(l.logits, l.best.n, l.logits.vocab_size, l.workspace, kPlace);
  check_arg(l.n_draws >= 0 && (l.params.rows != nullptr || l.n_draws <= l.logits.n_rows), kPlace,
            "n_draws must be 0 to the number of rows, ", l.logits.n_rows, ", got ", l.n_draws,
            "; name the rows for more draws from one");
  const Plan plan = plan_of(l);
  with_half_among({{"logits", l.logits.rows.dtype}}, kPlace, [&](auto tag) {
    using H = typename decltype(tag)::type;
    if (l.n_draws == 0) return;
    over_splits<summarise_split_kernel<H>>(
        plan.sampling, l.n_draws, plan.sampling.edited.data != nullptr ? kEditsAt + SplitEdits::kSharedBytes : kEditsAt,
        stream);
    if (l.params.temperature != nullptr) {
      over_splits<weigh_split_kernel<H>>(plan.sampling, l.n_draws, kWeighSharedBytes, stream);
      over_splits<gather_split_kernel<H>>(plan.sampling, l.n_draws, BinLadder::kSharedBytes, stream);
    }
    gpu::launch<draw_token_kernel<H>>(
        stream, {{l.n_draws, 1, 1}, kSampleThreads, BinLadder::kSharedBytes + BinSearch<H>::kSharedBytes},
        plan.sampling);
    if (l.ranks != nullptr) over_splits<count_larger_kernel<H>>(plan.sampling, l.n_draws, 0, stream);
    find_best<H>(plan.best, l.n_draws, stream);
  });
}

void log_probs(const LogProbsLaunch& l, Stream stream) {
  constexpr char kPlace[] = "log_probs";
  check_launch(l.logits, l.best.n, l.logits.vocab_size, l.workspace, kPlace);
  const Plan plan = plan_of(l);
  with_half_among({{"logits", l.logits.rows.dtype}}, kPlace, [&](auto tag) {
    using H = typename decltype(tag)::type;
    const int n_rows = l.logits.n_rows;
    if (n_rows == 0) return;
    over_splits<summarise_split_kernel<H>>(plan.sampling, n_rows, kEditsAt, stream);
    const int n_blocks = static_cast<int>(ceil_div(n_rows, kSampleThreads / kWarpSize));
    gpu::launch<report_targets_kernel<H>>(stream, {{n_blocks, 1, 1}, kSampleThreads, 0}, plan.sampling);
    if (l.ranks != nullptr) over_splits<count_larger_kernel<H>>(plan.sampling, n_rows, 0, stream);
    find_best<H>(plan.best, n_rows, stream);
  });
}

void best_of_beams(const BeamLaunch& l, Stream stream) {
  constexpr char kPlace[] = "best_of_beams";
  check_launch(l.logits, l.n, std::int64_t{l.n_beams} * l.logits.vocab_size, l.workspace, kPlace);
  check_arg(l.n_beams >= 1 && l.logits.n_rows % l.n_beams == 0, kPlace, "the ", l.logits.n_rows,
            " rows must be whole groups of n_beams, got ", l.n_beams);
  const std::int64_t n_choices = std::int64_t{l.n_beams} * l.logits.vocab_size;
  check_arg(n_choices < std::int64_t{1} << 31, kPlace, "n_beams * vocab_size must be below 2^31, got ", n_choices);
  check_arg(l.scores != nullptr, kPlace, "scores must be there, one a row; zeros for beams that begin");
  const Plan plan = plan_of(l);
  with_half_among({{"logits", l.logits.rows.dtype}}, kPlace, [&](auto tag) {
    using H = typename decltype(tag)::type;
    if (l.logits.n_rows == 0) return;
    over_splits<summarise_split_kernel<H>>(plan.sampling, l.logits.n_rows, kEditsAt, stream);
    find_best<H>(plan.best, l.logits.n_rows, stream);
  });
}

}  // namespace gpu
}  // namespace llm_decoder
