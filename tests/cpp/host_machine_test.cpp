// The machine that runs GPU kernels on a host: right kernels give right results in every order of threads, and each
// kind of wrong one is caught.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "every_order.h"
#include "machine.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr LaunchShape one_block(int n_threads, int shared_bytes = 0) { return {{1, 1, 1}, n_threads, shared_bytes}; }

// ---- right kernels ---------------------------------------------------------------------------------------------

struct Ints {
  const int* in;
  int* out;
};

GPU_KERNEL write_who_i_am(const Ints args) {
  const Dim3 block = block_index(), grid = grid_size();
  const int i = ((block.z * grid.y + block.y) * grid.x + block.x) * n_threads() + thread_index();
  args.out[i] = warp_index() * 100 + lane();
}

TEST(every_thread_of_every_block_runs_once_and_knows_who_it_is) {
  std::vector<int> out(2 * 3 * 2 * 64, -1);
  in_every_order<write_who_i_am>({{2, 3, 2}, 64, 0}, Ints{nullptr, out.data()}, [&] {
    for (std::size_t i = 0; i < out.size(); ++i) {
      CHECK_EQ(out[i], static_cast<int>(i % 64 / 32 * 100 + i % 32));
      out[i] = -1;
    }
  });
}

// A sum of the block by shuffles, then through shared memory.
GPU_KERNEL sum_block(const Ints args) {
  const auto sums = shared_array<int>(0, n_threads() / kWarpSize);
  int sum = args.in[thread_index()];
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (lane() == 0) sums.store(warp_index(), sum);
  sync_block();
  int total = 0;
  for (int i = 0; i < n_threads() / kWarpSize; ++i) total += sums.load(i);
  args.out[thread_index()] = total;
}

TEST(shuffles_and_barriers_sum_a_block) {
  std::vector<int> in(128), out(128);
  for (int i = 0; i < 128; ++i) in[static_cast<std::size_t>(i)] = i * i;
  in_every_order<sum_block>(one_block(128, 64), Ints{in.data(), out.data()}, [&] {
    for (const int sum : out) CHECK_EQ(sum, 127 * 128 * 255 / 6);
    std::fill(out.begin(), out.end(), 0);
  });
}

GPU_KERNEL vote(const Ints args) {
  const int i = thread_index();
  args.out[i] =
      (gpu::any(i == 40) ? 1 : 0) + (sync_block_or(i == 40) ? 2 : 0) + (gpu::ballot(i % 2 == 1) == 0xaaaaaaaau ? 4 : 0);
}

TEST(votes_count_the_warp_or_the_block) {
  std::vector<int> out(64);
  in_every_order<vote>(one_block(64), Ints{nullptr, out.data()}, [&] {
    for (int i = 0; i < 64; ++i) CHECK_EQ(out[static_cast<std::size_t>(i)], i < 32 ? 6 : 7);
  });
}

GPU_KERNEL reduce_warps(const Ints args) {
  const auto x = static_cast<std::uint32_t>(args.in[thread_index()]);
  args.out[thread_index()] = static_cast<int>(reduce_max(x) * 1000 + reduce_add(x));
}

TEST(reductions_give_each_lane_what_its_warp_has) {
  std::vector<int> in(64), out(64);
  for (int i = 0; i < 64; ++i) in[static_cast<std::size_t>(i)] = (i * 7 + 3) % 64 / 2;
  in_every_order<reduce_warps>(one_block(64), Ints{in.data(), out.data()}, [&] {
    for (std::size_t i = 0; i < 64; ++i) {
      const auto begin = in.begin() + static_cast<std::ptrdiff_t>(i / 32 * 32);
      CHECK_EQ(out[i], *std::max_element(begin, begin + 32) * 1000 + std::accumulate(begin, begin + 32, 0));
    }
  });
}

struct Words {
  const std::uint32_t* in;
  float* out;
};

template <class T>
GPU_KERNEL take_pairs_apart(const Words args) {
  const Vec<float, 2> pair = unpack<T>(args.in[lane()]);
  args.out[2 * lane()] = pair.values[0];
  args.out[2 * lane() + 1] = pair.values[1];
}

