// The words of machine_hopper.h on the host: right kernels give right results in every order of threads, and each kind
// of wrong one is caught.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "every_order.h"
#include "machine_hopper.h"
#include "tile_ring.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr LaunchShape groups(int n, int shared_bytes) { return {{1, 1, 1}, n * kWarpgroupSize, shared_bytes}; }

// ---- products --------------------------------------------------------------------------------------------------

// a [64, 64], b [n, 64] or [64, n]; out [64, n].
struct Matrices {
  const Bf16 *a, *b;
  float* out;
};

// What a wrong kernel does wrong.
enum Fault { none, no_fence, no_begin, early_read, early_change, changed_operand, early_write, alone, not_waited };

GPU_FUNCTION void put_matrix(const Shared<Bf16>& to, int begin, const Bf16* from, int n_rows, int n_columns) {
  for (int i = thread_index(); i < n_rows * n_columns / 8; i += n_threads()) {
    const int row = i / (n_columns / 8), chunk = i % (n_columns / 8);
    to.store_vec(begin + matrix_chunk(n_rows, row, chunk) / 2, load_vec<8>(from + row * n_columns + chunk * 8));
  }
}

template <int n>
GPU_FUNCTION void write_sums(const float (&sums)[n], float* out) {
  for (int i = 0; i < n; ++i) {
    const int row = thread_index() / 32 * 16 + lane() / 4 + i / 2 % 2 * 8;
    out[row * 2 * n + i / 4 * 8 + lane() % 4 * 2 + i % 2] = sums[i];
  }
}

template <int n, Fault fault>
GPU_KERNEL multiply_rows(const Matrices args) {
  const auto memory = shared_array<Bf16>(0, 64 * 64 + n * 64);
  put_matrix(memory, 0, args.a, 64, 64);
  put_matrix(memory, 64 * 64, args.b, n, 64);
  if (fault != no_fence) fence_async();
  sync_block();
  float sums[n / 2];
  hold(sums);
  if (fault != no_begin) begin_products();
  if (fault == alone && warp_index() == 3) return;
  for (int step = 0; step < 4; ++step) {
    multiply_shared<Bf16, n>(sums, advance(describe_rows(matrix_address(memory, 0)), step_along_columns(64, step)),
                             advance(describe_rows(matrix_address(memory, 64 * 64)), step_along_columns(n, step)),
                             step > 0);
  }
  commit_products();
  if (fault == early_read) return write_sums(sums, args.out);
  if (fault == early_change) sums[1] = 0.0f;
  if (fault == early_write) memory.store_vec(64 * 64 + 8 * thread_index(), Vec<Bf16, 8>{});
  if (fault == not_waited) return;
  wait_products<0>();
  write_sums(sums, args.out);
}

template <int n, Fault fault>
GPU_KERNEL multiply_columns(const Matrices args) {
  const auto memory = shared_array<Bf16>(0, 64 * n);
  put_matrix(memory, 0, args.b, 64, n);
  fence_async();
  sync_block();
  std::uint32_t a[4][4];
  for (int step = 0; step < 4; ++step) {
    for (int word = 0; word < 4; ++word) {
      const int row = thread_index() / 32 * 16 + lane() / 4 + word % 2 * 8, column = word / 2 * 8 + lane() % 4 * 2;
      const Bf16* const pair = args.a + row * 64 + step * 16 + column;
      a[step][word] = pair[0].bits | std::uint32_t{pair[1].bits} << 16;
    }
  }
  float sums[n / 2];
  for (float& sum : sums) sum = 1.0f;
  begin_products();
  for (int step = 0; step < 4; ++step) {
    multiply_registers<Bf16, n>(sums, a[step],
                                advance(describe_columns(matrix_address(memory, 0), 64), step_along_rows(step)), true);
  }
  commit_products();
  if (fault == changed_operand) a[2][1] = 0;
  wait_products<0>();
  write_sums(sums, args.out);
}

struct ProductRig {
  explicit ProductRig(int n_) : n(n_), a(64 * 64), b(static_cast<std::size_t>(64 * n_)), out(b.size()) {
    std::mt19937 random(5);
    for (std::vector<Bf16>* matrix : {&a, &b}) {
      for (Bf16& x : *matrix) x = from_float<Bf16>(static_cast<float>(static_cast<int>(random() % 17) - 8));
    }
  }
  Matrices args() { return {a.data(), b.data(), out.data()}; }
  // b_row, b_column: how far b's elements of one more k and of one more column of the product lie.
  void check(int b_k, int b_column, float more) {
    for (int row = 0; row < 64; ++row) {
      for (int column = 0; column < n; ++column) {
        float want = more;
        for (int k = 0; k < 64; ++k) {
          want += to_float(a[static_cast<std::size_t>(row * 64 + k)]) *
                  to_float(b[static_cast<std::size_t>(k * b_k + column * b_column)]);
        }
        float& got = out[static_cast<std::size_t>(row * n + column)];
        CHECK_EQ(got, want);
        got = std::nanf("");
      }
    }
  }

  int n;
  std::vector<Bf16> a, b;
  std::vector<float> out;
};

