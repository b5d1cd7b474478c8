#include "prompt_lookup.h"

#include <algorithm>
#include <cstddef>

namespace llm_decoder {
namespace {

constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
constexpr int kFirstBits = 8;

// How often a guess is right, before anything is known: by the length of the run, measured on text that repeats.
constexpr std::array<double, 9> kFirstChance = {0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9};
constexpr double kFirstKnown = 3;  // guesses that this is worth
constexpr double kFade = 0.85;     // of what was known, with each draft

}  // namespace

void RunEnds::add_before(const std::int32_t* tokens, std::int32_t n_tokens) {
  const auto n = static_cast<std::size_t>(n_tokens);
  auto n_known = static_cast<std::int32_t>(before_.size());
  if (n_known == 0) {
    before_.resize(static_cast<std::size_t>(length_), 0);
    n_known = length_;
  }
  if (n > latest_.size()) {
    int bits = kFirstBits;
    while ((std::size_t{1} << bits) < 2 * n) ++bits;
    shift_ = 64 - bits;
    latest_.assign(std::size_t{1} << bits, 0);
    before_.resize(static_cast<std::size_t>(length_));
    n_known = length_;
  }
  for (std::int32_t end = n_known; end < n_tokens; ++end) add(tokens, end);
}

std::size_t RunEnds::slot(const std::int32_t* tokens, std::int32_t end) const {
  std::uint64_t key = 0;
  for (std::int32_t i = end - length_; i < end; ++i) {
    key = (key + static_cast<std::uint32_t>(tokens[i])) * kMultiplier;
  }
  return static_cast<std::size_t>(key >> shift_);
}

void RunEnds::add(const std::int32_t* tokens, std::int32_t end) {
  std::int32_t& latest = latest_[slot(tokens, end)];
  before_.push_back(latest);
  latest = end;
}

PromptLookup::PromptLookup() {
  for (std::size_t i = 0; i < records_.size(); ++i) records_[i] = {kFirstKnown * kFirstChance[i], kFirstKnown};
}

Span<const std::int32_t> PromptLookup::propose(Span<const std::int32_t> tokens, std::int32_t max_tokens,
                                               double min_chance) {
  const auto n_tokens = static_cast<std::int32_t>(tokens.size);
  learn(tokens);
  draft_.clear();
  found_.clear();
  for (RunEnds* ends : {&pairs_, &singles_}) {
    if (n_tokens <= ends->length()) continue;
    ends->add_before(tokens.data, n_tokens);
    drafted_run_ = find_longest_run(*ends, tokens.data, n_tokens);
    if (drafted_run_ > 0) break;
  }
  if (found_.empty()) return {};
  const double chance = records_[static_cast<std::size_t>(drafted_run_)].chance();
  std::int32_t count = 0;
  for (double all = chance; count < max_tokens && all >= min_chance; all *= chance) ++count;
  // A guess that is not made is judged all the same: chances may rise again.
  copy_what_followed(tokens.data, n_tokens, std::max(count, 1));
  n_drafted_at_ = n_tokens;
  return {draft_.data(), static_cast<std::size_t>(count)};
}

void PromptLookup::learn(Span<const std::int32_t> tokens) {
  if (draft_.empty()) return;
  const std::size_t begin = static_cast<std::size_t>(n_drafted_at_);
  const std::size_t n_known = std::min(draft_.size(), tokens.size - begin);
  std::size_t n_right = 0;
  while (n_right < n_known && tokens[begin + n_right] == draft_[n_right]) ++n_right;
  Record& record = records_[static_cast<std::size_t>(drafted_run_)];
  const bool ended_wrong = n_right < n_known;
  record.right = kFade * record.right + static_cast<double>(n_right);
  record.known = kFade * record.known + static_cast<double>(n_right) + (ended_wrong ? 1.0 : 0.0);
}

// Fills found_. Returns the run's length, 0 when there is none.
std::int32_t PromptLookup::find_longest_run(const RunEnds& ends, const std::int32_t* tokens, std::int32_t n_tokens) {
  found_.clear();
  std::int32_t longest = 0;
  std::int32_t end = ends.latest(tokens, n_tokens);
  for (std::int32_t i = 0; end > 0 && i < kMostVisited; ++i, end = ends.before(end)) {
    const std::int32_t most = std::min(kLongest, end);
    std::int32_t length = 0;
    while (length < most && tokens[end - 1 - length] == tokens[n_tokens - 1 - length]) ++length;
    if (length < std::max(longest, ends.length())) continue;
    if (length > longest) found_.clear();
    longest = length;
    if (found_.size() < kMostVotes) found_.push_back(end);
  }
  return longest;
}

void PromptLookup::copy_what_followed(const std::int32_t* tokens, std::int32_t n_tokens, std::int32_t count) {
  for (std::int32_t i = 0; i < count; ++i) {
    // What follows an end goes round where the run and what follows it overlap.
    const auto following = [&](std::int32_t end) {
      return end + i < n_tokens ? tokens[end + i] : draft_[static_cast<std::size_t>(end + i - n_tokens)];
    };
    std::ptrdiff_t most = 0;
    std::int32_t token = 0;
    for (const std::int32_t end : found_) {
      const std::int32_t candidate = following(end);
      const auto votes = std::count_if(found_.begin(), found_.end(),
                                       [&](std::int32_t other) { return following(other) == candidate; });
      if (votes > most) {
        most = votes;
        token = candidate;
      }
      if (2 * most >= static_cast<std::ptrdiff_t>(found_.size())) break;  // nothing later beats it
    }
    if (most < static_cast<std::ptrdiff_t>(found_.size())) {
      found_.erase(
          std::remove_if(found_.begin(), found_.end(), [&](std::int32_t end) { return following(end) != token; }),
          found_.end());
    }
    draft_.push_back(token);
  }
}

}  // namespace llm_decoder
