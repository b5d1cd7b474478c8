// machine_hopper.h on a host: what is asynchronous happens as late as it may, and whoever comes too early is an error.
#pragma once

#include "machine_host.h"
#include "tensor_boxes.h"

#define GPU_KERNEL_OF(n_threads) inline void
#define GPU_ARGUMENT const
#define GPU_UNROLL_BY(n)

namespace llm_decoder {
namespace gpu {

constexpr bool kHasWarpgroups = true;

[[noreturn]] inline void trap() { HostBlock::current().fail("traps"); }

inline int warpgroup_index() { return thread_index() / kWarpgroupSize; }
inline void sync_warpgroup() { HostBlock::current().sync_warpgroup(); }

inline float larger(float a, float b) { return std::fmax(a, b); }

template <int n>
void take_registers() {
  HostBlock::current().change_registers(n, true);
}
template <int n>
void give_registers() {
  HostBlock::current().change_registers(n, false);
}

class Barriers {
 public:
  explicit Barriers(const Shared<std::uint64_t>& memory) : memory_(memory) {}

  void init(int i, int n_arrivals) const { HostBlock::current().init_barrier(at(i), n_arrivals); }
  void arrive(int i) const { HostBlock::current().arrive(at(i), 0); }
  void arrive_expecting(int i, int n_bytes) const { HostBlock::current().arrive(at(i), n_bytes); }
  void wait(int i, int parity) const { HostBlock::current().wait_barrier(at(i), parity); }
  int at(int i) const { return memory_.at(i, 1); }

 private:
  Shared<std::uint64_t> memory_;
};

inline Barriers shared_barriers(int byte_offset, int n) {
  return Barriers(shared_array<std::uint64_t>(byte_offset, n));
}
inline void publish_barriers() { HostBlock::current().publish_barriers(); }
inline void fence_async() { HostBlock::current().fence_async(); }

using TensorMap = TensorBoxes;
inline TensorMap make_tensor_map(const TensorBoxes& boxes) { return boxes; }

template <class T>
void load_box(const Shared<T>& to, int i, const TensorMap& map, const BoxPlace& place, const Barriers& barriers,
              int barrier) {
  const int n_rows = map.box[1] * map.box[2] * map.box[3];
  HostBlock::current().load_box(to.at(i, n_rows * kBlockColumns), map, place, barriers.at(barrier));
}

template <class T>
std::uint32_t matrix_address(const Shared<T>& shared, int i) {
  return static_cast<std::uint32_t>(shared.at(i, 1));
}

namespace host {

struct Nothing {};

template <void (HostBlock::*call)()>
void call_block(Nothing* const*) {
  (HostBlock::current().*call)();
}

template <int n>
void wait_products(Nothing* const*) {
  HostBlock::current().wait_products(n);
}

struct ProductSlot {
  float* sums;
  const std::uint32_t* operand;
  std::uint64_t a, b;
  bool adds;
};

template <class T>
float half_bits(std::uint16_t bits) {
  return to_float(T{bits});
}

template <class T, int n>
void issue_product(ProductSlot* const* slots) {
  WarpProduct product;
  product.a = slots[0]->a;
  product.b = slots[0]->b;
  product.n = n;
  product.adds = slots[0]->adds;
  product.element = half_bits<T>;
  for (int l = 0; l < kWarpSize; ++l) {
    if (slots[l]->a != product.a || slots[l]->b != product.b || slots[l]->adds != product.adds) {
      HostBlock::current().fail("lane ", l, " multiplies other matrices than the lanes beside it");
    }
    product.sums[l] = slots[l]->sums;
    product.operands[l] = slots[l]->operand;
  }
  HostBlock::current().issue_product(product);
}

}  // namespace host

inline void begin_products() {
  host::Nothing slot;
  host::gather<host::Nothing, host::call_block<&HostBlock::begin_products>>("begin_products", slot);
}
inline void commit_products() {
  host::Nothing slot;
  host::gather<host::Nothing, host::call_block<&HostBlock::commit_products>>("commit_products", slot);
}
template <int n>
void wait_products() {
  host::Nothing slot;
  host::gather<host::Nothing, host::wait_products<n>>("wait_products", slot);
}
template <int n>
void hold(float (&)[n]) {}
inline void settle(float x) {
  if (x < 0.0f) HostBlock::current().fail("settles ", x, ", which must not be negative");
  sync_warp();
}

template <class T, int n>
void multiply_shared(float (&d)[n / 2], std::uint64_t a_matrix, std::uint64_t b_matrix, bool adds_to_d) {
  static_assert(std::is_same_v<T, Bf16> || std::is_same_v<T, Fp16>, "Bf16 or Fp16");
  static_assert(n % 64 == 0 && n <= 256, "columns of the products that are compiled");
  host::ProductSlot slot{d, nullptr, a_matrix, b_matrix, adds_to_d};
  host::gather<host::ProductSlot, host::issue_product<T, n>>("multiply_shared", slot);
}

template <class T, int n>
void multiply_registers(float (&d)[n / 2], const std::uint32_t (&a)[4], std::uint64_t b_matrix, bool adds_to_d) {
  static_assert(std::is_same_v<T, Bf16> || std::is_same_v<T, Fp16>, "Bf16 or Fp16");
  static_assert(n % 64 == 0 && n <= 256, "columns of the products that are compiled");
  host::ProductSlot slot{d, a, 0, b_matrix, adds_to_d};
  host::gather<host::ProductSlot, host::issue_product<T, n>>("multiply_registers", slot);
}

}  // namespace gpu
}  // namespace llm_decoder
