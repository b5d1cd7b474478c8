// Runs the wide items of a planned attention with products of warpgroups.
#pragma once

#include <string>

#include "paged_attention_launch.h"

namespace llm_decoder {
namespace gpu {

constexpr int kHopperRows = 128;  // of an item

// What of the launch or of the device keeps its wide items from this path; empty where nothing does.
std::string why_not_hopper(const PagedAttentionLaunch& launch, const DeviceProperties& device);

// The wide items alone, of up to kHopperRows rows. Where pages hold whole boxes of keys, tiles come by tensor map.
void hopper_attention(const PagedAttentionLaunch& launch, const DeviceProperties& device, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
