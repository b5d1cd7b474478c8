// A decoder's weights on a device: copied there as they come, so that the host need not hold them all; looked up by
// name once all are there.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "device_memory.h"
#include "gpu_products.h"
#include "llm_decoder/decoder.h"
#include "llm_decoder/model_config.h"
#include "weights.h"

namespace llm_decoder {
namespace gpu {

using DeviceDecoderWeights = DecoderWeightsOf<const GpuMatrix*>;  // vectors are on the device

class DeviceWeights {
 public:
  // view: on the host, half, w8, w4 and f8 matrices packed as in pack_gpu_weights.h. Copied when it returns. Throws
  // std::invalid_argument for sizes that contradict each other, OutOfMemory.
  void set(const std::string& name, const WeightView& view, GpuProducts& products);

  // Throws std::invalid_argument naming the weight that is missing, unknown, or of a wrong shape or layout. What it
  // returns points to what is held here.
  DeviceDecoderWeights resolve(const ModelConfig& config, GpuProducts& products, Stream stream);

  std::int64_t n_bytes() const;  // of the device's memory

 private:
  class Resolver;

  NamedWeights named_;  // matrices without memory
  std::map<std::string, std::vector<float>> vectors_;
  std::map<std::string, GpuMatrix> matrices_;
  std::vector<DeviceArray<float>> device_vectors_;
};

}  // namespace gpu
}  // namespace llm_decoder
