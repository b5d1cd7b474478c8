// machine.h on a host: plain C++, each word through the HostBlock that the thread belongs to.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "elements.h"
#include "host_block.h"
#include "host_stream.h"
#include "llm_decoder/errors.h"
#include "machine_types.h"

#define GPU_KERNEL inline void
#define GPU_FUNCTION inline
#define GPU_UNROLL

namespace llm_decoder {
namespace gpu {

using Stream = HostStream*;
struct HostEvent;  // of stream_mark.h
using Event = HostEvent*;

template <auto kernel, class Args>
void launch(Stream stream, const LaunchShape& shape, const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args>, "a kernel's arguments are copied to the device as bytes");
  queue(stream, [shape, args] {
    run_grid(shape, host_order(), [](const void* argument) { kernel(*static_cast<const Args*>(argument)); }, &args);
  });
}

inline int thread_index() { return HostBlock::current().thread(); }
inline int n_threads() { return HostBlock::current().n_threads(); }
inline int lane() { return thread_index() % kWarpSize; }
inline int warp_index() { return thread_index() / kWarpSize; }
inline Dim3 block_index() { return HostBlock::current().index(); }
inline Dim3 grid_size() { return HostBlock::current().grid(); }

inline void sync_block() { HostBlock::current().sync_block(false); }
inline bool sync_block_or(bool value) { return HostBlock::current().sync_block(value); }
inline void sync_warp() { HostBlock::current().sync_warp(); }

namespace host {

// Calls combine(slots) once all lanes have brought their slot of type Slot. `Name` tells collectives apart.
template <class Slot, void (*combine)(Slot* const* slots)>
void gather(const char* name, Slot& slot) {
  static const Collective kCollective{name, [](void* const* slots) { combine(reinterpret_cast<Slot* const*>(slots)); }};
  HostBlock::current().collective(kCollective, &slot);
}

template <class T>
struct Exchange {
  T value;
  int from;
  T result;
};

template <class T>
void exchange(Exchange<T>* const* slots) {
  for (int i = 0; i < kWarpSize; ++i) slots[i]->result = slots[slots[i]->from]->value;
}

struct Vote {
  bool value;
  std::uint32_t result;
};

struct Number {
  std::uint32_t value, result;
};

inline void maximum(Number* const* slots) {
  std::uint32_t result = 0;
  for (int i = 0; i < kWarpSize; ++i) result = slots[i]->value > result ? slots[i]->value : result;
  for (int i = 0; i < kWarpSize; ++i) slots[i]->result = result;
}

inline void sum(Number* const* slots) {
  std::uint32_t result = 0;
  for (int i = 0; i < kWarpSize; ++i) result += slots[i]->value;
  for (int i = 0; i < kWarpSize; ++i) slots[i]->result = result;
}

inline void vote(Vote* const* slots) {
  std::uint32_t result = 0;
  for (int i = 0; i < kWarpSize; ++i) result |= std::uint32_t{slots[i]->value} << i;
  for (int i = 0; i < kWarpSize; ++i) slots[i]->result = result;
}

}  // namespace host

template <class T>
T shuffle(T value, int from) {
  if (from < 0 || from >= kWarpSize) HostBlock::current().fail("shuffle from lane ", from);
  host::Exchange<T> slot{value, from, value};
  host::gather<host::Exchange<T>, host::exchange<T>>("shuffle", slot);
  return slot.result;
}

template <class T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, lane() ^ mask);
}

inline std::uint32_t ballot(bool value) {
  host::Vote slot{value, 0};
  host::gather<host::Vote, host::vote>("ballot", slot);
  return slot.result;
}

inline bool any(bool value) { return ballot(value) != 0; }

inline std::uint32_t reduce_max(std::uint32_t value) {
  host::Number slot{value, 0};
  host::gather<host::Number, host::maximum>("reduce_max", slot);
  return slot.result;
}

inline std::uint32_t reduce_add(std::uint32_t value) {
  host::Number slot{value, 0};
  host::gather<host::Number, host::sum>("reduce_add", slot);
  return slot.result;
}

// n elements of the block's shared memory.
template <class T>
class Shared {
 public:
  Shared() = default;
  Shared(int byte_offset, int n) : byte_offset_(byte_offset), n_(n) {}

  T load(int i) const { return load_vec<1>(i).values[0]; }
  void store(int i, T value) const { store_vec(i, Vec<T, 1>{value}); }

  template <int n>
  Vec<T, n> load_vec(int i) const {
    Vec<T, n> out;
    HostBlock::current().read_shared(at(i, n), sizeof(out), &out);
    return out;
  }
  template <int n>
  void store_vec(int i, const Vec<T, n>& value) const {
    HostBlock::current().write_shared(at(i, n), sizeof(value), &value);
  }

  T atomic_add(int i, T value) const {
    return change(i, [value](T old) { return static_cast<T>(old + value); });
  }
  T atomic_or(int i, T value) const {
    return change(i, [value](T old) { return static_cast<T>(old | value); });
  }

