// _core.KvCache: pages in host memory.
#include <memory>
#include <string>

#include "kv_cache_binding.h"
#include "llm_decoder/errors.h"

namespace py = pybind11;

namespace llm_decoder {

void register_kv_cache(py::module_& m);

void register_kv_cache(py::module_& m) {
  py::class_<KvCache> cache(
      m, "KvCache",
      "The paged KV cache: pages, page tables, prefix index. One thread owns a cache.\n\n"
      "Pages hold page_size tokens (a multiple of 16) of every layer of a group, the layers with one "
      "window. n_pages and window (in tokens, 0: everything is seen): an int for a single group, or "
      "a list with one for each.\nlayers: how many, or a list with the group of each; 0 keeps the "
      "books without any storage. dtype: 'f32', 'bf16' or 's8'. n_tier_slots: pages that a second "
      "tier in host memory has room for, of each group; 0: there is none. hash_mask: which bits of the "
      "prefix hash count, for tests.\n"
      "Raises ValueError for impossible sizes and MemoryError when the system refuses the memory.");
  cache.def(py::init([](const py::object& n_pages, std::int32_t page_size, const py::object& layers,
                        std::int32_t n_kv_heads, std::int32_t head_dim, const std::string& dtype,
                        const py::object& window, const py::object& n_tier_slots, std::uint64_t hash_mask) {
              const KvCacheConfig config = read_kv_cache_config(n_pages, page_size, layers, n_kv_heads, head_dim, dtype,
                                                                window, n_tier_slots, hash_mask);
              check_arg(config.dtype != Dtype::f16 && config.dtype != Dtype::fp8, "KvCache",
                        "dtype in host memory must be 'f32', 'bf16' or 's8', got '", dtype, "'");
              return std::make_unique<KvCache>(config);
            }),
            py::arg("n_pages"), py::arg("page_size"), py::arg("layers"), py::arg("n_kv_heads"), py::arg("head_dim"),
            py::arg("dtype") = "f32", py::arg("window") = 0, py::arg("n_tier_slots") = 0,
            py::arg("hash_mask") = ~std::uint64_t{0});
  add_kv_cache_verbs(cache);
}

}  // namespace llm_decoder
