#include "prompt_lookup.h"

#include <algorithm>
#include <cstddef>

namespace llm_decoder {
namespace {

constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
constexpr int kFirstBits = 8;

// How often a guess is right, before anything is known: by the length of the run, measured on text that repeats, and
// more or less of it by how much agrees.
constexpr std::array<double, 9> kFirstChance = {0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9};
constexpr std::array<double, 3> kMoreChance = {0.1, 0.0, -0.2};
constexpr double kMostFirstChance = 0.95, kLeastFirstChance = 0.1;
constexpr double kFirstKnown = 3;  // guesses that this is worth
constexpr double kFade = 0.92;     // of what was known, with each guess

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
  for (std::size_t kind = 0; kind < records_.size(); ++kind) {
    const double chance = std::clamp(kFirstChance[kind / kAgreements] + kMoreChance[kind % kAgreements],
                                     kLeastFirstChance, kMostFirstChance);
    records_[kind] = {kFirstKnown * chance, kFirstKnown};
  }
}

Span<const std::int32_t> PromptLookup::propose(Span<const std::int32_t> tokens, std::int32_t max_tokens,
                                               double min_chance) {
  const auto n_tokens = static_cast<std::int32_t>(tokens.size);
  learn(tokens);
  draft_.clear();
  kinds_.clear();
  found_.clear();
  std::int32_t run = 0;
  for (RunEnds* ends : {&pairs_, &singles_}) {
    if (n_tokens <= ends->length()) continue;
    ends->add_before(tokens.data, n_tokens);
    run = find_longest_run(*ends, tokens.data, n_tokens);
    if (run > 0) break;
  }
  if (found_.empty()) return {};
  n_drafted_at_ = n_tokens;
  std::int32_t count = 0;
  for (double all = 1.0; count < max_tokens; ++count) {
    const Guess guess = guess_next(tokens.data, n_tokens, run + count);
    // One that is not made is judged all the same: chances may rise again.
    draft_.push_back(guess.token);
    kinds_.push_back(guess.kind);
    all *= records_[guess.kind].chance();
    if (all < min_chance) break;
  }
  return {draft_.data(), static_cast<std::size_t>(count)};
}

void PromptLookup::learn(Span<const std::int32_t> tokens) {
  const std::size_t begin = static_cast<std::size_t>(n_drafted_at_);
  for (std::size_t i = 0; i < draft_.size() && begin + i < tokens.size; ++i) {
    const bool is_right = tokens[begin + i] == draft_[i];
    Record& record = records_[kinds_[i]];
    record.right = kFade * record.right + (is_right ? 1.0 : 0.0);
    record.known = kFade * record.known + 1.0;
    if (!is_right) return;
  }
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

// The guess behind draft_, which with it makes a run of `run` tokens; found_ keeps the ends that it follows.
PromptLookup::Guess PromptLookup::guess_next(const std::int32_t* tokens, std::int32_t n_tokens, std::int32_t run) {
  const auto ahead = static_cast<std::int32_t>(draft_.size());
  // What follows an end goes round where the run and what follows it overlap.
  const auto following = [&](std::int32_t end) {
    return end + ahead < n_tokens ? tokens[end + ahead] : draft_[static_cast<std::size_t>(end + ahead - n_tokens)];
  };
  const auto n_found = static_cast<std::ptrdiff_t>(found_.size());
  std::ptrdiff_t most = 0;
  std::int32_t token = 0;
  for (const std::int32_t end : found_) {
    const std::int32_t candidate = following(end);
    const auto votes =
        std::count_if(found_.begin(), found_.end(), [&](std::int32_t other) { return following(other) == candidate; });
    if (votes > most) {
      most = votes;
      token = candidate;
    }
    if (2 * most >= n_found) break;  // nothing later beats it
  }
  if (most < n_found) {
    found_.erase(
        std::remove_if(found_.begin(), found_.end(), [&](std::int32_t end) { return following(end) != token; }),
        found_.end());
  }
  const Agreement agreement = most < n_found ? kSplit : n_found > 1 ? kAgree : kAlone;
  return {token, static_cast<std::size_t>(std::min(run, kLongest)) * kAgreements + agreement};
}

}  // namespace llm_decoder
