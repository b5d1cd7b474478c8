#include "weight_resolver.h"

#include <limits>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

using Layout = WeightView::Layout;

const char* name_of(Layout layout) {
  switch (layout) {
    case Layout::vector:
      return "vector";
    case Layout::f32:
      return "f32";
    case Layout::bf16:
      return "bf16";
    case Layout::w8:
      return "w8";
    case Layout::w4:
      return "w4";
    case Layout::half:
      return "half";
    case Layout::f8:
      return "f8";
  }
  return "?";
}

bool is_only_of_gpus(Layout layout) { return layout == Layout::half || layout == Layout::f8; }

std::string shape_text(const WeightView& view) {
  if (view.layout == Layout::vector) return concat("vector [", view.n, "]");
  return concat(name_of(view.layout), " matrix [", view.n, ", ", view.k, "]");
}

}  // namespace

void check_weight(const char* place, const std::string& name, const WeightView& view) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  check_arg(view.n > 0 && view.n <= kMost, place, name, " has a wrong size: ", view.n);
  if (view.layout == Layout::vector) return;
  check_arg(view.k > 0 && view.k <= kMost, place, name, " has a wrong size: ", view.k);
  check_arg(reinterpret_cast<std::uintptr_t>(view.data) % 64 == 0, place, name,
            " must be aligned to 64 bytes; pack_w8, pack_w4, pack_f32 and pack_bf16 return such arrays");
}

const float* WeightResolver::vector(const std::string& name, std::int64_t n) {
  const WeightView& view = need(name);
  check_arg(view.layout == Layout::vector && view.n == n, place_, "weight ", name, " must be a vector [", n, "], got ",
            shape_text(view));
  return static_cast<const float*>(view.data);
}

const float* WeightResolver::optional_vector(const std::string& name, std::int64_t n) {
  return has(name) ? vector(name, n) : nullptr;
}

Matrix WeightResolver::matrix(const std::string& name, std::int64_t n, std::int64_t k) {
  const WeightView& view = need_matrix(name, n, k);
  check_kind(name, view);
  return {view.layout, static_cast<std::int32_t>(n),      static_cast<std::int32_t>(k), view.data,
          view.scales, optional_vector(name + ".bias", n)};
}

Matrix WeightResolver::table(const std::string& name, std::int64_t n, std::int64_t k) {
  const WeightView& view = need_matrix(name, n, k);
  check_arg(view.layout != Layout::w4 && !is_only_of_gpus(view.layout), place_, name, " must be f32, bf16 or w8, got ",
            shape_text(view));
  return {view.layout, static_cast<std::int32_t>(n), static_cast<std::int32_t>(k), view.data, view.scales, nullptr};
}

void WeightResolver::check_all_used() const {
  for (const auto& [name, view] : weights_) {
    check_arg(used_.count(name) > 0, place_, "this model has no weight ", name, ", got ", shape_text(view));
  }
}

const WeightView& WeightResolver::need(const std::string& name) {
  const auto found = weights_.find(name);
  check_arg(found != weights_.end(), place_, "weight ", name, " is missing; set_weight it before finalize");
  used_.insert(name);
  return found->second;
}

const WeightView& WeightResolver::need_matrix(const std::string& name, std::int64_t n, std::int64_t k) {
  const WeightView& view = need(name);
  check_arg(view.layout != Layout::vector && view.n == n && view.k == k, place_, "weight ", name, " must be a matrix [",
            n, ", ", k, "], got ", shape_text(view));
  return view;
}

void WeightResolver::check_kind(const std::string& name, const WeightView& view) {
  if (products_ == Products::gpu) {
    check_arg(is_only_of_gpus(view.layout) || llm_decoder::is_quantized(view.layout), place_, name,
              " must be half, w8, w4 or f8, got ", shape_text(view));
    return;
  }
  check_arg(!is_only_of_gpus(view.layout), place_, name, " must be f32, bf16, w8 or w4, got ", shape_text(view));
  if (!has_matrix_) {
    check_arg(view.layout != Layout::w4, place_, name, " must be f32, bf16 or w8, got ", shape_text(view));
    is_quantized_ = llm_decoder::is_quantized(view.layout);
  }
  has_matrix_ = true;
  check_arg(llm_decoder::is_quantized(view.layout) == is_quantized_, place_, "all matrices must be ",
            is_quantized_ ? "w8 or w4, as the embedding is quantised" : "f32 or bf16, as the embedding is", ", got ",
            name, " as ", shape_text(view));
}

}  // namespace llm_decoder
