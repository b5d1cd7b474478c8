// _core.KvCache and that of GPU modules: one set of verbs, wherever the pages lie.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "llm_decoder/kv_cache.h"

namespace llm_decoder {

// The arguments that every constructor of KvCache has. Throws std::invalid_argument for those that contradict each
// other.
KvCacheConfig read_kv_cache_config(const pybind11::object& n_pages, std::int32_t page_size,
                                   const pybind11::object& layers, std::int32_t n_kv_heads, std::int32_t head_dim,
                                   const std::string& dtype, const pybind11::object& window,
                                   const pybind11::object& n_tier_slots, std::uint64_t hash_mask);

// Every verb but a constructor.
void add_kv_cache_verbs(pybind11::class_<KvCache>& cls);

}  // namespace llm_decoder
