// Which tokens may come next in a text that repeats itself: those that followed its newest tokens before.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "llm_decoder/types.h"

namespace llm_decoder {

// Where every run of `length` tokens has ended, found by the run: a hash table names the latest end, and each end names
// the one before it with the same slot. Ends are counts of tokens, 0 is none. 8 to 20 bytes a token.
class RunEnds {
 public:
  explicit RunEnds(std::int32_t length) : length_(length) {}

  std::int32_t length() const { return length_; }
  // Adds the runs that end before the last of n_tokens tokens, as far as they are not known.
  void add_before(const std::int32_t* tokens, std::int32_t n_tokens);
  // The latest end whose slot is that of the run ending at `end`.
  std::int32_t latest(const std::int32_t* tokens, std::int32_t end) const { return latest_[slot(tokens, end)]; }
  std::int32_t before(std::int32_t end) const { return before_[static_cast<std::size_t>(end)]; }

 private:
  std::size_t slot(const std::int32_t* tokens, std::int32_t end) const;
  void add(const std::int32_t* tokens, std::int32_t end);

  std::int32_t length_;
  int shift_ = 64;
  std::vector<std::int32_t> latest_;  // by slot
  std::vector<std::int32_t> before_;  // by end
};

// Of one sequence, which only grows. The longest run of newest tokens that occurs earlier counts, up to kLongest
// tokens; where it occurs several times, the token that followed most often, among equals the latest, goes on.
//
// It notes how often its guesses were right, by the length of the run they came from and by whether all that was found
// agreed, and guesses as many tokens as are likely enough to be right together.
class PromptLookup {
 public:
  PromptLookup();
  // What may follow `tokens`, the whole sequence so far, which has grown since the last call: at most max_tokens of
  // them, the last one right with at least min_chance by what is known. Good until the next call.
  Span<const std::int32_t> propose(Span<const std::int32_t> tokens, std::int32_t max_tokens, double min_chance);

 private:
  static constexpr std::int32_t kLongest = 8;       // tokens of a run that are compared
  static constexpr std::int32_t kMostVisited = 64;  // earlier ends that are looked at
  static constexpr std::size_t kMostVotes = 16;

  // What followed the run where it stood before: the same token each time, one token (it stood once), several.
  enum Agreement : std::uint8_t { kAgree, kAlone, kSplit, kAgreements };
  // Of guesses of one kind: how many were right, of those known to be right or wrong. Older ones fade.
  struct Record {
    double right, known;
    double chance() const { return right / known; }
  };
  struct Guess {
    std::int32_t token;
    std::size_t kind;  // of records_
  };

  void learn(Span<const std::int32_t> tokens);
  std::int32_t find_longest_run(const RunEnds& ends, const std::int32_t* tokens, std::int32_t n_tokens);
  Guess guess_next(const std::int32_t* tokens, std::int32_t n_tokens, std::int32_t run);

  RunEnds pairs_{2}, singles_{1};
  std::vector<std::int32_t> found_;  // where the longest run ended, latest first
  std::vector<std::int32_t> draft_;  // and the guess behind it that was not likely enough
  std::vector<std::size_t> kinds_;   // of each
  std::int32_t n_drafted_at_ = 0;    // tokens there were when draft_ was made
  std::array<Record, (kLongest + 1) * kAgreements> records_;
};

}  // namespace llm_decoder
