// Keys and values appended to pages, with and without all that happens on the way, against the formula in double: every
// dtype, scale and angle, slots in any order, NaN wherever nothing may look, and not a byte changed that is not named.
#include "append_kv_launch.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "device_memory.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

template <class T>
Dtype dtype_of() {
  if constexpr (std::is_same_v<T, float>) return Dtype::f32;
  if constexpr (std::is_same_v<T, Bf16>) return Dtype::bf16;
  if constexpr (std::is_same_v<T, Fp16>) return Dtype::f16;
  if constexpr (std::is_same_v<T, Fp8>) return Dtype::fp8;
  return Dtype::s8;
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  int n_tokens = 5, n_heads = 3, n_kv_heads = 2, head_dim = 64, page_size = 16;
  enum Scale { one, per_head, per_slot } scale = one;
  float one_scale = 1.0f;
  bool has_norm = false;
  int half = 0;
  bool is_interleaved = false;
  bool is_packed = true;  // q, key and value in one row of a token; else arrays with gaps
};

template <class T>
bool same_bytes(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class T>
DeviceArray<T> filled(std::int64_t n, T value) {
  DeviceArray<T> array(n);
  std::fill_n(array.data(), n, value);
  return array;
}

template <class T>
std::vector<T> copy_of(const DeviceArray<T>& array) {
  return {array.data(), array.data() + array.size()};
}

// That every byte of `array` is as in `want`.
template <class T>
void check_same(const DeviceArray<T>& array, const std::vector<T>& want, const std::string& name) {
  CHECK_EQ(static_cast<std::size_t>(array.size()), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!same_bytes(array.data()[i], want[i])) {
      check::fail(__FILE__, __LINE__, name, ": element ", i, " of its memory was changed");
    }
  }
}

template <class T>
T poison() {
  if constexpr (std::is_same_v<T, float>) return kNan;
  if constexpr (sizeof(T) == 2) return T{0x7fff};
  if constexpr (std::is_same_v<T, Fp8>) return T{0x7f};
  if constexpr (std::is_same_v<T, Int8>) return T{-128};
}

// What rounding to T may change of x.
template <class T>
double rounding(double x) {
  if constexpr (std::is_same_v<T, float>) return std::ldexp(std::abs(x), -24);
  if constexpr (std::is_same_v<T, Bf16>) return std::ldexp(std::abs(x), -8);
  if constexpr (std::is_same_v<T, Fp16>) return std::max(std::ldexp(std::abs(x), -11), std::ldexp(1.0, -25));
  if constexpr (std::is_same_v<T, Fp8>) return std::max(std::ldexp(std::abs(x), -4), std::ldexp(1.0, -10));
  return 0.5;
}

enum Kind { query, key, value };

template <class T, class Page>
struct Problem {
  explicit Problem(const Case& c_) : c(c_) {
    make_rows();
    make_pages();
    for (const DeviceArray<float>* norm : {&q_norm, &k_norm}) {
      for (int i = 0; i < c.head_dim; ++i) norm->data()[i] = 1.0f + 0.3f * normal(random);
    }
    for (std::int64_t i = 0; i < cos.size(); ++i) {
      const float angle = 3.0f * normal(random);
      cos.data()[i] = std::cos(angle);
      sin.data()[i] = std::sin(angle);
    }
  }

  const Case c;
  std::mt19937_64 random{7};
  std::normal_distribution<float> normal;
  DeviceArray<T> rows[3];  // of queries, keys and values; packed: all in the first
  std::vector<T> rows_before[3];
  std::int64_t token_stride[3], head_stride[3], begin[3];
  DeviceArray<Page> pages[2];  // of K and V
  std::vector<Page> pages_before[2];
  DeviceArray<float> slot_scale[2], head_scale[2];
  std::vector<float> slot_scale_before[2];
  std::vector<std::int64_t> slots;
  std::int64_t page_stride = 0, slot_stride = 0, page_head_stride = 0;
  DeviceArray<float> q_norm{c.head_dim}, k_norm{c.head_dim};
  DeviceArray<float> cos{c.n_tokens * c.half}, sin{c.n_tokens * c.half};

