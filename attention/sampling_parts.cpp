#include "sampling_parts.h"

#include <algorithm>

#include "best_tokens.h"
#include "logit_rows.h"

namespace llm_decoder {
namespace gpu {

SamplingArgs plan_rows(const LogitRowsTensor& logits, const DrawParams& params, int n_draws, Workspace& workspace) {
  SamplingArgs args;
  args.logits = row_array(logits.rows);
  args.vocab_size = logits.vocab_size;
  args.n_splits = static_cast<int>(ceil_div(logits.vocab_size, kSplitTokens));
  args.n_draws = n_draws;
  args.params = params;
  args.summaries = workspace.take<SplitSummary>(std::int64_t{n_draws} * args.n_splits);
  return args;
}

BestKeys plan_keys(const SamplingArgs& rows, int n, int n_beams, Workspace& workspace) {
  BestKeys best;
  best.n = n;
  best.n_splits = n_beams * rows.n_splits;
  best.n_of_split = std::min({n, rows.vocab_size, kSplitTokens});
  best.of_splits = workspace.take<std::uint64_t>(std::int64_t{rows.n_draws} * rows.n_splits * best.n_of_split);
  best.of_groups = workspace.take<std::uint64_t>(std::int64_t{rows.n_draws} / n_beams * n);
  return best;
}

BestArgs plan_best(const SamplingArgs& rows, const BestTokens& best, int n_beams, Workspace& workspace) {
  BestArgs args;
  args.logits = rows.logits;
  args.vocab_size = rows.vocab_size;
  args.n_splits = rows.n_splits;
  args.rows = rows.params.rows;
  args.summaries = rows.summaries;
  args.n_beams = n_beams;
  args.best = plan_keys(rows, best.n, n_beams, workspace);
  args.tokens = best.tokens;
  args.scores = best.logprobs;
  return args;
}

bool needs_edits(const DrawParams& p) {
  const bool has_history = p.prompt.offsets != nullptr || p.output.offsets != nullptr;
  const bool has_penalty =
      p.repetition_penalty != nullptr || p.presence_penalty != nullptr || p.frequency_penalty != nullptr;
  return (has_history && has_penalty) || p.bias.offsets != nullptr || p.banned.offsets != nullptr ||
         p.allowed.offsets != nullptr || p.masks.of_draw != nullptr;
}

OutRowArray take_edited_rows(const SamplingArgs& rows, Workspace& workspace) {
  const std::int64_t stride = round_up(rows.vocab_size, kEight);
  return row_array(OutRowTensor{workspace.take<float>(rows.n_draws * stride), Dtype::f32, stride});
}

void check_logits(const LogitRowsTensor& logits, const void* workspace, const char* place) {
  check_arg(logits.vocab_size >= 1 && logits.vocab_size <= kMaxVocabSize, place, "vocab_size must be 1 to ",
            kMaxVocabSize, ", got ", logits.vocab_size);
  const Dtype dtype = logits.rows.dtype;
  check_arg(dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16, place,
            "logits must be float32, bfloat16 or float16, got ", dtype_name(dtype));
  check_arg(workspace != nullptr && reinterpret_cast<std::uintptr_t>(workspace) % 16 == 0, place,
            "workspace must be workspace_bytes(launch) of device memory aligned to 16 bytes, got ", workspace);
}

void check_draws(const LogitRowsTensor& logits, const DrawParams& params, int n_draws, const char* place) {
  check_arg(n_draws >= 0 && (params.rows != nullptr || n_draws <= logits.n_rows), place,
            "n_draws must be 0 to the number of rows, ", logits.n_rows, ", got ", n_draws,
            "; name the rows for more draws from one");
}

void check_n_best(int n_best, std::int64_t n_choices, const char* place) {
  check_arg(n_best >= 0 && n_best <= n_choices, place, "the number of best tokens must be 0 to ", n_choices, ", got ",
            n_best, "; ask for fewer");
}

void summarise(const SamplingArgs& args, Dtype dtype, Stream stream) {
  const int shared_bytes = args.edited.data != nullptr ? kEditsAt + SplitEdits::kSharedBytes : kEditsAt;
  with_logits(dtype, [&](auto tag) {
    using H = typename decltype(tag)::type;
    over_splits<summarise_split_kernel<H>>(args, args.n_draws, args.n_splits, shared_bytes, stream);
  });
}

void count_larger(const SamplingArgs& args, Dtype dtype, Stream stream) {
  if (args.ranks == nullptr) return;
  with_logits(dtype, [&](auto tag) {
    using H = typename decltype(tag)::type;
    over_splits<count_larger_kernel<H>>(args, args.n_draws, args.n_splits, 0, stream);
  });
}

void merge_best(const BestKeys& best, int n_groups, Stream stream) {
  gpu::launch<merge_best_kernel>(stream, {{n_groups, 1, 1}, kSampleThreads, kKeepBestSharedBytes}, best);
}

void find_best(const BestArgs& args, int n_draws, Dtype dtype, Stream stream) {
  if (args.best.n == 0) return;
  with_logits(dtype, [&](auto tag) {
    using H = typename decltype(tag)::type;
    over_splits<best_of_split_kernel<H>>(args, n_draws, args.n_splits, kKeepBestSharedBytes, stream);
  });
  const int n_groups = n_draws / args.n_beams;
  merge_best(args.best, n_groups, stream);
  over_splits<report_best_kernel>(args, n_groups, n_reporters(args.best.n), 0, stream);
}

}  // namespace gpu
}  // namespace llm_decoder
