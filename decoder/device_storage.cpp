#include "device_storage.h"

#include <utility>

#include "copy_blocks_launch.h"
#include "device_guard.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "KvCache";

}  // namespace

DevicePages::DevicePages(const KvCacheConfig& config, std::shared_ptr<OwnedStream> stream)
    : device_(current_device()),
      stream_(std::move(stream)),
      dtype_(config.dtype),
      page_size_(config.page_size),
      n_kv_heads_(config.n_kv_heads),
      head_dim_(config.head_dim),
      pair_(2) {
  check_arg(dtype_ != Dtype::f32, kPlace, "pages of a device must be bfloat16, float16, fp8 or int8, got ",
            dtype_name(dtype_));
  check_arg(head_dim_ % 8 == 0, kPlace, "head_dim must be a multiple of 8 on a device, got ", head_dim_);
  std::vector<std::int32_t> n_layers(config.groups.size(), 0);
  for (const std::int32_t group : config.layer_groups) {
    check_arg(group >= 0 && group < static_cast<std::int32_t>(n_layers.size()), kPlace,
              "groups of layers must be in [0, ", n_layers.size(), "), got ", group);
    places_.push_back({group, n_layers[static_cast<std::size_t>(group)]++});
  }
  for (std::size_t i = 0; i < config.groups.size(); ++i) groups_.push_back(make_group(config.groups[i], n_layers[i]));
  synchronize(stream_->get());
}

DevicePages::~DevicePages() {
  try {
    const DeviceGuard guard(device_);
    synchronize(stream_->get());
  } catch (const std::exception&) {  // a device that has failed: its memory goes with the process
  }
}

std::int64_t DevicePages::scale_page_bytes() const {
  return element_bytes(dtype_) == 1 ? std::int64_t{page_size_} * n_kv_heads_ * 4 : 0;
}

DevicePages::Group DevicePages::make_group(const KvGroupConfig& config, std::int32_t n_layers) const {
  check_arg(config.n_pages > 0 && n_layers > 0, kPlace, "a group on a device must have pages and layers, got ",
            config.n_pages, " and ", n_layers);
  Group group;
  group.n_pages = config.n_pages;
  group.n_layers = n_layers;
  group.page_bytes = std::int64_t{n_layers} * 2 * page_size_ * n_kv_heads_ * head_dim_ * element_bytes(dtype_);
  group.pages = DeviceArray<std::byte>(group.n_pages * group.page_bytes);
  group.scales = DeviceArray<float>(std::int64_t{n_layers} * 2 * group.n_pages * scale_page_bytes() / 4);
  const std::int64_t slot_bytes = group.page_bytes + std::int64_t{n_layers} * 2 * scale_page_bytes();
  group.slots = PinnedArray<std::byte>(config.n_tier_slots * slot_bytes);
  const std::vector<PagePool> pools = pools_of(group);
  group.pools = DeviceArray<PagePool>(static_cast<std::int64_t>(pools.size()));
  copy_memory(group.pools.data(), pools.data(), group.pools.n_bytes(), stream_->get());
  synchronize(stream_->get());  // `pools` goes now
  return group;
}

std::vector<PagePool> DevicePages::pools_of(const Group& group) const {
  std::vector<PagePool> pools = {{group.pages.data(), group.page_bytes}};
  if (group.scales.size() == 0) return pools;
  auto* scales = static_cast<std::byte*>(static_cast<void*>(group.scales.data()));
  for (std::int32_t i = 0; i < 2 * group.n_layers; ++i) {
    pools.push_back({scales + i * group.n_pages * scale_page_bytes(), scale_page_bytes()});
  }
  return pools;
}

std::int64_t DevicePages::page_bytes(std::int32_t group) const {
  const Group& g = group_at(group);
  return g.page_bytes + std::int64_t{g.n_layers} * 2 * scale_page_bytes();
}

void DevicePages::copy_page(std::int32_t group, std::int32_t from, std::int32_t to) {
  const DeviceGuard guard(device_);
  const Group& g = group_at(group);
  const std::int64_t pair[] = {from, to};
  copy_memory(pair_.data(), pair, sizeof(pair), stream_->get());  // pageable: read when the call returns
  CopyBlocksLaunch launch;
  launch.pools = g.pools.data();
  launch.pairs = pair_.data();
  launch.n_pools = static_cast<int>(g.pools.size());
  launch.n_pairs = 1;
  launch.largest_page_bytes = g.page_bytes;
  copy_blocks(launch, stream_->get());
}

// fn(device, host, bytes) for each part of a page and its place in a slot.
template <class Fn>
void DevicePages::for_each_part(const Group& group, std::int32_t page, std::int32_t slot, const Fn& fn) const {
  std::byte* host = group.slots.data() + slot * (group.page_bytes + group.n_layers * 2 * scale_page_bytes());
  for (const PagePool& pool : pools_of(group)) {
    fn(pool.pages + page * pool.page_bytes, host, pool.page_bytes);
    host += pool.page_bytes;
  }
}

void DevicePages::store(std::int32_t group, std::int32_t page, std::int32_t slot) {
  const DeviceGuard guard(device_);
  for_each_part(group_at(group), page, slot, [this](std::byte* device, std::byte* host, std::int64_t n_bytes) {
    copy_memory(host, device, n_bytes, stream_->get());
  });
}

void DevicePages::load(std::int32_t group, std::int32_t slot, std::int32_t page) {
  const DeviceGuard guard(device_);
  for_each_part(group_at(group), page, slot, [this](std::byte* device, std::byte* host, std::int64_t n_bytes) {
    copy_memory(device, host, n_bytes, stream_->get());
  });
}

PagedLayer DevicePages::layer(std::int32_t layer) const {
  const LayerPlace place = places_[static_cast<std::size_t>(layer)];
  const Group& group = group_at(place.group);
  const std::int64_t row = head_dim_, slot = n_kv_heads_ * row, tensor = page_size_ * slot;  // elements
  const std::int64_t page = group.n_layers * 2 * tensor;
  const std::int64_t n_scales = group.n_pages * scale_page_bytes() / 4;  // of K, or of V, of a layer

  PagedLayer out;
  const auto fill = [&](int part, PagedTensor& tensor_out, KvScale& scale, AppendTarget& target) {
    std::byte* data = group.pages.data() + (place.index * 2 + part) * tensor * element_bytes(dtype_);
    tensor_out = {data, page, slot, row, group.n_pages};
    target.data = data;
    target.page_stride = page;
    target.slot_stride = slot;
    target.head_stride = row;
    if (group.scales.size() == 0) return;
    target.per_slot = group.scales.data() + (place.index * 2 + part) * n_scales;
    scale.per_slot = target.per_slot;
  };
  fill(0, out.k, out.k_scale, out.k_target);
  fill(1, out.v, out.v_scale, out.v_target);
  return out;
}

}  // namespace gpu
}  // namespace llm_decoder