  int heads_of(int kind) const { return kind == query ? c.n_heads : c.n_kv_heads; }
  int array_of(int kind) const { return c.is_packed ? 0 : kind; }
  std::int64_t row_at(int kind, int token, int head) const {
    return begin[kind] + token * token_stride[kind] + head * head_stride[kind];
  }
  T* row(int kind, int token, int head) const { return rows[array_of(kind)].data() + row_at(kind, token, head); }
  std::int64_t page_row_at(std::int64_t slot, int head) const {
    return slot / c.page_size * page_stride + slot % c.page_size * slot_stride + head * page_head_stride;
  }
  Page* page_row(int kind, int token, int head) const {
    return pages[kind - key].data() + page_row_at(slots[static_cast<std::size_t>(token)], head);
  }

  void make_rows() {
    std::int64_t next = 0;
    for (const int kind : {query, key, value}) {
      head_stride[kind] = c.head_dim + (c.is_packed ? 0 : 8);
      begin[kind] = c.is_packed ? next : 0;
      next += heads_of(kind) * head_stride[kind];
      token_stride[kind] = heads_of(kind) * head_stride[kind] + 16;
    }
    for (const int kind : {query, key, value}) {
      if (c.is_packed) token_stride[kind] = next;
      if (!c.is_packed || kind == query) rows[kind] = filled(c.n_tokens * token_stride[kind], poison<T>());
    }
    for (const int kind : {query, key, value}) {
      for (int token = 0; token < c.n_tokens; ++token) {
        for (int head = 0; head < heads_of(kind); ++head) {
          const bool is_zero = kind != query && token == 1 && head == 0;
          for (int d = 0; d < c.head_dim; ++d) {
            row(kind, token, head)[d] = from_float<T>(is_zero ? 0.0f : normal(random));
          }
        }
      }
    }
    for (const int kind : {query, key, value}) rows_before[kind] = copy_of(rows[kind]);
  }

  // More slots than tokens, gaps after each head, slot and page; the third token is not appended.
  void make_pages() {
    page_head_stride = c.head_dim + 8;
    slot_stride = c.n_kv_heads * page_head_stride + 16;
    page_stride = c.page_size * slot_stride + 8;
    const int n_pages = c.n_tokens / c.page_size + 3, n_slots = n_pages * c.page_size;
    std::vector<std::int64_t> free(static_cast<std::size_t>(n_slots));
    std::iota(free.begin(), free.end(), std::int64_t{0});
    std::shuffle(free.begin(), free.end(), random);
    slots.assign(free.begin(), free.begin() + c.n_tokens);
    if (c.n_tokens > 2) slots[2] = -1;
    for (const int i : {0, 1}) {
      pages[i] = filled(n_pages * page_stride, poison<Page>());
      pages_before[i] = copy_of(pages[i]);
      slot_scale[i] = filled(std::int64_t{n_slots} * c.n_kv_heads, kNan);
      slot_scale_before[i] = copy_of(slot_scale[i]);
      head_scale[i] = DeviceArray<float>(c.n_kv_heads);
      for (int head = 0; head < c.n_kv_heads; ++head) {
        head_scale[i].data()[head] = 0.06f + 0.01f * static_cast<float>(head + i);
      }
    }
  }

  AppendKvLaunch launch() const {
    AppendKvLaunch l;
    l.dtype = dtype_of<T>();
    l.page_dtype = dtype_of<Page>();
    AppendKvArgs& a = l.args;
    if (c.n_heads > 0) a.q = row(query, 0, 0);
    a.q_token_stride = token_stride[query];
    a.q_head_stride = head_stride[query];
    a.key = row(key, 0, 0);
    a.key_token_stride = token_stride[key];
    a.key_head_stride = head_stride[key];
    a.value = row(value, 0, 0);
    a.value_token_stride = token_stride[value];
    a.value_head_stride = head_stride[value];
    a.slot_mapping = slots.data();
    a.k_pages = target(0);
    a.v_pages = target(1);
    a.n_tokens = c.n_tokens;
    a.n_heads = c.n_heads;
    a.n_kv_heads = c.n_kv_heads;
    a.head_dim = c.head_dim;
    a.page_size = c.page_size;
    if (c.has_norm) a.q_norm = q_norm.data(), a.k_norm = k_norm.data();
    a.norm_eps = 1e-5f;
    a.half = c.half;
    a.cos = cos.data();
    a.sin = sin.data();
    a.is_interleaved = c.is_interleaved;
    return l;
  }

