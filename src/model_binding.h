// What the bindings of models share: a configuration out of a dict, weights that stay the caller's, one caller at a
// time.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "array_view.h"
#include "llm_decoder/cpu_kernels.h"
#include "llm_decoder/decoder.h"

namespace llm_decoder {

// Takes fields out of the dict by name, all of them, and says which is wrong.
class ConfigReader {
 public:
  ConfigReader(const char* place, const pybind11::dict& config) : place_(place), config_(config) {}

  template <class T>
  void read(const char* name, T* value) {
    check_arg(config_.contains(name), place_, "config must have ", name);
    try {
      *value = config_[name].cast<T>();
    } catch (const pybind11::cast_error&) {
      check_arg(false, place_, "config ", name, " has a wrong value: ", std::string(pybind11::repr(config_[name])));
    }
    ++n_read_;
    names_ += std::string(n_read_ > 1 ? ", " : "") + name;
  }

  void check_all_read() const {
    check_arg(config_.size() == n_read_, place_, "config must have exactly ", names_, ", got ",
              std::string(pybind11::str(pybind11::list(config_.attr("keys")()))));
  }

 private:
  const char* place_;
  const pybind11::dict& config_;
  std::size_t n_read_ = 0;
  std::string names_;
};

// Throws std::invalid_argument for a dict that has not exactly the fields of ModelConfig.
inline ModelConfig read_model_config(const char* place, const pybind11::dict& config) {
  ConfigReader reader(place, config);
  ModelConfig read;
  reader.read("n_layers", &read.n_layers);
  reader.read("hidden_size", &read.hidden_size);
  reader.read("n_heads", &read.n_heads);
  reader.read("n_kv_heads", &read.n_kv_heads);
  reader.read("head_dim", &read.head_dim);
  reader.read("intermediate_size", &read.intermediate_size);
  reader.read("vocab_size", &read.vocab_size);
  reader.read("max_model_len", &read.max_model_len);
  reader.read("norm_eps", &read.norm_eps);
  reader.read("attention_scale", &read.attention_scale);
  reader.read("qk_norm", &read.qk_norm);
  reader.read("windows", &read.windows);
  reader.read("rope_inv_freq", &read.rope_inv_freq);
  reader.read("rope_attention_factor", &read.rope_attention_factor);
  reader.check_all_read();
  return read;
}

// The arrays that a model borrows.
class BorrowedWeights {
 public:
  WeightView read(const char* place, const std::string& name, const std::string& layout, const Shape& shape,
                  const pybind11::array& data, const std::optional<pybind11::array>& scales) {
    const WeightView view = view_of(place, name, layout, shape, data, scales);
    std::vector<pybind11::array>& kept = arrays_[name];
    kept = {data};
    if (scales) kept.push_back(*scales);
    return view;
  }

 private:
  static WeightView view_of(const char* place, const std::string& name, const std::string& layout, const Shape& shape,
                            const pybind11::array& data, const std::optional<pybind11::array>& scales) {
    const bool is_vector = layout == "vector", is_bf16 = layout == "bf16";
    const bool is_w8 = layout == "w8", is_w4 = layout == "w4";
    check_arg(is_vector || is_bf16 || is_w8 || is_w4 || layout == "f32", place, "layout of ", name,
              " must be 'vector', 'f32', 'bf16', 'w8' or 'w4', got '", layout, "'");
    check_arg(shape.size() == (is_vector ? 1u : 2u), place, "shape of ", name, " must have ", is_vector ? 1 : 2,
              " sizes, got ", shape_text(shape));
    for (const pybind11::ssize_t size : shape) {
      check_arg(size > 0 && size <= kLargestSize, place, "shape of ", name, " is impossible: ", shape_text(shape));
    }
    check_arg(scales.has_value() == (is_w8 || is_w4), place,
              scales ? "only w8 and w4 have scales, got some for " : "w8 and w4 need scales, got none for ", name);
    WeightView view;
    view.n = shape[0];
    view.k = is_vector ? 0 : shape[1];
    const std::string of = name + " data";
    if (is_w8 || is_w4) {
      view.layout = is_w8 ? WeightView::Layout::w8 : WeightView::Layout::w4;
      const std::int64_t n_bytes = is_w8 ? packed_w8_bytes(view.n, view.k) : packed_w4_bytes(view.n, view.k);
      view.data = read_array<std::uint8_t>(data, place, of.c_str(), {n_bytes}).data;
      view.scales = read_array<float>(*scales, place, (name + " scales").c_str(), {view.n}).data;
      return view;
    }
    if (is_bf16) {
      view.layout = WeightView::Layout::bf16;
      view.data = read_array<std::uint16_t>(data, place, of.c_str(), {packed_bf16_bytes(view.n, view.k) / 2}).data;
      return view;
    }
    view.layout = is_vector ? WeightView::Layout::vector : WeightView::Layout::f32;
    view.data =
        read_array<float>(data, place, of.c_str(), {is_vector ? view.n : packed_f32_bytes(view.n, view.k) / 4}).data;
    return view;
  }

  static constexpr pybind11::ssize_t kLargestSize = 1 << 30;

  std::map<std::string, std::vector<pybind11::array>> arrays_;
};

// A guard: two threads at once are a bug of the caller, not a wait.
class OneCaller {
 public:
  class Use {
   public:
    Use(OneCaller& caller, const char* place) : in_use_(caller.in_use_) {
      check_state(!in_use_.exchange(true), place, "needs to be the only call, but another thread is inside");
    }
    ~Use() { in_use_ = false; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    std::atomic<bool>& in_use_;
  };

 private:
  std::atomic<bool> in_use_{false};
};

}  // namespace llm_decoder
