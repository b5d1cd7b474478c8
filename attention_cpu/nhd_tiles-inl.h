// Tiles of paged_kv.h out of nhd pages, value for value. Included after attention_span-inl.h.
//
// Sixteen slots at a time, which are whole lines of a tile: K is turned from channels beside each other to slots beside
// each other. Where fewer are wanted, the dead slots beside them get copies. Channels past head_dim become zero.
#pragma once

struct NhdSlots {
  std::int32_t page, kv_head;
  SlotRange slots;  // of the page, not empty
};

// The rows of sixteen slots.
template <class Element>
struct NhdRows {
  const Element* row[kLanes];
  float scale[kLanes];

  NhdRows(const NhdTensor& from, const NhdSlots& of, std::int32_t first_slot) {
    for (std::int32_t i = 0; i < kLanes; ++i) {
      const std::int32_t slot = larger(smaller(first_slot + i, of.slots.end - 1), of.slots.begin);
      row[i] = reinterpret_cast<const Element*>(from.row(of.page, slot, of.kv_head));
      scale[i] = from.scale_of(of.page, slot, of.kv_head);
    }
  }
};

// Calls fn(first slot) for the sixteens that hold the slots.
template <class Fn>
inline void for_lines(SlotRange slots, const Fn& fn) {
  for (std::int32_t slot = slots.begin / kLanes * kLanes; slot < slots.end; slot += kLanes) fn(slot);
}

template <class Element>
inline void widen_channels(const Element* from, std::int32_t n, float scale, float* to) {
  for (std::int32_t i = 0; i < n; ++i) to[i] = get(from + i) * scale;
}

template <class From, class To>
inline void make_float_lines(const PagedKvView& kv, const NhdSlots& of, std::int32_t slot, To* k_tile, To* v_tile) {
  const NhdRows<From> keys(kv.nhd->k, of, slot), values(kv.nhd->v, of, slot);
  float floats[kLanes][kLanes];
  for (std::int32_t channel = 0; channel < kv.head_dim; channel += kLanes) {
    const std::int32_t n = smaller(kv.head_dim - channel, kLanes);
    for (std::int32_t i = 0; i < kLanes; ++i) widen_channels(keys.row[i] + channel, n, keys.scale[i], floats[i]);
    for (std::int32_t j = 0; j < n; ++j) {
      To* line = k_tile + std::int64_t{channel + j} * kv.page_size + slot;
      for (std::int32_t i = 0; i < kLanes; ++i) put(line + i, floats[i][j]);
    }
  }
  for (std::int32_t i = 0; i < kLanes; ++i) {
    To* to = v_tile + std::int64_t{slot + i} * kv.head_dim_padded;
    for (std::int32_t channel = 0; channel < kv.head_dim; ++channel) {
      put(to + channel, get(values.row[i] + channel) * values.scale[i]);
    }
    for (std::int32_t channel = kv.head_dim; channel < kv.head_dim_padded; ++channel) put(to + channel, 0.0f);
  }
}

template <class From, class To>
inline void make_float_tile(const PagedKvView& kv, const NhdSlots& of, std::int32_t number) {
  To *k_tile = reinterpret_cast<To*>(kv.k_tile(number, 0)), *v_tile = reinterpret_cast<To*>(kv.v_tile(number, 0));
  for_lines(of.slots, [&](std::int32_t slot) { make_float_lines<From>(kv, of, slot, k_tile, v_tile); });
}

// As in append_kv, a zero value must not take the range of its page, hence its scale.
inline float s8_value_scale(const std::int8_t* value, std::int32_t head_dim, float scale) {
  std::int32_t any = 0;
  for (std::int32_t i = 0; i < head_dim; ++i) any |= value[i];
  return any == 0 ? kSmallestNormal : scale;
}

// Four channels of a slot stay neighbours; head_dim is a multiple of four.
inline void make_s8_keys(const PagedKvView& kv, const NhdRows<std::int8_t>& keys, std::int32_t slot,
                         std::uint8_t* tile) {
  constexpr std::uint32_t kBias = 0x80808080u;
  for (std::int32_t channel = 0; channel < kv.head_dim_padded; channel += kDotWidth) {
    std::uint8_t* line = tile + (std::int64_t{channel / kDotWidth} * kv.page_size + slot) * kDotWidth;
    for (std::int32_t i = 0; i < kLanes; ++i) {
      std::uint32_t quad = 0;
      if (channel < kv.head_dim) __builtin_memcpy(&quad, keys.row[i] + channel, sizeof(quad));
      quad ^= kBias;
      __builtin_memcpy(line + i * kDotWidth, &quad, sizeof(quad));
    }
  }
}

// Four slots of a channel become neighbours.
inline void make_s8_values(const PagedKvView& kv, const NhdRows<std::int8_t>& values, std::int32_t slot,
                           std::int8_t* tile) {
  const std::int64_t hd = kv.head_dim_padded;
  for (std::int32_t i = 0; i < kLanes; i += kDotWidth) {
    const std::int8_t* const* rows = values.row + i;
    std::int8_t* quads = tile + (slot + i) / kDotWidth * hd * kDotWidth;
    for (std::int32_t channel = 0; channel < kv.head_dim; ++channel) {
      for (std::int32_t j = 0; j < kDotWidth; ++j) quads[channel * kDotWidth + j] = rows[j][channel];
    }
    for (std::int64_t byte = std::int64_t{kv.head_dim} * kDotWidth; byte < hd * kDotWidth; ++byte) quads[byte] = 0;
  }
}

inline void make_s8_tile(const PagedKvView& kv, const NhdSlots& of, std::int32_t number) {
  std::uint8_t* k_tile = reinterpret_cast<std::uint8_t*>(kv.k_tile(number, 0));
  std::int8_t* v_tile = reinterpret_cast<std::int8_t*>(kv.v_tile(number, 0));
  float *k_scale = kv.k_scales(number, 0), *v_scale = kv.v_scales(number, 0);
  for_lines(of.slots, [&](std::int32_t slot) {
    const NhdRows<std::int8_t> keys(kv.nhd->k, of, slot), values(kv.nhd->v, of, slot);
    make_s8_keys(kv, keys, slot, k_tile);
    make_s8_values(kv, values, slot, v_tile);
    for (std::int32_t i = 0; i < kLanes; ++i) {
      k_scale[slot + i] = keys.scale[i];
      v_scale[slot + i] = s8_value_scale(values.row[i], kv.head_dim, values.scale[i]);
    }
  });
}

// Tile `number` of the view, which names scratch: these slots of a page. Other slots are dead.
inline void make_tile(const PagedKvView& kv, const NhdSlots& of, std::int32_t number) {
  switch (kv.nhd->dtype) {
    case Dtype::f32:
      return make_float_tile<float, float>(kv, of, number);
    case Dtype::f16:
      return make_float_tile<Fp16, float>(kv, of, number);
    case Dtype::fp8:
      return make_float_tile<Fp8, float>(kv, of, number);
    case Dtype::bf16:
      return kv.dtype == Dtype::bf16 ? make_float_tile<Bf16, Bf16>(kv, of, number)
                                     : make_float_tile<Bf16, float>(kv, of, number);
    case Dtype::s8:
      return make_s8_tile(kv, of, number);
  }
}