template <int n>
void check_products() {
  ProductRig rig(n);
  in_every_order<multiply_rows<n, none>>(groups(1, 2 * (64 * 64 + n * 64)), rig.args(), [&] { rig.check(1, 64, 0); });
  in_every_order<multiply_columns<n, none>>(groups(1, 2 * 64 * n), rig.args(), [&] { rig.check(n, 1, 1); });
}

TEST(a_warpgroup_multiplies_rows_by_rows_and_by_columns) {
  check_products<64>();
  check_products<128>();
  check_products<192>();
  check_products<256>();
}

template <Fault fault>
void expect_product_error(const char* part) {
  ProductRig rig(64);
  expect_error<multiply_rows<64, fault>>(groups(1, 2 * 128 * 64), rig.args(), part);
}

TEST(a_product_of_what_no_fence_has_shown_to_it_is_caught) {
  expect_product_error<no_fence>("wrote with no fence to the asynchronous proxy");
}

TEST(a_product_that_nothing_began_is_caught) { expect_product_error<no_begin>("no begin_products"); }

TEST(a_product_that_a_warp_does_not_join_is_caught) {
  expect_product_error<alone>("warp 3 did not come to every product");
}

TEST(a_product_that_nobody_waits_for_is_caught) { expect_product_error<not_waited>("products in flight"); }

TEST(a_sum_that_changes_while_a_product_writes_it_is_caught) {
  expect_product_error<early_change>("was changed while a product wrote it");
}

TEST(a_write_over_what_a_product_reads_is_caught) {
  expect_product_error<early_write>("which a product in flight may read");
}

TEST(a_sum_read_before_its_product_is_over_is_no_number) {
  ProductRig rig(64);
  CHECK_THROWS(std::logic_error, "products in flight",
               launch<multiply_rows<64, early_read>>(nullptr, groups(1, 2 * 128 * 64), rig.args()));
  for (const float x : rig.out) CHECK(std::isnan(x));
}

TEST(an_operand_that_changes_while_a_product_reads_it_is_caught) {
  ProductRig rig(64);
  expect_error<multiply_columns<64, changed_operand>>(groups(1, 2 * 64 * 64), rig.args(), "an operand of lane");
}

// ---- barriers and copies by tensor map -------------------------------------------------------------------------

struct Boxes {
  TensorMap map;
  Bf16* out;  // [n_boxes, 64 rows, 64]
  int n_boxes;
};

enum RingFault { right, unexpected_bytes, no_wait_for_empty, no_wait_for_full, one_arrival_too_many, unpublished };

// A warpgroup fills a ring of two stages from pages, another reads what it brings.
template <RingFault fault>
GPU_KERNEL walk_ring(GPU_ARGUMENT Boxes args) {
  using Ring = TileRing<2>;
  constexpr int kElements = 64 * 64;
  const Barriers barriers = shared_barriers(0, 4);  // full, full, empty, empty
  const auto stages = shared_array<Bf16>(kPatternBytes, 2 * kElements);
  if (thread_index() == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      barriers.init(stage, 1);
      barriers.init(2 + stage, kWarpgroupSize / kWarpSize);
    }
    if (fault != unpublished) publish_barriers();
  }
  sync_block();
  if (warpgroup_index() == 0) {
    if (thread_index() != 0) return;
    for (int n = 0; n < args.n_boxes; ++n) {
      const int stage = Ring::stage(n);
      if (fault != no_wait_for_empty) barriers.wait(2 + stage, Ring::empty_parity(n));
      barriers.arrive_expecting(stage, fault == unexpected_bytes ? kBoxBytes / 2 : kBoxBytes);
      load_box(stages, stage * kElements, args.map, box_of(true, 0, 1, 0, n), barriers, stage);
      if (fault == one_arrival_too_many) barriers.arrive(stage);
    }
    return;
  }
  for (int n = 0; n < args.n_boxes; ++n) {
    const int stage = Ring::stage(n), thread = thread_index() % kWarpgroupSize;
    if (fault != no_wait_for_full) barriers.wait(stage, Ring::full_parity(n));
    for (int i = thread; i < kElements / 8; i += kWarpgroupSize) {
      const int from = stage * kElements + matrix_chunk(64, i / 8, i % 8) / 2;
      store_vec(args.out + n * kElements + i * 8, stages.load_vec<8>(from));
    }
    sync_warp();
    if (lane() == 0) barriers.arrive(2 + stage);
  }
}

struct BoxRig {
  // Pages [5, 64 slots, 2 heads, 40 channels]: a box has 24 channels that are not there.
  BoxRig() : pages(5 * 64 * 2 * 40), out(5 * 64 * 64, Bf16{0x7fff}) {
    for (std::size_t i = 0; i < pages.size(); ++i) pages[i].bits = static_cast<std::uint16_t>(i);
    PagedTensor pool{pages.data(), 64 * 2 * 40, 2 * 40, 40, 5};
    args = {make_tensor_map(boxes_of(pool, 2, 40, 64)), out.data(), 5};
  }
  std::vector<Bf16> pages, out;
  Boxes args;
};