  Shared part(int begin, int n) const { return {at(begin, n), n}; }
  int size() const { return n_; }
  // Where elements i, i + 1, ... i + n - 1 lie.
  int at(int i, int n) const {
    if (i < 0 || n < 0 || i + n > n_) HostBlock::current().fail("element ", i, " + ", n, " of a shared array of ", n_);
    return byte_offset_ + i * static_cast<int>(sizeof(T));
  }

 private:
  template <class Fn>
  T change(int i, const Fn& fn) const {
    std::byte* memory = HostBlock::current().atomic_shared(at(i, 1), sizeof(T));
    T old;
    std::memcpy(&old, memory, sizeof(T));
    const T changed = fn(old);
    std::memcpy(memory, &changed, sizeof(T));
    return old;
  }

  int byte_offset_ = 0, n_ = 0;
};

template <class T>
Shared<T> shared_array(int byte_offset, int n) {
  const HostBlock& block = HostBlock::current();
  if (byte_offset % kSharedAlign != 0) block.fail("a shared array at ", byte_offset, ", not aligned to ", kSharedAlign);
  if (byte_offset + n * static_cast<int>(sizeof(T)) > block.shared_bytes()) {
    block.fail("a shared array of ", n, " x ", sizeof(T), " bytes at ", byte_offset, ", the block has ",
               block.shared_bytes());
  }
  return {byte_offset, n};
}

template <int n_bytes, class T>
void copy_async(const Shared<T>& to, int i, const T* from, bool is_valid) {
  static_assert(n_bytes == 4 || n_bytes == 8 || n_bytes == 16, "what the device copies");
  HostBlock::current().copy_async(to.at(i, n_bytes / static_cast<int>(sizeof(T))), n_bytes, from, is_valid);
}
inline void commit_copies() { HostBlock::current().commit_copies(); }
template <int n>
void wait_copies() {
  HostBlock::current().wait_copies(n);
}

namespace host {

struct MatrixRow {
  std::uint16_t row[8];  // what this lane's address names
  std::uint32_t result[4];
};

inline std::uint32_t join(std::uint16_t low, std::uint16_t high) { return low | std::uint32_t{high} << 16; }

inline void distribute_rows(MatrixRow* const* slots) {
  for (int i = 0; i < kWarpSize; ++i) {
    for (int j = 0; j < 4; ++j) {
      const std::uint16_t* row = slots[8 * j + i / 4]->row;
      slots[i]->result[j] = join(row[2 * (i % 4)], row[2 * (i % 4) + 1]);
    }
  }
}

inline void distribute_columns(MatrixRow* const* slots) {
  for (int i = 0; i < kWarpSize; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int row = 8 * j + 2 * (i % 4);
      slots[i]->result[j] = join(slots[row]->row[i / 4], slots[row + 1]->row[i / 4]);
    }
  }
}

template <class T, void (*distribute)(MatrixRow* const*)>
void load_matrices(const char* name, std::uint32_t (&r)[4], const Shared<T>& from, int i) {
  static_assert(sizeof(T) <= 2, "rows are 16 bytes");
  MatrixRow slot;
  HostBlock::current().read_shared(from.at(i, 16 / static_cast<int>(sizeof(T))), 16, slot.row);
  gather<MatrixRow, distribute>(name, slot);
  std::memcpy(r, slot.result, sizeof(r));
}

// A fragment's operand of a product and its sums.
template <class Sum>
struct Fragments {
  Sum* d;
  const std::uint32_t *a, *b;
};

// D[16, 8] += A[16, k] B[k, 8], with element(bits, i) the i-th element in 32 bits, `per_word` of them. The maps are
// those of the PTX manual: of lane l with g = l / 4 and t = l % 4, word w of A holds row g + 8 (w % 2) and the elements
// from per_word (t + 4 (w / 2)) on; word w of B holds column g and the elements from per_word (t + 4 w) on; sums 2 h
// and 2 h + 1 are row g + 8 h, columns 2 t and 2 t + 1.
template <class Sum, class Wide, int per_word, Wide (*element)(std::uint32_t, int)>
void multiply_fragments(Fragments<Sum>* const* slots) {
  constexpr int k = 8 * per_word;
  Wide a[16][k], b[k][8];
  for (int l = 0; l < kWarpSize; ++l) {
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < per_word; ++i) {
      for (int w = 0; w < 4; ++w) a[g + 8 * (w % 2)][per_word * (t + 4 * (w / 2)) + i] = element(slots[l]->a[w], i);
      for (int w = 0; w < 2; ++w) b[per_word * (t + 4 * w) + i][g] = element(slots[l]->b[w], i);
    }
  }
  for (int l = 0; l < kWarpSize; ++l) {
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
      Wide sum = 0;
      for (int j = 0; j < k; ++j) sum += a[row][j] * b[j][column];
      slots[l]->d[i] = static_cast<Sum>(slots[l]->d[i] + sum);
    }
  }
}

template <class T>
double half_element(std::uint32_t bits, int i) {
  return static_cast<double>(to_float(T{static_cast<std::uint16_t>(bits >> (16 * i))}));
}