template <class T>
void check_pairs() {
  std::vector<std::uint32_t> words(32);
  std::vector<float> out(64);
  for (std::size_t i = 0; i < 32; ++i) {
    const auto low = from_float<T>(static_cast<float>(i) - 7.5f), high = from_float<T>(-0.25f * static_cast<float>(i));
    words[i] = low.bits | std::uint32_t{high.bits} << 16;
  }
  launch<take_pairs_apart<T>>(nullptr, one_block(32), Words{words.data(), out.data()});
  for (std::size_t i = 0; i < 32; ++i) {
    CHECK_EQ(out[2 * i], static_cast<float>(i) - 7.5f);
    CHECK_EQ(out[2 * i + 1], -0.25f * static_cast<float>(i));
  }
}

TEST(words_of_two_elements_come_apart) {
  check_pairs<Bf16>();
  check_pairs<Fp16>();
}

struct Floats {
  const float* in;
  float* out;
};

GPU_KERNEL round_and_erf(const Floats args) {
  args.out[2 * lane()] = static_cast<float>(round_to_int(args.in[lane()]));
  args.out[2 * lane() + 1] = gpu::erf(args.in[lane()]);
}

TEST(numbers_round_to_the_nearest_and_to_even_between_two) {
  std::vector<float> in(32, 0.0f), out(64);
  const std::vector<float> halves = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.6f};
  std::copy(halves.begin(), halves.end(), in.begin());
  in[7] = std::nanf("");
  launch<round_and_erf>(nullptr, one_block(32), Floats{in.data(), out.data()});
  const std::vector<float> want = {0, 2, 2, 0, -2, -2, 127, 0};
  for (std::size_t i = 0; i < want.size(); ++i) CHECK_EQ(out[2 * i], want[i]);
  CHECK(std::abs(out[1] - 0.5204999f) < 1e-6f);
}

// Warps hand a buffer of their own from lane to lane, ordered by barriers of the warp alone.
GPU_KERNEL rotate_in_warp(const Ints args) {
  const auto buffer = shared_array<int>(0, n_threads()).part(warp_index() * kWarpSize, kWarpSize);
  int value = args.in[thread_index()];
  for (int round = 0; round < 3; ++round) {
    buffer.store(lane(), value);
    sync_warp();
    value = buffer.load((lane() + 1) % kWarpSize);
    sync_warp();
  }
  args.out[thread_index()] = value;
}

TEST(a_barrier_of_the_warp_orders_its_lanes) {
  std::vector<int> in(64), out(64);
  for (int i = 0; i < 64; ++i) in[static_cast<std::size_t>(i)] = i;
  in_every_order<rotate_in_warp>(one_block(64, 256), Ints{in.data(), out.data()}, [&] {
    for (int i = 0; i < 64; ++i) CHECK_EQ(out[static_cast<std::size_t>(i)], i / 32 * 32 + (i % 32 + 3) % 32);
  });
}

GPU_KERNEL count_atomically(const Ints args) {
  const auto counter = shared_array<int>(0, 2);
  if (thread_index() < 2) counter.store(thread_index(), 0);
  sync_block();
  counter.atomic_add(0, thread_index());
  counter.atomic_or(1, 1 << thread_index() % 7);
  atomic_add(args.out + 1, 1);
  sync_block();
  if (thread_index() == 1) args.out[0] = counter.load(0) + counter.load(1) * 10000;
}

TEST(atomics_lose_nothing) {
  std::vector<int> out(2);
  in_every_order<count_atomically>({{3, 1, 1}, 96, 16}, Ints{nullptr, out.data()}, [&] {
    CHECK_EQ(out[0], 95 * 96 / 2 + 127 * 10000);
    CHECK_EQ(out[1], 3 * 96);
    out[1] = 0;
  });
}

