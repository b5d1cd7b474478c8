// Rows of any dtype for tests of kernels over rows: a stride past the row's end, NaN where nothing may look, and memory
// of exactly the size that is needed.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "row_tensor.h"

namespace rig {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

inline std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

class Rows {
 public:
  // offset: elements before the first row, so that rows need not be aligned.
  Rows(int n_rows, int n_cols, Dtype dtype, int padding, int offset = 0)
      : n_rows_(n_rows), n_cols_(n_cols), stride_(n_cols + padding), offset_(offset), dtype_(dtype) {
    const std::int64_t n = offset + std::int64_t{n_rows - 1} * stride_ + n_cols;
    if (dtype == Dtype::f32) {
      floats_.assign(index(n), std::numeric_limits<float>::quiet_NaN());
    } else {
      halves_.assign(index(n), 0x7fff);
    }
  }

  void fill_normal(unsigned seed, float spread) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, spread);
    for (int row = 0; row < n_rows_; ++row) {
      for (int i = 0; i < n_cols_; ++i) set(row, i, normal(random));
    }
  }

  void set(int row, int i, float x) {
    if (dtype_ == Dtype::f32) floats_[at(row, i)] = x;
    if (dtype_ == Dtype::bf16) halves_[at(row, i)] = from_float<Bf16>(x).bits;
    if (dtype_ == Dtype::f16) halves_[at(row, i)] = from_float<Fp16>(x).bits;
  }
  float get(int row, int i) const {
    if (dtype_ == Dtype::f32) return floats_[at(row, i)];
    return dtype_ == Dtype::bf16 ? to_float(Bf16{halves_[at(row, i)]}) : to_float(Fp16{halves_[at(row, i)]});
  }
  // What a float becomes here.
  float rounded(float x) const {
    if (dtype_ == Dtype::f32) return x;
    return dtype_ == Dtype::bf16 ? to_float(from_float<Bf16>(x)) : to_float(from_float<Fp16>(x));
  }
  // Half a unit in the last place, relative.
  double rounding() const { return dtype_ == Dtype::f32 ? 0x1p-24 : dtype_ == Dtype::bf16 ? 0x1p-8 : 0x1p-11; }
  // Whether what lies between rows is as it was.
  bool padding_is_whole() const {
    for (int row = 0; row + 1 < n_rows_; ++row) {
      for (std::int64_t i = n_cols_; i < stride_; ++i) {
        if (!std::isnan(get(row, static_cast<int>(i)))) return false;
      }
    }
    return true;
  }

  RowTensor tensor() const {
    if (dtype_ == Dtype::f32) return {floats_.data() + offset_, dtype_, stride_};
    return {halves_.data() + offset_, dtype_, stride_};
  }
  OutRowTensor out() {
    if (dtype_ == Dtype::f32) return {floats_.data() + offset_, dtype_, stride_};
    return {halves_.data() + offset_, dtype_, stride_};
  }

 private:
  std::size_t at(int row, int i) const { return index(offset_ + row * stride_ + i); }

  int n_rows_, n_cols_;
  std::int64_t stride_;
  int offset_;
  Dtype dtype_;
  std::vector<float> floats_;
  std::vector<std::uint16_t> halves_;
};

// int8 rows with poison around them.
struct Int8Rows {
  Int8Rows(int n_rows, int n_cols_, int padding)
      : n_cols(n_cols_),
        stride(n_cols_ + padding),
        q(index(std::int64_t{n_rows - 1} * stride + n_cols_), -128),
        scale(index(n_rows), -1.0f) {}

  QuantizedRowTensor tensor() { return {q.data(), stride, scale.data()}; }
  std::int8_t get(int row, int i) const { return q[index(row * stride + i)]; }

  int n_cols;
  std::int64_t stride;
  std::vector<std::int8_t> q;
  std::vector<float> scale;
};

// Whether int8 rows say what `want(row, i)` is: the scale that of the largest, 1 where that would be subnormal, each
// value within half a step, as far as `error` (relative) lets one tell.
template <class Want>
bool is_quantized(const Int8Rows& got, int row, double error, const Want& want) {
  double largest = 0;
  for (int i = 0; i < got.n_cols; ++i) largest = std::max(largest, std::abs(want(row, i)));
  const bool is_zero = largest / 127 < std::numeric_limits<float>::min();
  const double scale = is_zero ? 1.0 : largest / 127;
  if (!(std::abs(got.scale[index(row)] - scale) <= (error + 0x1p-22) * scale)) return false;
  bool has_largest = is_zero;
  for (int i = 0; i < got.n_cols; ++i) {
    const int q = got.get(row, i);
    if (q < -127 || !(std::abs(q - want(row, i) / scale) <= 0.5 + 127 * 2 * (error + 0x1p-22))) return false;
    has_largest = has_largest || std::abs(q) == 127;
  }
  return has_largest;
}

}  // namespace rig