constexpr int kRingBytes = kPatternBytes + 2 * kBoxBytes;

TEST(boxes_come_through_a_ring_with_zeros_where_the_tensor_ends) {
  BoxRig rig;
  in_every_order<walk_ring<right>>(groups(2, kRingBytes), rig.args, [&] {
    for (std::size_t page = 0; page < 5; ++page) {
      for (std::size_t slot = 0; slot < 64; ++slot) {
        for (std::size_t channel = 0; channel < 64; ++channel) {
          Bf16& got = rig.out[(page * 64 + slot) * 64 + channel];
          CHECK_EQ(got.bits, channel < 40 ? rig.pages[((page * 64 + slot) * 2 + 1) * 40 + channel].bits : 0);
          got.bits = 0x7fff;
        }
      }
    }
  });
}

TEST(a_stage_filled_before_it_is_empty_is_caught) {
  BoxRig rig;
  for (const Order& order : kOrders) {
    set_host_order(order);
    CHECK_THROWS(std::logic_error, "", launch<walk_ring<no_wait_for_empty>>(nullptr, groups(2, kRingBytes), rig.args));
  }
  set_host_order({});
}

TEST(a_stage_read_before_it_is_full_is_caught) {
  BoxRig rig;
  for (const Order& order : kOrders) {
    set_host_order(order);
    CHECK_THROWS(std::logic_error, "reads shared byte",
                 launch<walk_ring<no_wait_for_full>>(nullptr, groups(2, kRingBytes), rig.args));
  }
  set_host_order({});
}

TEST(bytes_that_nobody_expected_stop_the_ring) {
  BoxRig rig;
  expect_error<walk_ring<unexpected_bytes>>(groups(2, kRingBytes), rig.args, "waits for ever");
}

TEST(an_arrival_too_many_is_caught) {
  BoxRig rig;
  expect_error<walk_ring<one_arrival_too_many>>(groups(2, kRingBytes), rig.args, "once more than it waits for");
}

TEST(barriers_that_were_not_published_are_caught) {
  BoxRig rig;
  expect_error<walk_ring<unpublished>>(groups(2, kRingBytes), rig.args, "has not shown to it");
}

// Copies of single threads, handed over by a barrier that is an object.
struct Copies {
  const std::uint32_t* in;
  std::uint32_t* out;
};

template <bool waits>
GPU_KERNEL hand_over(const Copies args) {
  const Barriers barriers = shared_barriers(0, 1);
  const auto words = shared_array<std::uint32_t>(64, kWarpgroupSize);
  if (thread_index() == 0) {
    barriers.init(0, kWarpgroupSize);
    publish_barriers();
  }
  sync_block();
  const int i = thread_index() % kWarpgroupSize;
  if (warpgroup_index() == 0) {
    copy_async<4>(words, i, args.in + i, true);
    commit_copies();
    if (waits) wait_copies<0>();
    barriers.arrive(0);
    wait_copies<0>();
  } else {
    barriers.wait(0, 0);
    args.out[i] = words.load((i + 1) % kWarpgroupSize);
  }
}

TEST(a_barrier_object_orders_who_arrived_before_who_waited) {
  std::vector<std::uint32_t> in(128), out(128);
  for (std::size_t i = 0; i < 128; ++i) in[i] = static_cast<std::uint32_t>(i * i);
  in_every_order<hand_over<true>>(groups(2, 1024), Copies{in.data(), out.data()}, [&] {
    for (std::size_t i = 0; i < 128; ++i) CHECK_EQ(out[i], in[(i + 1) % 128]);
  });
}

TEST(a_copy_that_had_not_landed_at_the_arrival_is_caught) {
  std::vector<std::uint32_t> in(128), out(128);
  expect_error<hand_over<false>>(groups(2, 1024), Copies{in.data(), out.data()}, "reads shared byte");
}

struct Nothing {};

template <int given, int taken>
GPU_KERNEL trade_registers(const Nothing) {
  if (warpgroup_index() == 0) {
    give_registers<given>();
  } else {
    take_registers<taken>();
  }
}

TEST(registers_are_taken_once_others_have_given_them) {
  in_every_order<trade_registers<40, 232>>(groups(3, 0), Nothing{}, [] {});
  expect_error<trade_registers<48, 232>>(groups(3, 0), Nothing{}, "wait for registers");  // more than at launch
  expect_error<trade_registers<56, 240>>(groups(3, 0), Nothing{}, "wait for registers");
  expect_error<trade_registers<40, 100>>(groups(3, 0), Nothing{}, "multiple of 8");
  expect_error<trade_registers<176, 176>>(groups(3, 0), Nothing{}, "gives up to 176 registers and has 168");
}

GPU_KERNEL leave_a_warp_out(const Nothing) {
  if (warp_index() != 1) sync_warpgroup();
}

TEST(a_barrier_of_a_warpgroup_that_some_do_not_join_is_caught) {
  expect_error<leave_a_warp_out>(groups(1, 0), Nothing{}, "barrier of their warpgroup");
}

}  // namespace