// A ring of two stages: the copy of a stage flies while the one before is used.
GPU_KERNEL add_up_by_copies(const Ints args) {
  constexpr int kStages = 5;
  const auto ring = shared_array<int>(0, 2 * 32 * 4);
  const auto begin_copy = [&](int stage) {
    copy_async<16>(ring, (stage % 2 * 32 + lane()) * 4, args.in + (stage * 32 + lane()) * 4, stage != 3);
    commit_copies();
  };
  int sum = 0;
  begin_copy(0);
  for (int stage = 0; stage < kStages; ++stage) {
    if (stage + 1 < kStages) {
      begin_copy(stage + 1);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    sync_warp();
    const Vec<int, 4> neighbour = ring.load_vec<4>((stage % 2 * 32 + (lane() + 1) % 32) * 4);
    sum += neighbour.values[0] + neighbour.values[3];
    sync_warp();
  }
  args.out[lane()] = sum;
}

TEST(asynchronous_copies_bring_their_stage_and_zeros_where_nothing_is_valid) {
  std::vector<int> in(5 * 32 * 4);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i * 7 % 101);
  std::vector<int> out(32);
  in_every_order<add_up_by_copies>(one_block(32, 2 * 32 * 16), Ints{in.data(), out.data()}, [&] {
    for (std::size_t l = 0; l < 32; ++l) {
      int want = 0;
      for (std::size_t stage : {0, 1, 2, 4}) {
        const std::size_t first = (stage * 32 + (l + 1) % 32) * 4;
        want += in[first] + in[first + 3];
      }
      CHECK_EQ(out[l], want);
    }
  });
}

// ---- the tensor cores ------------------------------------------------------------------------------------------

// One tile: D[16, 8] = A[16, 16] B[16, 8], A row by row and B column by column or row by row in shared memory, as
// attention has keys and values.
struct Tile {
  const Bf16 *a, *b;  // [16][16] and [8][16] or, by rows, [16][8]
  float* d;           // [16][8]
};

template <bool b_is_by_rows>
GPU_KERNEL multiply_tile(const Tile args) {
  const auto a = shared_array<Bf16>(0, 256);
  const auto b = shared_array<Bf16>(512, 128);
  for (int i = lane(); i < 256; i += kWarpSize) a.store(i, args.a[i]);
  for (int i = lane(); i < 128; i += kWarpSize) b.store(i, args.b[i]);
  sync_warp();
  // Lane 8 j + r names row r of matrix j: of A the four quarters down, then right; of B two halves, twice.
  const int matrix = lane() / 8, row = lane() % 8;
  std::uint32_t a_fragment[4], b_fragments[4];
  load_matrices(a_fragment, a, (row + matrix % 2 * 8) * 16 + matrix / 2 * 8);
  if (b_is_by_rows) {
    load_matrices_transposed(b_fragments, b, (row + matrix % 2 * 8) * 8);
  } else {
    load_matrices(b_fragments, b, row * 16 + matrix % 2 * 8);
  }
  float d[4] = {0.5f, 0.5f, 0.5f, 0.5f};
  const std::uint32_t b_fragment[2] = {b_fragments[0], b_fragments[1]};
  mma_16x8x16<Bf16>(d, a_fragment, b_fragment);
  for (int i = 0; i < 4; ++i) args.d[(lane() / 4 + i / 2 * 8) * 8 + lane() % 4 * 2 + i % 2] = d[i];
}

TEST(matrices_loaded_and_multiplied_are_a_product) {
  std::vector<Bf16> a(256), b(128), b_rows(128);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (Bf16& x : a) x = from_float<Bf16>(normal(random));
  for (Bf16& x : b) x = from_float<Bf16>(normal(random));
  for (std::size_t n = 0; n < 8; ++n) {
    for (std::size_t k = 0; k < 16; ++k) b_rows[k * 8 + n] = b[n * 16 + k];
  }
  std::vector<float> d(128);
  const auto check = [&] {
    for (std::size_t m = 0; m < 16; ++m) {
      for (std::size_t n = 0; n < 8; ++n) {
        double want = 0.5;
        for (std::size_t k = 0; k < 16; ++k) want += double{to_float(a[m * 16 + k])} * to_float(b[n * 16 + k]);
        CHECK(std::abs(d[m * 8 + n] - want) < 1e-5 * (1 + std::abs(want)));
      }
    }
    std::fill(d.begin(), d.end(), 0.0f);
  };
  in_every_order<multiply_tile<false>>(one_block(32, 768), Tile{a.data(), b.data(), d.data()}, check);
  in_every_order<multiply_tile<true>>(one_block(32, 768), Tile{a.data(), b_rows.data(), d.data()}, check);
}

struct ByteTile {
  const std::int8_t *a, *b;  // [16][32], [8][32]
  std::int32_t* d;           // [16][8]
};

