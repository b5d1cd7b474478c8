#include "device_storage.h"

#include <atomic>
#include <utility>

#include "device_guard.h"
#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "KvCache";

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

std::vector<PagePool> pools_of(const GroupMemory& memory) {
  std::vector<PagePool> pools = {{memory.pages, memory.page_bytes}};
  for (int i = 0; i < memory.n_scale_arrays; ++i) {
    pools.push_back({memory.scales + std::int64_t{i} * memory.n_all_pages * memory.scale_bytes, memory.scale_bytes});
  }
  return pools;
}

}  // namespace

DevicePages::DevicePages(const KvCacheConfig& config, std::shared_ptr<OwnedStream> stream)
    : id_(next_id()),
      device_(current_device()),
      stream_(std::move(stream)),
      dtype_(config.dtype),
      page_size_(config.page_size),
      n_kv_heads_(config.n_kv_heads),
      head_dim_(config.head_dim) {
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
    for (const Stream stream : {stream_->get(), stores_.get(), loads_.get()}) synchronize(stream);
  } catch (const std::exception&) {  // a device that has failed: its memory goes with the process
  }
}

DevicePages::Group DevicePages::make_group(const KvGroupConfig& config, std::int32_t n_layers) const {
  check_arg(config.n_pages > 0 && n_layers > 0, kPlace, "a group on a device must have pages and layers, got ",
            config.n_pages, " and ", n_layers);
  Group group;
  group.n_layers = n_layers;
  GroupMemory& memory = group.memory;
  memory.n_pages = config.n_pages;
  memory.page_bytes = std::int64_t{n_layers} * 2 * page_size_ * n_kv_heads_ * head_dim_ * element_bytes(dtype_);
  memory.n_all_pages = memory.n_pages + PageMoves::n_stage_pages(memory.page_bytes, config.n_tier_slots);
  if (element_bytes(dtype_) == 1) {
    memory.n_scale_arrays = 2 * n_layers;
    memory.scale_bytes = std::int64_t{page_size_} * n_kv_heads_ * static_cast<std::int64_t>(sizeof(float));
  }
  group.pages = DeviceArray<std::byte>(memory.n_all_pages * memory.page_bytes);
  group.scales = DeviceArray<float>(std::int64_t{memory.n_scale_arrays} * memory.n_all_pages * memory.scale_bytes / 4);
  memory.pages = group.pages.data();
  memory.scales = static_cast<std::byte*>(static_cast<void*>(group.scales.data()));
  const std::vector<PagePool> pools = pools_of(memory);
  group.pools = DeviceArray<PagePool>(static_cast<std::int64_t>(pools.size()));
  copy_memory(group.pools.data(), pools.data(), group.pools.n_bytes(), stream_->get());
  synchronize(stream_->get());  // `pools` goes now
  memory.pools = group.pools.data();
  const PageMoves::Streams streams = {stream_->get(), stores_.get(), loads_.get()};
  group.moves = std::make_unique<PageMoves>(memory, config.n_tier_slots, streams);
  return group;
}

std::int64_t DevicePages::page_bytes(std::int32_t group) const {
  const GroupMemory& memory = group_at(group).memory;
  return memory.page_bytes + memory.n_scale_arrays * memory.scale_bytes;
}

void DevicePages::copy_page(std::int32_t group, std::int32_t from, std::int32_t to) {
  const DeviceGuard guard(device_);
  moves_of(group).copy(from, to);
}

void DevicePages::store(std::int32_t group, std::int32_t page, std::int32_t slot) {
  const DeviceGuard guard(device_);
  moves_of(group).store(page, slot);
}

void DevicePages::load(std::int32_t group, std::int32_t slot, std::int32_t page) {
  const DeviceGuard guard(device_);
  moves_of(group).load(slot, page);
}

void DevicePages::queue_moves() {
  const DeviceGuard guard(device_);
  for (const Group& group : groups_) group.moves->queue();
}

MoveTimes DevicePages::load_times() const {
  MoveTimes times;
  for (const Group& group : groups_) {
    times.n_bytes += group.moves->load_times().n_bytes;
    times.seconds += group.moves->load_times().seconds;
  }
  return times;
}

PagedLayer DevicePages::layer(std::int32_t layer) const {
  const LayerPlace place = places_[static_cast<std::size_t>(layer)];
  const Group& group = group_at(place.group);
  const std::int64_t row = head_dim_, slot = n_kv_heads_ * row, tensor = page_size_ * slot;  // elements
  const std::int64_t page = group.n_layers * 2 * tensor;
  const std::int64_t n_scales = group.memory.n_all_pages * group.memory.scale_bytes / 4;  // of K, or of V, of a layer

  PagedLayer out;
  const auto fill = [&](int part, PagedTensor& tensor_out, KvScale& scale, AppendTarget& target) {
    std::byte* data = group.pages.data() + (place.index * 2 + part) * tensor * element_bytes(dtype_);
    tensor_out = {data, page, slot, row, group.memory.n_pages};
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