  AppendTarget target(int i) const {
    AppendTarget to;
    to.data = pages[i].data();
    to.page_stride = page_stride;
    to.slot_stride = slot_stride;
    to.head_stride = page_head_stride;
    to.scale = c.one_scale;
    if (c.scale == Case::per_head) to.per_head = head_scale[i].data();
    if (c.scale == Case::per_slot) to.per_slot = slot_scale[i].data();
    return to;
  }

  // The formula: one head of one token, in double.
  std::vector<double> expect(int kind, int token, int head) const {
    std::vector<double> x;
    for (int d = 0; d < c.head_dim; ++d) {
      x.push_back(to_float(rows_before[array_of(kind)][static_cast<std::size_t>(row_at(kind, token, head) + d)]));
    }
    if (kind == value) return x;
    if (c.has_norm) {
      double squares = 0;
      for (const double v : x) squares += v * v;
      const float* weight = (kind == query ? q_norm : k_norm).data();
      for (double& v : x) v *= *weight++ / std::sqrt(squares / c.head_dim + 1e-5);
    }
    for (int i = 0; i < c.half; ++i) {
      double& first = x[static_cast<std::size_t>(c.is_interleaved ? 2 * i : i)];
      double& second = x[static_cast<std::size_t>(c.is_interleaved ? 2 * i + 1 : i + c.half)];
      const double a = first, b = second, angle_cos = cos.data()[token * c.half + i],
                   angle_sin = sin.data()[token * c.half + i];
      first = a * angle_cos - b * angle_sin;
      second = b * angle_cos + a * angle_sin;
    }
    return x;
  }

  void check(const std::string& name) const {
    check_rows(name);
    for (const int kind : {key, value}) check_pages(kind, name);
  }

  // Queries are what the formula says; keys, values and what lies between are as they were.
  void check_rows(const std::string& name) const {
    std::vector<T> want[3] = {rows_before[0], rows_before[1], rows_before[2]};
    for (int token = 0; token < c.n_tokens; ++token) {
      for (int head = 0; head < c.n_heads; ++head) {
        const std::vector<double> x = expect(query, token, head);
        for (int d = 0; d < c.head_dim; ++d) {
          const T got = row(query, token, head)[d];
          want[query][static_cast<std::size_t>(row_at(query, token, head) + d)] = got;
          compare(to_float(got), x, d, rounding<T>(x[static_cast<std::size_t>(d)]),
                  concat(name, ": query of token ", token, ", head ", head));
        }
      }
    }
    for (const int kind : {query, key, value}) check_same(rows[kind], want[kind], name);
  }

  void check_pages(int kind, const std::string& name) const {
    const int i = kind - key;
    std::vector<Page> want_pages = pages_before[i];
    std::vector<float> want_scale = slot_scale_before[i];
    for (int token = 0; token < c.n_tokens; ++token) {
      const std::int64_t slot = slots[static_cast<std::size_t>(token)];
      for (int head = 0; slot >= 0 && head < c.n_kv_heads; ++head) {
        const std::string place =
            concat(name, ": ", kind == key ? "key" : "value", " of token ", token, ", head ", head);
        const std::vector<double> x = expect(kind, token, head);
        double scale = c.one_scale;
        if (c.scale == Case::per_head) scale = head_scale[i].data()[head];
        if (c.scale == Case::per_slot) {
          const std::int64_t at = slot * c.n_kv_heads + head;
          scale = want_scale[static_cast<std::size_t>(at)] = slot_scale[i].data()[at];
          check_scale(scale, x, place);
        }
        for (int d = 0; d < c.head_dim; ++d) {
          const Page got = page_row(kind, token, head)[d];
          want_pages[static_cast<std::size_t>(page_row_at(slot, head) + d)] = got;
          compare(to_float(got) * scale, x, d, rounding<Page>(x[static_cast<std::size_t>(d)] / scale) * scale, place);
        }
      }
    }
    check_same(pages[i], want_pages, name);
    check_same(slot_scale[i], want_scale, name);
  }

