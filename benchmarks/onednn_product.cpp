// One product of oneDNN, weights packed as it likes them: out float32 [m, n] = (a int8 [m, k] . w int8 [k, n]) *
// scale[n]. usage: onednn_product M K N COPIES   prints GOPS, the median of 5 walks over COPIES matrices. Threads:
// OMP_NUM_THREADS.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"

using dnnl::memory;

namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void fill(memory& bytes) {
  auto* p = static_cast<std::int8_t*>(bytes.get_data_handle());
  for (std::size_t i = 0; i < bytes.get_desc().get_size(); ++i)
    p[i] = static_cast<std::int8_t>(std::rand() % 255 - 127);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return std::fprintf(stderr, "usage: %s M K N COPIES\n", argv[0]), 2;
  const memory::dim m = std::atol(argv[1]), k = std::atol(argv[2]), n = std::atol(argv[3]);
  const int n_copies = std::atoi(argv[4]);
  dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);

  const memory::desc a_desc({m, k}, memory::data_type::s8, memory::format_tag::ab);
  const memory::desc plain_desc({k, n}, memory::data_type::s8, memory::format_tag::ab);
  const memory::desc any_desc({k, n}, memory::data_type::s8, memory::format_tag::any);
  const memory::desc out_desc({m, n}, memory::data_type::f32, memory::format_tag::ab);
  const memory::desc scale_desc({n}, memory::data_type::f32, memory::format_tag::a);
  dnnl::primitive_attr attributes;
  attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 2);
  const dnnl::matmul::primitive_desc chosen(engine, a_desc, any_desc, out_desc, attributes);
  const dnnl::matmul product(chosen);

  memory a(a_desc, engine), out(out_desc, engine), plain(plain_desc, engine), scale(scale_desc, engine);
  fill(a);
  fill(plain);
  std::fill_n(static_cast<float*>(scale.get_data_handle()), n, 0.01f);
  std::vector<memory> weights;
  for (int i = 0; i < n_copies; ++i) {
    weights.emplace_back(chosen.weights_desc(), engine);
    dnnl::reorder(plain, weights.back()).execute(stream, plain, weights.back());
  }
  stream.wait();

  std::vector<double> times;
  for (int run = 0; run < 6; ++run) {
    const double begin = now_s();
    for (memory& w : weights) {
      product.execute(stream, {{DNNL_ARG_SRC, a},
                               {DNNL_ARG_WEIGHTS, w},
                               {DNNL_ARG_DST, out},
                               {DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, scale}});
    }
    stream.wait();
    if (run > 0) times.push_back(now_s() - begin);  // the first warms up
  }
  std::nth_element(times.begin(), times.begin() + 2, times.end());
  std::printf("%.1f %s\n", 2.0 * m * n * k * n_copies / times[2] * 1e-9, chosen.impl_info_str());
}
