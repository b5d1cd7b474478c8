// Appends a step's keys and values to their pages; normalises and rotates queries and keys on the way.
#pragma once

#include "append_kv.h"

namespace llm_decoder {
namespace gpu {

struct AppendKvLaunch {
  Dtype dtype = Dtype::bf16;       // of q, key and value: f32, bf16, f16
  Dtype page_dtype = Dtype::bf16;  // bf16, f16, fp8, s8
  AppendKvArgs args;
};

// Throws std::invalid_argument for what no kernel was compiled for, and says what is. What lies on the device is
// trusted: slots are in the pages or negative, no two tokens have the same.
void append_kv(const AppendKvLaunch& launch, Stream stream);

}  // namespace gpu
}  // namespace llm_decoder
