// Float rows to fp8 (e4m3), once at load: scale = max|w| / 448 a row, w / scale to the nearest, ties to even. A row of
// zeros has scale 1; one that is not finite has a scale that is not.
#pragma once

#include <cstdint>

namespace llm_decoder {
namespace gpu {

// w [n, k], rows row_stride elements apart; q [n, k] without gaps, bits of Fp8; scale [n].
void quantize_f8_rows(const float* w, std::int64_t row_stride, std::int64_t n, std::int64_t k, std::uint8_t* q,
                      float* scale);

}  // namespace gpu
}  // namespace llm_decoder
