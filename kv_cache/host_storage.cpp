#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "llm_decoder/errors.h"
#include "storage.h"

namespace llm_decoder {
namespace {

constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
constexpr std::int64_t kCacheLine = 64;

class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

[[noreturn]] void refuse(std::int32_t n_pages, std::int64_t page_bytes) {
  throw OutOfMemory(concat("[KvCache] needs ", n_pages, " pages of ", page_bytes,
                           " bytes, more memory than the system gives; ask for fewer pages or kv_cache_dtype int8"));
}

PagedKvView view_shape(const KvCacheConfig& config) {
  PagedKvView view;
  view.dtype = config.dtype;
  view.page_size = config.page_size;
  view.n_kv_heads = config.n_kv_heads;
  view.head_dim = config.head_dim;
  view.head_dim_padded = static_cast<std::int32_t>(round_up(config.head_dim, kHeadDimAlign));
  view.head_stride_bytes = std::int64_t{view.head_dim_padded} * config.page_size * element_bytes(config.dtype);
  view.page_stride_bytes = view.head_stride_bytes * config.n_kv_heads;
  return view;
}

// Pools of at least a few huge pages start on one, so that the system can back them with huge pages; small ones would
// only waste memory by that.
std::int64_t pool_alignment(std::int64_t pool_bytes) { return pool_bytes >= 4 * kHugePage ? kHugePage : kCacheLine; }

std::byte* map_memory(std::int64_t bytes) {
  void* memory =
      mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

std::byte* align_up(std::byte* memory, std::int64_t alignment) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  return memory + (round_up(static_cast<std::int64_t>(address), alignment) - static_cast<std::int64_t>(address));
}

}  // namespace

Storage::Storage(const KvCacheConfig& config, std::int32_t number)
    : n_layers_(static_cast<std::int32_t>(std::count(config.layer_groups.begin(), config.layer_groups.end(), number))),
      shape_(view_shape(config)) {
  if (n_layers_ == 0) return;
  const std::int32_t n_pages = config.groups[static_cast<std::size_t>(number)].n_pages;
  if (config.dtype == Dtype::s8) scale_stride_bytes_ = std::int64_t{config.n_kv_heads} * config.page_size * 4;
  // The quotient leaves room for every rounding below, so nothing after this line overflows.
  if (page_bytes() > std::numeric_limits<std::int64_t>::max() / 4 / n_pages) refuse(n_pages, page_bytes());
  const std::int64_t tile_bytes = shape_.page_stride_bytes * n_pages;
  const std::int64_t scale_bytes = scale_stride_bytes_ * n_pages;
  tile_pool_bytes_ = round_up(tile_bytes, pool_alignment(tile_bytes));
  scale_pool_bytes_ = round_up(scale_bytes, pool_alignment(scale_bytes));
  mapped_bytes_ = 2 * n_layers_ * (tile_pool_bytes_ + scale_pool_bytes_) + kHugePage;
  memory_ = map_memory(mapped_bytes_);
  if (memory_ == nullptr) refuse(n_pages, page_bytes());
#ifdef MADV_HUGEPAGE
  if (pool_alignment(tile_bytes) == kHugePage) {
    (void)madvise(memory_, static_cast<std::size_t>(mapped_bytes_), MADV_HUGEPAGE);  // only advice: it may be refused
  }
#endif
}

Storage::~Storage() {
  if (memory_ != nullptr) (void)munmap(memory_, static_cast<std::size_t>(mapped_bytes_));
}

PagedKvView Storage::layer(std::int32_t layer) const {
  PagedKvView view = shape_;
  std::byte* tiles = align_up(memory_, kHugePage) + 2 * layer * tile_pool_bytes_;
  view.k = tiles;
  view.v = tiles + tile_pool_bytes_;
  if (scale_stride_bytes_ > 0) {
    std::byte* scales = align_up(memory_, kHugePage) + 2 * n_layers_ * tile_pool_bytes_ + 2 * layer * scale_pool_bytes_;
    view.k_scale = reinterpret_cast<float*>(scales);
    view.v_scale = reinterpret_cast<float*>(scales + scale_pool_bytes_);
  }
  return view;
}

void Storage::copy_page(std::int32_t from, std::int32_t to) {
  const auto tile_bytes = static_cast<std::size_t>(shape_.page_stride_bytes);
  const auto scale_bytes = static_cast<std::size_t>(scale_stride_bytes_);
  for (std::int32_t i = 0; i < n_layers_; ++i) {
    const PagedKvView view = layer(i);
    std::memcpy(view.k_tile(to, 0), view.k_tile(from, 0), tile_bytes);
    std::memcpy(view.v_tile(to, 0), view.v_tile(from, 0), tile_bytes);
    if (scale_bytes == 0) continue;
    std::memcpy(view.k_scales(to, 0), view.k_scales(from, 0), scale_bytes);
    std::memcpy(view.v_scales(to, 0), view.v_scales(from, 0), scale_bytes);
  }
}

std::int64_t Storage::page_bytes() const { return 2 * n_layers_ * (shape_.page_stride_bytes + scale_stride_bytes_); }

}  // namespace llm_decoder
