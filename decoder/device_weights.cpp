#include "device_weights.h"

#include "llm_decoder/errors.h"

namespace llm_decoder {
namespace gpu {
namespace {

using Layout = WeightView::Layout;

GpuWeightFormat format_of(const std::string& name, Layout layout) {
  switch (layout) {
    case Layout::half:
      return GpuWeightFormat::half;
    case Layout::w8:
      return GpuWeightFormat::w8;
    case Layout::w4:
      return GpuWeightFormat::w4;
    case Layout::f8:
      return GpuWeightFormat::f8;
    default:
      break;
  }
  check_arg(false, "CUDADecoder.set_weight", name,
            " must be a vector, half, w8, w4 or f8; pack_gpu_half and its like return such matrices");
  return {};
}

}  // namespace

void DeviceWeights::set(const std::string& name, const WeightView& view, GpuProducts& products) {
  WeightView& kept = named_[name];
  kept = view;
  if (view.layout == Layout::vector) {
    const auto* values = static_cast<const float*>(view.data);
    std::vector<float>& vector = vectors_[name];
    vector.assign(values, values + view.n);
    kept.data = vector.data();
    return;
  }
  GpuMatrixSource source;
  source.format = format_of(name, view.layout);
  source.n = static_cast<int>(view.n);
  source.k = static_cast<int>(view.k);
  source.packed = {static_cast<const std::uint8_t*>(view.data),
                   static_cast<std::size_t>(packed_gpu_bytes(source.format, view.n, view.k))};
  if (view.scales != nullptr) source.scale = {view.scales, static_cast<std::size_t>(view.n)};
  matrices_[name] = products.load(name.c_str(), source);
  kept.data = kept.scales = nullptr;
}

// Checks as on the host, gives what is on the device.
class DeviceWeights::Resolver {
 public:
  Resolver(DeviceWeights& weights, GpuProducts& products, Stream stream)
      : weights_(weights),
        products_(products),
        stream_(stream),
        checks_("CUDADecoder.finalize", weights.named_, Products::gpu) {}

  const float* vector(const std::string& name, std::int64_t n) {
    const float* values = checks_.vector(name, n);
    DeviceArray<float> array(n);
    copy_memory(array.data(), values, array.n_bytes(), stream_);
    weights_.device_vectors_.push_back(std::move(array));
    return weights_.device_vectors_.back().data();
  }

  const GpuMatrix* matrix(const std::string& name, std::int64_t n, std::int64_t k) {
    const float* bias = checks_.matrix(name, n, k).bias;
    GpuMatrix& matrix = weights_.matrices_.at(name);
    if (bias != nullptr) products_.set_bias(matrix, {bias, static_cast<std::size_t>(n)});
    return &matrix;
  }

  bool has(const std::string& name) const { return checks_.has(name); }
  void check_all_used() const { checks_.check_all_used(); }

 private:
  DeviceWeights& weights_;
  GpuProducts& products_;
  const Stream stream_;
  WeightResolver checks_;
};

DeviceDecoderWeights DeviceWeights::resolve(const ModelConfig& config, GpuProducts& products, Stream stream) {
  Resolver resolver(*this, products, stream);
  DeviceDecoderWeights resolved = resolve_decoder_weights<const GpuMatrix*>(config, resolver);
  synchronize(stream);
  vectors_.clear();
  named_.clear();
  return resolved;
}

std::int64_t DeviceWeights::n_bytes() const {
  std::int64_t n = 0;
  for (const auto& [name, matrix] : matrices_) n += matrix.n_bytes();
  for (const DeviceArray<float>& vector : device_vectors_) n += vector.n_bytes();
  return n;
}

}  // namespace gpu
}  // namespace llm_decoder