  static double largest_of(const std::vector<double>& x) {
    double largest = 0;
    for (const double v : x) largest = std::max(largest, std::abs(v));
    return largest;
  }

  static void check_scale(double scale, const std::vector<double>& x, const std::string& place) {
    const double largest = largest_of(x), want = largest == 0 ? 1.0 : largest / (std::is_same_v<Page, Fp8> ? 448 : 127);
    if (!(std::abs(scale - want) <= 1e-5 * want)) {
      check::fail(__FILE__, __LINE__, place, ": scale ", scale, ", want ", want);
    }
  }

  // Beyond rounding to memory there is that of floats, of the order of the row's largest.
  static void compare(double got, const std::vector<double>& x, int d, double rounded, const std::string& place) {
    const double want = x[static_cast<std::size_t>(d)];
    if (!(std::abs(got - want) <= 1.001 * rounded + 2e-6 * largest_of(x))) {
      check::fail(__FILE__, __LINE__, place, ", channel ", d, ": got ", got, ", want ", want);
    }
  }
};

template <class T, class Page>
void check_case(const Case& c, const std::string& name) {
  Problem<T, Page> problem(c);
  append_kv(problem.launch(), nullptr);
  problem.check(name);
}

template <class Page>
void check_activations(const Case& c, const std::string& name) {
  check_case<float, Page>(c, name + " of float32");
  check_case<Bf16, Page>(c, name + " of bfloat16");
  check_case<Fp16, Page>(c, name + " of float16");
}

TEST(keys_and_values_of_every_dtype_go_into_pages_of_every_dtype) {
  for (const bool is_packed : {false, true}) {
    Case c;
    c.n_heads = 0;
    c.is_packed = is_packed;
    check_activations<Bf16>(c, "bfloat16 pages");
    check_activations<Fp16>(c, "float16 pages");
    for (const auto scale : {Case::one, Case::per_head, Case::per_slot}) {
      c.scale = scale;
      c.one_scale = 0.07f;
      check_activations<Fp8>(c, concat("fp8 pages, scale ", scale));
      check_activations<Int8>(c, concat("int8 pages, scale ", scale));
    }
  }
}

TEST(pages_of_halves_may_have_scales_too) {
  Case c;
  c.one_scale = 0.3f;
  check_case<Bf16, Bf16>(c, "one scale");
  c.scale = Case::per_head;
  check_case<Bf16, Fp16>(c, "a scale a head");
}

TEST(what_is_not_changed_on_the_way_arrives_bit_for_bit) {
  const Problem<Bf16, Bf16> problem{Case{}};
  problem.row(key, 0, 0)[3] = Bf16{0x8000};  // minus zero
  append_kv(problem.launch(), nullptr);
  for (const int kind : {key, value}) {
    for (int head = 0; head < 2; ++head) {
      for (int d = 0; d < 64; ++d)
        CHECK_EQ(problem.page_row(kind, 0, head)[d].bits, problem.row(kind, 0, head)[d].bits);
    }
  }
}

TEST(heads_of_any_size_and_number) {
  struct Heads {
    int n, n_kv, dim;
  };
  for (const Heads& h : {Heads{1, 1, 8}, Heads{3, 3, 16}, Heads{5, 1, 40}, Heads{7, 1, 64}, Heads{8, 2, 72},
                         Heads{71, 1, 80}, Heads{4, 2, 128}, Heads{2, 1, 176}, Heads{4, 2, 256}}) {
    Case c;
    c.n_heads = h.n;
    c.n_kv_heads = h.n_kv;
    c.head_dim = h.dim;
    c.half = h.dim / 2;
    c.has_norm = true;
    c.scale = Case::per_slot;
    check_case<Bf16, Int8>(c, concat("heads ", h.n, "/", h.n_kv, " of ", h.dim));
    check_case<float, Fp8>(c, concat("float32 heads ", h.n, "/", h.n_kv, " of ", h.dim));
  }
}

