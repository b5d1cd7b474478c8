// llm_decoder._core: the CPU core as Python sees it.
#include <pybind11/pybind11.h>

namespace llm_decoder {

void register_kv_cache(pybind11::module_& m);
void register_kernels(pybind11::module_& m);
void register_sampling(pybind11::module_& m);
void register_decoder(pybind11::module_& m);
void register_encoder(pybind11::module_& m);
void register_machine_limits(pybind11::module_& m);
void register_prompt_lookup(pybind11::module_& m);
void register_dlpack(pybind11::module_& m);
void register_attention_ops(pybind11::module_& m);
void register_row_ops(pybind11::module_& m);
void register_moe_ops(pybind11::module_& m);
void register_sampling_ops(pybind11::module_& m);
void register_product_ops(pybind11::module_& m);

}  // namespace llm_decoder

PYBIND11_MODULE(_core, m) {
  m.doc() = "The CPU core of llm_decoder: paged KV cache, kernels, sampling, INT8Decoder, Encoder.";
  llm_decoder::register_kv_cache(m);
  llm_decoder::register_kernels(m);
  llm_decoder::register_sampling(m);
  llm_decoder::register_decoder(m);
  llm_decoder::register_encoder(m);
  llm_decoder::register_machine_limits(m);
  llm_decoder::register_prompt_lookup(m);
  llm_decoder::register_dlpack(m);
  llm_decoder::register_attention_ops(m);
  llm_decoder::register_row_ops(m);
  llm_decoder::register_moe_ops(m);
  llm_decoder::register_sampling_ops(m);
  llm_decoder::register_product_ops(m);
}