inline std::int32_t byte_element(std::uint32_t bits, int i) { return static_cast<std::int8_t>(bits >> (8 * i)); }

}  // namespace host

template <class T>
void load_matrices(std::uint32_t (&r)[4], const Shared<T>& from, int i) {
  host::load_matrices<T, host::distribute_rows>("load_matrices", r, from, i);
}

template <class T>
void load_matrices_transposed(std::uint32_t (&r)[4], const Shared<T>& from, int i) {
  host::load_matrices<T, host::distribute_columns>("load_matrices_transposed", r, from, i);
}

template <class T>
void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, Bf16> || std::is_same_v<T, Fp16>, "Bf16 or Fp16");
  host::Fragments<float> slot{d, a, b};
  host::gather<host::Fragments<float>, host::multiply_fragments<float, double, 2, host::half_element<T>>>("mma_16x8x16",
                                                                                                          slot);
}

inline void mma_16x8x32(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  host::Fragments<std::int32_t> slot{d, a, b};
  host::gather<host::Fragments<std::int32_t>,
               host::multiply_fragments<std::int32_t, std::int32_t, 4, host::byte_element>>("mma_16x8x32", slot);
}

template <class T>
std::uint32_t pack(float low, float high) {
  return host::join(from_float<T>(low).bits, from_float<T>(high).bits);
}

template <class T>
Vec<float, 2> unpack(std::uint32_t word) {
  return {to_float(T{static_cast<std::uint16_t>(word)}), to_float(T{static_cast<std::uint16_t>(word >> 16)})};
}

namespace host {

// The sum of a product and c rounded once: to odd in double, then in float, which leaves all that the last rounding
// needs to know.
template <class T>
float fma_once(T a, T b, T c) {
  constexpr double kInfinity = __builtin_huge_val();
  const double product = double{to_float(a)} * to_float(b), addend = to_float(c);  // exact
  double sum = product + addend;
  const double added = sum - product, error = (product - (sum - added)) + (addend - added);
  if (!std::isfinite(sum)) return static_cast<float>(sum);
  std::uint64_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  if (error != 0.0 && bits % 2 == 0) sum = std::nextafter(sum, error > 0 ? kInfinity : -kInfinity);
  const float rounded = static_cast<float>(sum);
  if (rounded == sum || float_bits(rounded) % 2 == 1) return rounded;
  return std::nextafter(rounded, sum > rounded ? __builtin_huge_valf() : -__builtin_huge_valf());
}

}  // namespace host

template <class T>
std::uint32_t fma_pairs(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  const auto half = [&](int shift) {
    const auto of = [shift](std::uint32_t word) { return T{static_cast<std::uint16_t>(word >> shift)}; };
    return host::fma_once<T>(of(a), of(b), of(c));
  };
  return pack<T>(half(0), half(16));
}

inline std::uint32_t permute_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  const std::uint64_t bytes = low | std::uint64_t{high} << 32;
  std::uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t from = selector >> (4 * i) & 15u;
    if (from > 7) HostBlock::current().fail("permute_bytes takes byte ", from, " of 8");
    out |= static_cast<std::uint32_t>(bytes >> (8 * from) & 0xffu) << (8 * i);
  }
  return out;
}

constexpr bool kConvertsFp8 = true;
template <class T>
std::uint32_t convert_fp8(std::uint32_t word) {
  return pack<T>(to_float(Fp8{static_cast<std::uint8_t>(word)}), to_float(Fp8{static_cast<std::uint8_t>(word >> 8)}));
}

namespace host {

template <class V>
void check_aligned(const void* pointer) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % alignof(V) != 0) {
    HostBlock::current().fail("global memory not aligned to ", alignof(V), " bytes");
  }
}

}  // namespace host

template <int n, class T>
Vec<T, n> load_vec(const T* from) {
  host::check_aligned<Vec<T, n>>(from);
  Vec<T, n> out;
  std::memcpy(&out, from, sizeof(out));
  return out;
}

template <int n, class T>
Vec<T, n> load_once(const T* from) {
  static_assert(sizeof(Vec<T, n>) == 16, "16 bytes");
  return load_vec<n>(from);
}

template <class T, int n>
void store_vec(T* to, const Vec<T, n>& value) {
  host::check_aligned<Vec<T, n>>(to);
  std::memcpy(to, &value, sizeof(value));
}

template <class T>
T load_coherent(const T* from) {
  return *from;
}

template <class T>
T atomic_add(T* to, T value) {
  const T old = *to;
  *to = old + value;
  return old;
}

inline void fence() {}

inline float exp2(float x) { return std::exp2(x); }
inline float log2(float x) { return std::log2(x); }
inline double log(double x) { return std::log(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float rsqrt(float x) { return 1.0f / std::sqrt(x); }
inline float tanh(float x) { return std::tanh(x); }
inline float erf(float x) { return std::erf(x); }
inline int round_to_int(float x) { return x == x ? static_cast<int>(std::nearbyint(x)) : 0; }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }

}  // namespace gpu
}  // namespace llm_decoder