TEST(pages_of_any_multiple_of_16_and_any_number_of_tokens) {
  for (const int page_size : {16, 48, 64, 256}) {
    for (const int n_tokens : {1, 3, 33, 127}) {
      Case c;
      c.page_size = page_size;
      c.n_tokens = n_tokens;
      c.half = 32;
      check_case<Fp16, Fp16>(c, concat(n_tokens, " tokens, pages of ", page_size));
    }
  }
}

TEST(queries_and_keys_are_normalised_and_rotated_in_every_combination) {
  for (const bool has_norm : {false, true}) {
    for (const bool is_interleaved : {false, true}) {
      // All of 64 channels, a part, one that no vector divides, a single pair, none.
      for (const int half : {32, 16, 8, 20, 10, 1, 0}) {
        Case c;
        c.has_norm = has_norm;
        c.is_interleaved = is_interleaved;
        c.half = half;
        const std::string name =
            concat(has_norm ? "norm, " : "", is_interleaved ? "interleaved, half " : "half ", half);
        check_case<Bf16, Bf16>(c, name);
        check_case<float, Fp16>(c, name + ", float32");
      }
    }
  }
}

TEST(one_norm_without_the_other) {
  Case c;
  c.has_norm = true;
  const Problem<Bf16, Bf16> with_both(c), with_one(c);
  append_kv(with_both.launch(), nullptr);
  AppendKvLaunch l = with_one.launch();
  l.args.q_norm = nullptr;
  append_kv(l, nullptr);
  const auto before = static_cast<std::size_t>(with_one.row_at(query, 0, 0));
  for (int d = 0; d < c.head_dim; ++d) {
    CHECK(same_bytes(with_one.row(query, 0, 0)[d], with_one.rows_before[0][before + static_cast<std::size_t>(d)]));
    CHECK(same_bytes(with_one.page_row(key, 0, 0)[d], with_both.page_row(key, 0, 0)[d]));
  }
  CHECK(!same_bytes(*with_both.row(query, 0, 0), *with_one.row(query, 0, 0)));
}

TEST(no_order_of_threads_changes_anything) {
  for (const Order& order :
       {Order{Order::Kind::descending, 0}, Order{Order::Kind::shuffled, 1}, Order{Order::Kind::shuffled, 2}}) {
    for (const int half : {32, 10}) {
      Case c;
      c.has_norm = true;
      c.half = half;
      c.scale = Case::per_slot;
      set_host_order(order);
      Problem<Bf16, Int8> problem(c);
      append_kv(problem.launch(), nullptr);
      set_host_order({});
      problem.check(concat("half ", half));
    }
  }
}

TEST(what_is_too_large_for_the_scale_is_the_largest_there_is) {
  Case c;
  c.one_scale = 1e-3f;
  const Problem<Bf16, Int8> bytes(c);
  const Problem<Bf16, Fp8> floats(c);
  append_kv(bytes.launch(), nullptr);
  append_kv(floats.launch(), nullptr);
  for (int d = 0; d < c.head_dim; ++d) {
    const float x = to_float(bytes.row(value, 0, 0)[d]) / c.one_scale;
    if (std::abs(x) > 127.5f) CHECK_EQ(int{bytes.page_row(value, 0, 0)[d].value}, x > 0 ? 127 : -127);
    if (std::abs(x) > 480.0f) CHECK_EQ(to_float(floats.page_row(value, 0, 0)[d]), x > 0 ? 448.0f : -448.0f);
  }
}

TEST(nan_and_infinity_are_not_hidden_by_a_computed_scale) {
  for (const float bad : {kNan, std::numeric_limits<float>::infinity()}) {
    Case c;
    c.scale = Case::per_slot;
    const Problem<Bf16, Int8> problem(c);
    problem.row(key, 0, 1)[17] = from_float<Bf16>(bad);
    append_kv(problem.launch(), nullptr);
    const float* k_scale = problem.slot_scale[0].data() + problem.slots[0] * c.n_kv_heads;
    const float* v_scale = problem.slot_scale[1].data() + problem.slots[0] * c.n_kv_heads;
    CHECK(!std::isfinite(k_scale[1]));
    CHECK(std::isfinite(k_scale[0]) && std::isfinite(v_scale[0]) && std::isfinite(v_scale[1]));
  }
}

