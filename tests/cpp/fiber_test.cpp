// Fibers: functions that stop in their middle and go on there, whatever their registers and stacks hold.
#include "fiber.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"

namespace {

using llm_decoder::gpu::Fiber;

struct Counter {
  Fiber fiber;
  int begin = 0;
  int n_rounds = 0;
  double sum = 0;
};

// More live values than there are registers, whole and floating, across every stop.
void count(void* argument) {
  auto* self = static_cast<Counter*>(argument);
  std::array<double, 12> floats;
  std::array<long, 12> integers;
  for (std::size_t i = 0; i < 12; ++i) {
    floats[i] = self->begin + 0.5 * static_cast<double>(i);
    integers[i] = self->begin + static_cast<long>(i);
  }
  for (int round = 0; round < self->n_rounds; ++round) {
    for (std::size_t i = 0; i < 12; ++i) floats[i] = floats[i] * 0.5 + static_cast<double>(integers[i]++);
    self->fiber.yield();
  }
  for (const double x : floats) self->sum += x;
}

double sum_of(int begin, int n_rounds) {
  double sum = 0;
  for (int i = 0; i < 12; ++i) {
    double x = begin + 0.5 * i;
    for (int round = 0; round < n_rounds; ++round) x = x * 0.5 + (begin + i + round);
    sum += x;
  }
  return sum;
}

TEST(fibers_that_take_turns_each_keep_what_they_hold) {
  constexpr int kFibers = 40, kRounds = 7;
  std::vector<std::unique_ptr<Counter>> all;
  for (int i = 0; i < kFibers; ++i) {
    all.push_back(std::make_unique<Counter>());
    all.back()->begin = 100 * i;
    all.back()->n_rounds = kRounds;
    all.back()->fiber.start(&count, all.back().get());
  }
  for (int round = 0; round <= kRounds; ++round) {
    for (auto& one : all) {
      CHECK(!one->fiber.has_returned());
      one->fiber.resume();
    }
  }
  for (int i = 0; i < kFibers; ++i) {
    CHECK(all[static_cast<std::size_t>(i)]->fiber.has_returned());
    CHECK_EQ(all[static_cast<std::size_t>(i)]->sum, sum_of(100 * i, kRounds));
  }
}

TEST(a_fiber_left_in_its_middle_begins_anew) {
  Counter counter;
  for (const int n_rounds : {5, 3}) {
    counter.begin = n_rounds;
    counter.n_rounds = n_rounds;
    counter.fiber.start(&count, &counter);
    counter.fiber.resume();
    counter.fiber.resume();
  }
  while (!counter.fiber.has_returned()) counter.fiber.resume();
  CHECK_EQ(counter.sum, sum_of(3, 3));
}

struct Catcher {
  Fiber fiber;
  std::string caught;
};

[[noreturn]] void throw_after_stops(Fiber& fiber, int depth) {
  const std::string held(100, 'x');  // unwound
  fiber.yield();
  if (depth == 0) throw std::runtime_error("from " + std::string(held.begin(), held.begin() + 2));
  throw_after_stops(fiber, depth - 1);
}

void catch_one(void* argument) {
  auto* self = static_cast<Catcher*>(argument);
  try {
    throw_after_stops(self->fiber, 3);
  } catch (const std::runtime_error& error) {
    self->caught = error.what();
  }
}

TEST(exceptions_unwind_within_their_fiber) {
  Catcher first, second;
  for (Catcher* one : {&first, &second}) one->fiber.start(&catch_one, one);
  while (!second.fiber.has_returned()) {
    first.fiber.resume();
    second.fiber.resume();
  }
  CHECK_EQ(first.caught, "from xx");
  CHECK_EQ(second.caught, "from xx");
}

// Instructions that move whole vectors to the stack fault where it is not a multiple of 16.
void align_vectors(void* argument) {
  alignas(16) volatile float values[4] = {1, 2, 3, 4};
  auto* self = static_cast<Counter*>(argument);
  self->fiber.yield();
  self->begin = static_cast<int>(reinterpret_cast<std::uintptr_t>(&values[0]) % 16);
  self->sum = std::sqrt(static_cast<double>(values[3]));
}

TEST(stacks_are_aligned_as_calls_want_them) {
  Counter counter;
  counter.begin = -1;
  counter.fiber.start(&align_vectors, &counter);
  while (!counter.fiber.has_returned()) counter.fiber.resume();
  CHECK_EQ(counter.begin, 0);
  CHECK_EQ(counter.sum, 2.0);
}

}  // namespace
