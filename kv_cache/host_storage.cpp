#include "host_storage.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace {

constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
constexpr std::int64_t kCacheLine = 64;

[[noreturn]] void refuse(std::int32_t n_pages, std::int64_t page_bytes) {
  throw OutOfMemory(concat("[KvCache] needs ", n_pages, " pages of ", page_bytes,
                           " bytes, more memory than the system gives; ask for fewer pages or kv_cache_dtype int8"));
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

HostGroup::HostGroup(const KvCacheConfig& config, std::int32_t number)
    : n_pages_(config.groups[static_cast<std::size_t>(number)].n_pages),
      n_layers_(static_cast<std::int32_t>(std::count(config.layer_groups.begin(), config.layer_groups.end(), number))) {
  shape_.dtype = config.dtype;
  shape_.page_size = config.page_size;
  shape_.n_kv_heads = config.n_kv_heads;
  shape_.head_dim = config.head_dim;
  shape_.head_dim_padded = static_cast<std::int32_t>(round_up(config.head_dim, kHeadDimAlign));
  shape_.head_stride_bytes = std::int64_t{shape_.head_dim_padded} * config.page_size * element_bytes(config.dtype);
  tile_bytes_ = shape_.head_stride_bytes * config.n_kv_heads;
  if (config.dtype == Dtype::s8) scale_bytes_ = std::int64_t{config.n_kv_heads} * config.page_size * 4;
  layer_bytes_ = 2 * (tile_bytes_ + scale_bytes_);
  shape_.page_stride_bytes = page_bytes();
  shape_.scale_stride_floats = page_bytes() / static_cast<std::int64_t>(sizeof(float));
  if (n_layers_ == 0) return;
  const std::int32_t n_pages = n_pages_ + config.groups[static_cast<std::size_t>(number)].n_tier_slots;
  // The quotient leaves room for every rounding below, so nothing after this line overflows.
  if (page_bytes() > std::numeric_limits<std::int64_t>::max() / 4 / n_pages) refuse(n_pages, page_bytes());
  const std::int64_t alignment = pool_alignment(page_bytes() * n_pages);
  mapped_bytes_ = page_bytes() * n_pages + alignment;
  memory_ = map_memory(mapped_bytes_);
  if (memory_ == nullptr) refuse(n_pages, page_bytes());
  first_page_ = align_up(memory_, alignment);
#ifdef MADV_HUGEPAGE
  if (alignment == kHugePage) {
    (void)madvise(memory_, static_cast<std::size_t>(mapped_bytes_), MADV_HUGEPAGE);  // only advice: it may be refused
  }
#endif
}

HostGroup::~HostGroup() {
  if (memory_ != nullptr) (void)munmap(memory_, static_cast<std::size_t>(mapped_bytes_));
}

PagedKvView HostGroup::layer(std::int32_t layer) const {
  PagedKvView view = shape_;
  view.k = first_page_ + layer * layer_bytes_;
  view.v = view.k + tile_bytes_;
  if (scale_bytes_ > 0) {
    view.k_scale = reinterpret_cast<float*>(view.v + tile_bytes_);
    view.v_scale = reinterpret_cast<float*>(view.v + tile_bytes_ + scale_bytes_);
  }
  return view;
}

void HostGroup::copy(std::int32_t from, std::int32_t to) {
  if (n_layers_ == 0) return;  // no memory at all
  std::memcpy(first_page_ + to * page_bytes(), first_page_ + from * page_bytes(),
              static_cast<std::size_t>(page_bytes()));
}

HostStorage::HostStorage(const KvCacheConfig& config) {
  for (std::size_t number = 0; number < config.groups.size(); ++number) {
    groups_.emplace_back(config, static_cast<std::int32_t>(number));
  }
}

}  // namespace llm_decoder
