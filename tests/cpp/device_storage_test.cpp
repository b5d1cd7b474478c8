// Pages in a device's memory: where each layer finds its own, and what moves do to them.
#include "device_storage.h"

#include <cstring>
#include <memory>
#include <vector>

#include "check.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr std::int32_t kPageSize = 16, kHeads = 2, kHeadDim = 24, kPages = 5, kSlots = 3;

// Layers 0 and 2 in the first group, layer 1 in the second.
KvCacheConfig config_of(Dtype dtype) {
  KvCacheConfig config;
  config.groups = {{kPages, 0, kSlots}, {kPages + 1, 40, kSlots}};
  config.layer_groups = {0, 1, 0};
  config.page_size = kPageSize;
  config.n_kv_heads = kHeads;
  config.head_dim = kHeadDim;
  config.dtype = dtype;
  return config;
}

std::unique_ptr<DevicePages> make_pages(const KvCacheConfig& config) {
  return std::make_unique<DevicePages>(config, std::make_shared<OwnedStream>());
}

std::byte* bytes_of(const PagedTensor& tensor, Dtype dtype, std::int64_t page, int slot, int head) {
  auto* data = static_cast<std::byte*>(const_cast<void*>(tensor.data));
  return data +
         (page * tensor.page_stride + slot * tensor.slot_stride + head * tensor.head_stride) * element_bytes(dtype);
}

// Every row of K and V of a page, and its scales, in one layer.
template <class Row, class Scale>
void for_each_row(const DevicePages& pages, Dtype dtype, int layer, std::int64_t page, const Row& row,
                  const Scale& scale) {
  const PagedLayer l = pages.layer(layer);
  for (int part = 0; part < 2; ++part) {
    const PagedTensor& tensor = part == 0 ? l.k : l.v;
    float* const scales = (part == 0 ? l.k_target : l.v_target).per_slot;
    for (int slot = 0; slot < kPageSize; ++slot) {
      for (int head = 0; head < kHeads; ++head) {
        row(bytes_of(tensor, dtype, page, slot, head), part);
        if (scales != nullptr) scale(scales[(page * kPageSize + slot) * kHeads + head], part);
      }
    }
  }
}

int mark(int layer, int part, std::int64_t tag) { return static_cast<int>(tag * 16 + layer * 2 + part + 1); }

void write(const DevicePages& pages, Dtype dtype, int layer, std::int64_t page, std::int64_t tag) {
  for_each_row(
      pages, dtype, layer, page,
      [&](std::byte* row, int part) {
        std::memset(row, mark(layer, part, tag), static_cast<std::size_t>(kHeadDim * element_bytes(dtype)));
      },
      [&](float& scale, int part) { scale = static_cast<float>(mark(layer, part, tag)); });
}

bool holds(const DevicePages& pages, Dtype dtype, int layer, std::int64_t page, std::int64_t tag) {
  bool is_same = true;
  for_each_row(
      pages, dtype, layer, page,
      [&](const std::byte* row, int part) {
        for (std::int64_t i = 0; i < kHeadDim * element_bytes(dtype); ++i) {
          is_same = is_same && row[i] == std::byte(mark(layer, part, tag));
        }
      },
      [&](float scale, int part) { is_same = is_same && scale == static_cast<float>(mark(layer, part, tag)); });
  return is_same;
}

template <class Fn>
void with_written_pages(const Fn& fn) {
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::fp8, Dtype::s8}) {
    const auto pages = make_pages(config_of(dtype));
    for (const int layer : {0, 1, 2}) {
      for (int page = 0; page < kPages; ++page) write(*pages, dtype, layer, page, page);
    }
    fn(*pages, dtype);
  }
}

TEST(every_layer_has_pages_of_its_own) {
  with_written_pages([](DevicePages& pages, Dtype dtype) {
    for (const int layer : {0, 1, 2}) {
      for (int page = 0; page < kPages; ++page) CHECK(holds(pages, dtype, layer, page, page));
      CHECK_EQ(pages.layer(layer).k.n_pages, layer == 1 ? kPages + 1 : kPages);
    }
  });
}

TEST(a_copy_takes_all_layers_of_its_group_and_no_other) {
  with_written_pages([](DevicePages& pages, Dtype dtype) {
    pages.copy_page(0, 1, 4);
    pages.copy_page(0, 4, 0);  // after the first
    pages.queue_moves();
    for (const int layer : {0, 2}) {
      CHECK(holds(pages, dtype, layer, 4, 1));
      CHECK(holds(pages, dtype, layer, 0, 1));
      CHECK(holds(pages, dtype, layer, 1, 1));
      CHECK(holds(pages, dtype, layer, 2, 2));
    }
    for (int page = 0; page < kPages; ++page) CHECK(holds(pages, dtype, 1, page, page));
  });
}

TEST(a_page_comes_back_from_the_second_tier_as_it_was) {
  with_written_pages([](DevicePages& pages, Dtype dtype) {
    for (int slot = 0; slot < kSlots; ++slot) {
      pages.store(0, slot, slot);
      pages.store(1, slot + 1, slot);
    }
    pages.queue_moves();
    for (const int layer : {0, 1, 2}) {
      for (int page = 0; page < kPages; ++page) write(pages, dtype, layer, page, 7);
    }
    pages.load(0, 2, 4);
    pages.load(1, 0, 3);
    pages.queue_moves();
    for (const int layer : {0, 2}) {
      CHECK(holds(pages, dtype, layer, 4, 2));
      CHECK(holds(pages, dtype, layer, 3, 7));
    }
    CHECK(holds(pages, dtype, 1, 3, 1));
    CHECK(holds(pages, dtype, 1, 4, 7));
  });
}

TEST(a_page_has_the_bytes_of_its_elements_and_scales) {
  constexpr std::int64_t kElements = 2 * kPageSize * kHeads * kHeadDim, kScales = 2 * kPageSize * kHeads * 4;
  CHECK_EQ(make_pages(config_of(Dtype::bf16))->page_bytes(0), 2 * 2 * kElements);
  CHECK_EQ(make_pages(config_of(Dtype::f16))->page_bytes(1), 2 * kElements);
  CHECK_EQ(make_pages(config_of(Dtype::s8))->page_bytes(0), 2 * (kElements + kScales));
}

TEST(what_kernels_do_not_read_is_refused) {
  CHECK_THROWS(std::invalid_argument, "must be bfloat16, float16, fp8 or int8, got float32",
               make_pages(config_of(Dtype::f32)));
  KvCacheConfig config = config_of(Dtype::bf16);
  config.head_dim = 20;
  CHECK_THROWS(std::invalid_argument, "multiple of 8", make_pages(config));
  config = config_of(Dtype::bf16);
  config.layer_groups = {0, 0, 0};
  CHECK_THROWS(std::invalid_argument, "must have pages and layers", make_pages(config));
}

}  // namespace
