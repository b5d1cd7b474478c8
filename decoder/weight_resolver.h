// Looks weights up by name: what a model needs, in the shape and layout that it needs, and what is left over.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "llm_decoder/decoder.h"

namespace llm_decoder {

struct Matrix {
  WeightView::Layout layout = WeightView::Layout::f32;
  std::int32_t n = 0, k = 0;      // out = in . [n, k]^T
  const void* data = nullptr;     // packed
  const float* scales = nullptr;  // [n] for w8, w4 and f8
  const float* bias = nullptr;    // [n] or null
};

using NamedWeights = std::map<std::string, WeightView>;

// Whose kernels multiply with the matrices. The CPU's want them all quantised or none, the embedding not w4; a GPU's
// take half, w8, w4 and f8 beside each other.
enum class Products : std::uint8_t { cpu, gpu };

// Throws std::invalid_argument naming a weight whose size or alignment cannot be.
void check_weight(const char* place, const std::string& name, const WeightView& view);

// Every verb throws std::invalid_argument naming the weight that is missing, unknown, of a wrong shape or of a layout
// that does not go with the others.
class WeightResolver {
 public:
  WeightResolver(const char* place, const NamedWeights& weights, Products products = Products::cpu)
      : place_(place), weights_(weights), products_(products) {}

  const float* vector(const std::string& name, std::int64_t n);
  const float* optional_vector(const std::string& name, std::int64_t n);
  // With its bias, if any. The first that is asked for is the embedding.
  Matrix matrix(const std::string& name, std::int64_t n, std::int64_t k);
  // Only rows of it are read: f32, bf16 or w8, whatever the others are.
  Matrix table(const std::string& name, std::int64_t n, std::int64_t k);

  bool has(const std::string& name) const { return weights_.count(name) > 0; }
  bool is_quantized() const { return is_quantized_; }
  void check_all_used() const;

 private:
  const WeightView& need(const std::string& name);
  const WeightView& need_matrix(const std::string& name, std::int64_t n, std::int64_t k);
  void check_kind(const std::string& name, const WeightView& view);

  const char* place_;
  const NamedWeights& weights_;
  const Products products_;
  std::set<std::string> used_;
  bool is_quantized_ = false;
  bool has_matrix_ = false;
};

}  // namespace llm_decoder