// Memory that is only promised, but for the page that is written.
HOST_TEST(pools_of_more_than_2_to_the_31_elements) {
  constexpr std::int64_t kPageStride = std::int64_t{1} << 30, kPages = 6;
  auto* pool = static_cast<std::byte*>(mmap(nullptr, static_cast<std::size_t>(kPages * kPageStride), PROT_NONE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  CHECK(pool != MAP_FAILED);
  CHECK_EQ(mprotect(pool + 5 * kPageStride, 65536, PROT_READ | PROT_WRITE), 0);
  Case c;
  c.n_tokens = 1;
  c.scale = Case::per_head;
  Problem<Bf16, Int8> near(c);
  near.slots = {2 * c.page_size + 7};
  append_kv(near.launch(), nullptr);
  AppendKvLaunch l = near.launch();
  const std::int64_t far_slot = 5 * c.page_size + 7;
  l.args.slot_mapping = &far_slot;
  l.args.k_pages.data = l.args.v_pages.data = pool;
  l.args.k_pages.page_stride = l.args.v_pages.page_stride = kPageStride;
  append_kv(l, nullptr);
  const std::byte* far = pool + 5 * kPageStride + 7 * near.slot_stride;
  CHECK_EQ(std::memcmp(far, near.page_row(value, 0, 0), 64), 0);
  CHECK_EQ(munmap(pool, static_cast<std::size_t>(kPages * kPageStride)), 0);
}

TEST(no_tokens_is_nothing_to_do) {
  AppendKvLaunch l;
  append_kv(l, nullptr);
}

template <class Change>
void refuse(const char* part, const Change& change, const Case& c = {}) {
  Problem<Bf16, Int8> problem(c);
  AppendKvLaunch l = problem.launch();
  change(l);
  CHECK_THROWS(std::invalid_argument, part, append_kv(l, nullptr));
}

TEST(what_no_kernel_was_compiled_for_is_refused) {
  refuse("[append_kv] q, key and value must be float32, bfloat16 or float16, got int8",
         [](auto& l) { l.dtype = Dtype::s8; });
  refuse("k_cache and v_cache must be bfloat16, float16, fp8 or int8, got float32",
         [](auto& l) { l.page_dtype = Dtype::f32; });
  refuse("head_dim must be a multiple of 8 up to 256, got 60", [](auto& l) { l.args.head_dim = 60; });
  refuse("got 264", [](auto& l) { l.args.head_dim = 264; });
  refuse("page_size must be a multiple of 16, got 20", [](auto& l) { l.args.page_size = 20; });
  refuse("heads must be at least 1", [](auto& l) { l.args.n_kv_heads = 0; });
  refuse("got -1 tokens", [](auto& l) { l.args.n_tokens = -1; });
  refuse("got 2000000000 tokens", [](auto& l) { l.args.n_tokens = 2000000000; });
  refuse("q must be there", [](auto& l) { l.args.q = nullptr; });
  refuse("value must be aligned to 16", [](auto& l) { l.args.value = static_cast<const Bf16*>(l.args.value) + 1; });
  refuse("strides of key must be multiples of 8 elements, got 65", [](auto& l) { l.args.key_head_stride = 65; });
  refuse("strides of v_cache must be multiples of 8", [](auto& l) { l.args.v_pages.page_stride += 4; });
  refuse("k_cache must be aligned to 8",
         [](auto& l) { l.args.k_pages.data = static_cast<Int8*>(l.args.k_pages.data) + 4; });
  refuse("the scale of v_cache must be positive and finite, got 0", [](auto& l) { l.args.v_pages.scale = 0.0f; });
  refuse("the scale of k_cache must be positive and finite", [](auto& l) { l.args.k_pages.scale = kNan; });
  refuse("half must be 0 to head_dim / 2 = 32, got 33", [](auto& l) { l.args.half = 33; });
  refuse("cos and sin must be there", [](auto& l) { l.args.half = 8, l.args.sin = nullptr; });
  refuse("k_norm must be aligned", [](auto& l) { l.args.k_norm = reinterpret_cast<const float*>(4); });
  Case c;
  c.scale = Case::per_slot;
  refuse("k_cache is bfloat16", [](auto& l) { l.page_dtype = Dtype::bf16; }, c);
}

}  // namespace
