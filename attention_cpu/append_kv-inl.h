// One token's key and value into its page's slot. Included after floats-inl.h and rows-inl.h.
#pragma once

// element of a padded head vector, 0 past head_dim.
inline float element_or_zero(const float* x, std::int32_t head_dim, std::int32_t i) {
  return i < head_dim ? x[i] : 0.0f;
}

template <class Element>
inline void append_floats(const PagedKvView& kv, std::int32_t page, std::int32_t slot, std::int32_t head,
                          const float* key, const float* value) {
  Element* k_tile = reinterpret_cast<Element*>(kv.k_tile(page, head));
  Element* v_row =
      reinterpret_cast<Element*>(kv.v_tile(page, head)) + static_cast<std::int64_t>(slot) * kv.head_dim_padded;
  for (std::int32_t i = 0; i < kv.head_dim_padded; ++i) {
    put(k_tile + static_cast<std::int64_t>(i) * kv.page_size + slot, element_or_zero(key, kv.head_dim, i));
    put(v_row + i, element_or_zero(value, kv.head_dim, i));
  }
}

// Four channels of a position are neighbours; bytes are biased by 128.
inline void scatter_key(const PagedKvView& kv, std::int32_t slot, const float* key, float scale, std::uint8_t* tile) {
  const F32 inverse_scale = splat(1.0f / scale);
  for (std::int32_t i = 0; i < kv.head_dim_padded; i += kLanes) {
    alignas(kLanes) std::int8_t q[kLanes];
    store_bytes(q, quantize_at(key, kv.head_dim, i, inverse_scale));
    for (std::int32_t j = 0; j < kLanes; j += kDotWidth) {
      std::uint32_t quad;
      __builtin_memcpy(&quad, q + j, sizeof(quad));
      quad ^= 0x80808080u;  // of each byte, + 128
      const std::int64_t place = static_cast<std::int64_t>((i + j) / kDotWidth) * kv.page_size + slot;
      __builtin_memcpy(tile + place * kDotWidth, &quad, sizeof(quad));
    }
  }
}

// Four positions of a channel are neighbours.
inline void scatter_value(const PagedKvView& kv, std::int32_t slot, const float* value, float scale,
                          std::int8_t* tile) {
  const F32 inverse_scale = splat(1.0f / scale);
  std::int8_t* quads = tile + static_cast<std::int64_t>(slot / kDotWidth) * kv.head_dim_padded * kDotWidth;
  for (std::int32_t i = 0; i < kv.head_dim_padded; i += kLanes) {
    alignas(kLanes) std::int8_t q[kLanes];
    store_bytes(q, quantize_at(value, kv.head_dim, i, inverse_scale));
    for (std::int32_t j = 0; j < kLanes; ++j) quads[(i + j) * kDotWidth + slot % kDotWidth] = q[j];
  }
}

// Attention quantises p * v_scale against its page's largest: a zero value must not take that range, hence its scale.
inline void append_s8(const PagedKvView& kv, std::int32_t page, std::int32_t slot, std::int32_t head, const float* key,
                      const float* value) {
  float& k_scale = kv.k_scales(page, head)[slot];
  float& v_scale = kv.v_scales(page, head)[slot];
  k_scale = int8_scale(key, kv.head_dim, 1.0f);
  v_scale = int8_scale(value, kv.head_dim, kSmallestNormal);
  scatter_key(kv, slot, key, k_scale, reinterpret_cast<std::uint8_t*>(kv.k_tile(page, head)));
  scatter_value(kv, slot, value, v_scale, reinterpret_cast<std::int8_t*>(kv.v_tile(page, head)));
}

void append_kv(const PagedKvView& kv, std::int32_t page, std::int32_t slot, const float* key, const float* value) {
  for (std::int32_t head = 0; head < kv.n_kv_heads; ++head) {
    const float* head_key = key + static_cast<std::int64_t>(head) * kv.head_dim;
    const float* head_value = value + static_cast<std::int64_t>(head) * kv.head_dim;
    if (kv.dtype == Dtype::f32) {
      append_floats<float>(kv, page, slot, head, head_key, head_value);
    } else if (kv.dtype == Dtype::bf16) {
      append_floats<Bf16>(kv, page, slot, head, head_key, head_value);
    } else {
      append_s8(kv, page, slot, head, head_key, head_value);
    }
  }
}
