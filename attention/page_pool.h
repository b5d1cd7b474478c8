// Pages of one tensor, whatever they hold, as those who move them see them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llm_decoder {
namespace gpu {

// Pages one after the other, of K or V of a layer, or of their scales.
struct PagePool {
  std::byte* pages = nullptr;   // [n_pages, page_bytes], aligned to 16 bytes
  std::int64_t page_bytes = 0;  // a multiple of 16
};

}  // namespace gpu
}  // namespace llm_decoder