GPU_KERNEL multiply_bytes(const ByteTile args) {
  const auto word = [](const std::int8_t* bytes) { return load_vec<1>(reinterpret_cast<const std::uint32_t*>(bytes)); };
  const int g = lane() / 4, t = lane() % 4;
  std::uint32_t a[4], b[2];
  for (int w = 0; w < 4; ++w) a[w] = word(args.a + (g + w % 2 * 8) * 32 + 4 * t + w / 2 * 16).values[0];
  for (int w = 0; w < 2; ++w) b[w] = word(args.b + g * 32 + 4 * t + w * 16).values[0];
  std::int32_t d[4] = {};
  mma_16x8x32(d, a, b);
  for (int i = 0; i < 4; ++i) args.d[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

TEST(bytes_multiplied_are_an_exact_product) {
  std::vector<std::int8_t> a(512), b(256);
  std::mt19937 random(4);
  for (std::int8_t& x : a) x = static_cast<std::int8_t>(random() % 255 - 127);
  for (std::int8_t& x : b) x = static_cast<std::int8_t>(random() % 255 - 127);
  std::vector<std::int32_t> d(128);
  in_every_order<multiply_bytes>(one_block(32), ByteTile{a.data(), b.data(), d.data()}, [&] {
    for (std::size_t m = 0; m < 16; ++m) {
      for (std::size_t n = 0; n < 8; ++n) {
        std::int32_t want = 0;
        for (std::size_t k = 0; k < 32; ++k) want += a[m * 32 + k] * b[n * 32 + k];
        CHECK_EQ(d[m * 8 + n], want);
      }
    }
  });
}

// ---- arithmetic on packed registers ----------------------------------------------------------------------------

struct WordArgs {
  const std::uint32_t* in;  // three a lane
  std::uint32_t* out;
};

template <class T>
GPU_KERNEL multiply_and_add_pairs(const WordArgs args) {
  const std::uint32_t* in = args.in + 3 * lane();
  args.out[lane()] = fma_pairs<T>(in[0], in[1], in[2]);
}

// The low half of lane l: what T has for floats[l]; the high half stays 1 * 1 + 1.
template <class T>
void check_pairs(const std::vector<std::array<float, 3>>& floats, const std::vector<float>& want) {
  const auto pair = [](float low, float high) {
    return from_float<T>(low).bits | std::uint32_t{from_float<T>(high).bits} << 16;
  };
  std::vector<std::uint32_t> in(3 * kWarpSize, pair(0.0f, 1.0f)), out(kWarpSize);
  for (std::size_t i = 0; i < floats.size(); ++i) {
    for (std::size_t j = 0; j < 3; ++j) in[3 * i + j] = pair(floats[i][j], 1.0f);
  }
  in_every_order<multiply_and_add_pairs<T>>(one_block(32), WordArgs{in.data(), out.data()}, [&] {
    for (std::size_t i = 0; i < floats.size(); ++i) CHECK_EQ(out[i], pair(want[i], 2.0f));
  });
}

TEST(pairs_multiply_and_add_with_subnormals_and_one_rounding) {
  const auto power = [](int exponent) { return std::ldexp(1.0f, exponent); };
  const float infinity = std::numeric_limits<float>::infinity();
  // 112 * 148 lies halfway between 16512 and 16640: what is added decides, however small.
  check_pairs<Bf16>({{3.0f, 5.0f, -2.0f},
                     {power(-133), power(127), 1.0f},
                     {power(-127), power(-3), power(-132)},
                     {112.0f, 148.0f, 0.0f},
                     {112.0f, 148.0f, -power(-20)},
                     {112.0f, 148.0f, -power(-40)},
                     {-112.0f, 148.0f, power(-100)},
                     {112.0f, 148.0f, power(-133)},
                     {power(100), power(27), power(127)}},
                    {13.0f, 1.0f + power(-6), power(-130) + power(-132), 16640.0f, 16512.0f, 16512.0f, -16512.0f,
                     16640.0f, infinity});
  check_pairs<Fp16>({{3.0f, 5.0f, -2.0f},
                     {power(-24), power(15), 1.0f},
                     {power(-24), 0.5f, power(-24)},
                     {1.0f + power(-10), 1.5f, 0.0f},
                     {1.0f + power(-10), 1.5f, -power(-24)},
                     {power(15), 2.0f, 0.0f}},
                    {13.0f, 1.0f + power(-9), power(-23), 1.5f + power(-9), 1.5f + power(-10), infinity});
}

GPU_KERNEL permute(const WordArgs args) {
  const std::uint32_t* in = args.in + 3 * lane();
  args.out[lane()] = permute_bytes(in[0], in[1], in[2]);
}

TEST(bytes_of_two_words_come_in_any_order) {
  std::vector<std::uint32_t> in(3 * kWarpSize), out(kWarpSize);
  const std::uint32_t selectors[] = {0x3210, 0x7654, 0x0123, 0x4040, 0x7070, 0x6251};
  const std::uint32_t want[] = {0x13121110, 0x17161514, 0x10111213, 0x14101410, 0x17101710, 0x16121511};
  for (std::size_t i = 0; i < kWarpSize; ++i) {
    in[3 * i] = 0x13121110;
    in[3 * i + 1] = 0x17161514;
    in[3 * i + 2] = selectors[i % 6];
  }
  in_every_order<permute>(one_block(32), WordArgs{in.data(), out.data()}, [&] {
    for (std::size_t i = 0; i < kWarpSize; ++i) CHECK_EQ(out[i], want[i % 6]);
  });
  in[2] = 0x3218;
  expect_error<permute>(one_block(32), WordArgs{in.data(), out.data()}, "takes byte 8 of 8");
}

GPU_KERNEL load_words_once(const WordArgs args) { args.out[lane()] = load_once<4>(args.in + 4 * lane()).values[3]; }

TEST(what_is_loaded_once_is_what_is_there_and_aligned) {
  std::vector<std::uint32_t> in(4 * kWarpSize + 4);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(i);
  std::vector<std::uint32_t> out(kWarpSize);
  in_every_order<load_words_once>(one_block(32), WordArgs{in.data(), out.data()}, [&] {
    for (std::size_t i = 0; i < kWarpSize; ++i) CHECK_EQ(out[i], 4 * i + 3);
  });
  expect_error<load_words_once>(one_block(32), WordArgs{in.data() + 1, out.data()}, "not aligned to 16");
}

// ---- wrong kernels ---------------------------------------------------------------------------------------------

GPU_KERNEL read_a_neighbour_with_no_barrier(const Ints args) {
  const auto buffer = shared_array<int>(0, n_threads());
  buffer.store(thread_index(), thread_index());
  if (args.in != nullptr) sync_warp();  // enough within a warp, not between warps
  args.out[thread_index()] = buffer.load((thread_index() + 1) % n_threads());
}

HOST_TEST(a_read_with_no_barrier_after_the_write_is_caught) {
  std::vector<int> out(64);
  const int some = 0;
  for (const Order& order : kOrders) {
    set_host_order(order);
    // Who reads first finds what nobody wrote yet, or what is not ordered.
    CHECK_THROWS(std::logic_error, "reads shared byte",
                 launch<read_a_neighbour_with_no_barrier>(nullptr, one_block(64, 256), Ints{nullptr, out.data()}));
    CHECK_THROWS(std::logic_error, "reads shared byte",
                 launch<read_a_neighbour_with_no_barrier>(nullptr, one_block(64, 256), Ints{&some, out.data()}));
  }
  set_host_order({});
  launch<read_a_neighbour_with_no_barrier>(nullptr, one_block(32, 256), Ints{&some, out.data()});
}

GPU_KERNEL overwrite_what_others_read(const Ints args) {
  const auto buffer = shared_array<int>(0, n_threads());
  buffer.store(thread_index(), 1);
  sync_block();
  args.out[thread_index()] = buffer.load((thread_index() + 40) % n_threads());
  buffer.store(thread_index(), 2);
}

HOST_TEST(a_write_with_no_barrier_after_a_read_is_caught) {
  std::vector<int> out(64);
  expect_error<overwrite_what_others_read>(one_block(64, 256), Ints{nullptr, out.data()}, "with no barrier between");
}

GPU_KERNEL overwrite_what_a_warp_read(const Ints args) {
  const auto buffer = shared_array<int>(0, 1);
  if (thread_index() == 0) buffer.store(0, 1);
  sync_block();
  const int value = buffer.load(0);  // by every lane
  if (args.in != nullptr) sync_warp();
  if (thread_index() == 5) buffer.store(0, value + 1);
}

HOST_TEST(a_write_is_ordered_against_every_reader) {
  const int some = 0;
  expect_error<overwrite_what_a_warp_read>(one_block(64, 16), Ints{nullptr, nullptr}, "with no barrier between");
  expect_error<overwrite_what_a_warp_read>(one_block(64, 16), Ints{&some, nullptr}, "with no barrier between");
  launch<overwrite_what_a_warp_read>(nullptr, one_block(32, 16), Ints{&some, nullptr});
}

GPU_KERNEL write_the_same_place(const Ints) { shared_array<int>(0, 1).store(0, 1); }

HOST_TEST(two_writes_to_one_place_are_caught) {
  expect_error<write_the_same_place>(one_block(32, 16), Ints{}, "wrote with no barrier between");
}

GPU_KERNEL read_what_nobody_wrote(const Ints args) { args.out[0] = shared_array<int>(0, 4).load(3); }

HOST_TEST(a_read_of_what_nobody_wrote_is_caught) {
  int out = 0;
  expect_error<read_what_nobody_wrote>(one_block(32, 16), Ints{nullptr, &out}, "which nobody wrote");
}

GPU_KERNEL write_past_the_array(const Ints) { shared_array<int>(0, 31).store(thread_index(), 1); }
GPU_KERNEL take_more_than_there_is(const Ints) { shared_array<int>(16, 4); }

HOST_TEST(what_lies_past_the_end_is_caught) {
  expect_error<write_past_the_array>(one_block(32, 256), Ints{}, "element 31 + 1 of a shared array of 31");
  expect_error<take_more_than_there_is>(one_block(32, 16), Ints{}, "a shared array of 4 x 4 bytes at 16");
}

GPU_KERNEL load_matrices_off_their_rows(const Ints) {
  const auto rows = shared_array<Bf16>(0, 512);
  for (int i = lane(); i < 512; i += kWarpSize) rows.store(i, Bf16{0});
  sync_warp();
  std::uint32_t r[4];
  load_matrices(r, rows, lane() * 8 + 1);
}

HOST_TEST(a_row_that_is_not_aligned_is_caught) {
  expect_error<load_matrices_off_their_rows>(one_block(32, 1024), Ints{}, "not aligned to 16");
}

struct CopyMistake {
  const int* in;
  enum { no_wait, no_barrier, overwritten, never_waited, not_committed, nothing_valid } kind;
};

GPU_KERNEL use_a_copy_wrongly(const CopyMistake args) {
  const auto buffer = shared_array<int>(0, 128);
  copy_async<16>(buffer, lane() * 4, args.in + lane() * 4, args.kind != CopyMistake::nothing_valid);
  if (args.kind == CopyMistake::never_waited) return;
  if (args.kind == CopyMistake::overwritten) buffer.store(lane() * 4 + 1, 0);
  if (args.kind != CopyMistake::not_committed) commit_copies();
  if (args.kind == CopyMistake::no_wait) {
    wait_copies<1>();
  } else {
    wait_copies<0>();
  }
  if (args.kind != CopyMistake::no_barrier) sync_warp();
  buffer.load((lane() * 4 + 4) % 128);
}

HOST_TEST(a_copy_used_before_it_landed_for_all_is_caught) {
  alignas(16) static std::array<int, 128> in{};
  const LaunchShape shape = one_block(32, 512);
  expect_error<use_a_copy_wrongly>(shape, CopyMistake{in.data(), CopyMistake::no_wait}, "may land");
  expect_error<use_a_copy_wrongly>(shape, CopyMistake{in.data(), CopyMistake::not_committed}, "may land");
  expect_error<use_a_copy_wrongly>(shape, CopyMistake{in.data(), CopyMistake::overwritten}, "may land");
  expect_error<use_a_copy_wrongly>(shape, CopyMistake{in.data(), CopyMistake::never_waited}, "copies in flight");
  expect_error<use_a_copy_wrongly>(shape, CopyMistake{in.data() + 1, CopyMistake::no_barrier}, "not aligned");
  expect_error<use_a_copy_wrongly>(shape, CopyMistake{in.data() + 1, CopyMistake::nothing_valid}, "not aligned");
  expect_error<use_a_copy_wrongly>(shape, CopyMistake{in.data(), CopyMistake::no_barrier}, "reads shared byte");
}

// The copy's source changes after the copy began and before its wait: what lands is what is there then.
GPU_KERNEL change_the_source_of_a_copy(const Ints args) {
  const auto buffer = shared_array<int>(0, 4);
  if (lane() != 0) return;
  copy_async<16>(buffer, 0, static_cast<const int*>(args.out), true);
  commit_copies();
  args.out[0] = 7;
  wait_copies<0>();
  args.out[1] = buffer.load(0);
}

HOST_TEST(a_copy_lands_as_late_as_is_legal) {
  alignas(16) static std::array<int, 4> memory{1, 0, 0, 0};
  launch<change_the_source_of_a_copy>(nullptr, one_block(32, 16), Ints{nullptr, memory.data()});
  CHECK_EQ(memory[1], 7);
}

GPU_KERNEL leave_some_lanes_out(const Ints) {
  if (lane() < 16) shuffle(lane(), 0);
}
GPU_KERNEL mix_collectives(const Ints) {
  if (lane() < 16) {
    gpu::any(true);
  } else {
    sync_warp();
  }
}
GPU_KERNEL leave_a_warp_out(const Ints) {
  if (warp_index() == 0) sync_block();
}

HOST_TEST(a_collective_that_some_do_not_join_is_caught) {
  expect_error<leave_some_lanes_out>(one_block(32), Ints{},
                                     "waits for ever: threads 0-15 wait in shuffle, threads 16-31 have returned");
  expect_error<mix_collectives>(one_block(32), Ints{}, "where other lanes of its warp are in");
  expect_error<leave_a_warp_out>(one_block(64), Ints{}, "threads 0-31 wait at a barrier of the block");
}

// A fragment filled by a wrong map of lanes is no error, it is a wrong product: the map counts.
GPU_KERNEL multiply_with_lanes_swapped(const Tile args) {
  std::uint32_t a[4] = {}, b[2] = {};
  const int g = lane() % 8, t = lane() / 8;  // lane / 4 and lane % 4 would be right
  for (int w = 0; w < 4; ++w) {
    const Bf16* pair = args.a + (g + w % 2 * 8) * 16 + 2 * t + w / 2 * 8;
    a[w] = pair[0].bits | std::uint32_t{pair[1].bits} << 16;
  }
  for (int w = 0; w < 2; ++w) {
    const Bf16* pair = args.b + g * 16 + 2 * t + w * 8;
    b[w] = pair[0].bits | std::uint32_t{pair[1].bits} << 16;
  }
  float d[4] = {};
  mma_16x8x16<Bf16>(d, a, b);
  for (int i = 0; i < 4; ++i) args.d[(lane() / 4 + i / 2 * 8) * 8 + lane() % 4 * 2 + i % 2] = d[i];
}

TEST(a_wrong_map_of_lanes_gives_a_wrong_product) {
  std::vector<Bf16> a(256), b(128);
  for (std::size_t i = 0; i < 256; ++i) a[i] = from_float<Bf16>(static_cast<float>(i % 19));
  for (std::size_t i = 0; i < 128; ++i) b[i] = from_float<Bf16>(static_cast<float>(i % 13));
  std::vector<float> d(128);
  launch<multiply_with_lanes_swapped>(nullptr, one_block(32), Tile{a.data(), b.data(), d.data()});
  double error = 0;
  for (std::size_t m = 0; m < 16; ++m) {
    for (std::size_t n = 0; n < 8; ++n) {
      double want = 0;
      for (std::size_t k = 0; k < 16; ++k) want += double{to_float(a[m * 16 + k])} * to_float(b[n * 16 + k]);
      error = std::max(error, std::abs(d[m * 8 + n] - want));
    }
  }
  CHECK(error > 1);
}

HOST_TEST(shapes_that_no_gpu_takes_are_refused) {
  CHECK_THROWS(std::invalid_argument, "n_threads", launch<write_the_same_place>(nullptr, one_block(33), Ints{}));
  CHECK_THROWS(std::invalid_argument, "n_threads", launch<write_the_same_place>(nullptr, one_block(2048), Ints{}));
  CHECK_THROWS(std::invalid_argument, "shared", launch<write_the_same_place>(nullptr, one_block(32, 1 << 20), Ints{}));
  CHECK_THROWS(std::invalid_argument, "grid", launch<write_the_same_place>(nullptr, {{1, 70000, 1}, 32, 0}, Ints{}));
}

#if !defined(LLM_DECODER_ON_DEVICE)  // whose compiler refuses them
TEST(words_of_kernels_outside_of_a_kernel_are_refused) {
  CHECK_THROWS(std::logic_error, "outside of a kernel", thread_index());
}
#endif

}  // namespace
