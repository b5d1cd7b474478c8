// Tiles of paged_kv.h out of nhd pages, value for value. Included after attention_span-inl.h.
//
// Sixteen slots at a time: K is turned from channels beside each other to slots beside each other, so a line of the
// tile is written at once. Channels past head_dim become zero.
#pragma once

struct NhdSlots {
  std::int32_t page, kv_head;
  SlotRange slots;
};

// Calls fn(slot, n) for runs of at most sixteen slots.
template <class Fn>
inline void for_slots(SlotRange slots, const Fn& fn) {
  for (std::int32_t slot = slots.begin; slot < slots.end; slot += kLanes) fn(slot, smaller(slots.end - slot, kLanes));
}

template <class Element>
struct NhdRows {
  const Element* row[kLanes];
  float scale[kLanes];

  NhdRows(const NhdTensor& from, const NhdSlots& of, std::int32_t slot, std::int32_t n) {
    for (std::int32_t i = 0; i < n; ++i) {
      row[i] = reinterpret_cast<const Element*>(from.row(of.page, slot + i, of.kv_head));
      scale[i] = from.scale_of(of.page, slot + i, of.kv_head);
    }
  }
};

template <class From, class To>
inline void make_float_tile(const PagedKvView& kv, const NhdSlots& of, std::byte* k_tile, std::byte* v_tile) {
  for_slots(of.slots, [&](std::int32_t slot, std::int32_t n) {
    const NhdRows<From> keys(kv.nhd->k, of, slot, n);
    for (std::int64_t channel = 0; channel < kv.head_dim; ++channel) {
      To* to = reinterpret_cast<To*>(k_tile) + channel * kv.page_size + slot;
      for (std::int32_t i = 0; i < n; ++i) put(to + i, get(keys.row[i] + channel) * keys.scale[i]);
    }
    const NhdRows<From> values(kv.nhd->v, of, slot, n);
    for (std::int32_t i = 0; i < n; ++i) {
      To* to = reinterpret_cast<To*>(v_tile) + std::int64_t{slot + i} * kv.head_dim_padded;
      for (std::int32_t channel = 0; channel < kv.head_dim; ++channel) {
        put(to + channel, get(values.row[i] + channel) * values.scale[i]);
      }
      for (std::int32_t channel = kv.head_dim; channel < kv.head_dim_padded; ++channel) put(to + channel, 0.0f);
    }
  });
}

// As in append_kv, a zero value must not take the range of its page, hence its scale.
inline float s8_value_scale(const std::int8_t* value, std::int32_t head_dim, float scale) {
  std::int32_t any = 0;
  for (std::int32_t i = 0; i < head_dim; ++i) any |= value[i];
  return any == 0 ? kSmallestNormal : scale;
}

inline void make_s8_tile(const PagedKvView& kv, const NhdSlots& of, std::uint8_t* k_tile, std::int8_t* v_tile,
                         float* k_scale, float* v_scale) {
  const std::int32_t head_dim = kv.head_dim, hd = kv.head_dim_padded;
  for_slots(of.slots, [&](std::int32_t slot, std::int32_t n) {
    const NhdRows<std::int8_t> keys(kv.nhd->k, of, slot, n), values(kv.nhd->v, of, slot, n);
    for (std::int32_t i = 0; i < n; ++i) {
      k_scale[slot + i] = keys.scale[i];
      v_scale[slot + i] = s8_value_scale(values.row[i], head_dim, values.scale[i]);
    }
    for (std::int32_t channel = 0; channel < hd; ++channel) {
      std::uint8_t* quads = k_tile + (std::int64_t{channel / kDotWidth} * kv.page_size + slot) * kDotWidth;
      for (std::int32_t i = 0; i < n; ++i) {
        const std::int32_t key = channel < head_dim ? keys.row[i][channel] : 0;
        quads[i * kDotWidth + channel % kDotWidth] = static_cast<std::uint8_t>(key + 128);
      }
    }
    for (std::int32_t i = 0; i < n; ++i) {
      const std::int32_t at = slot + i;
      std::int8_t* quads = v_tile + std::int64_t{at / kDotWidth} * hd * kDotWidth + at % kDotWidth;
      for (std::int32_t channel = 0; channel < hd; ++channel) {
        quads[channel * kDotWidth] = channel < head_dim ? values.row[i][channel] : std::int8_t{0};
      }
    }
  });
}

// Tile `number` of the view, which names scratch: these slots of a page; the other slots keep what they hold.
inline void make_tile(const PagedKvView& kv, const NhdSlots& of, std::int32_t number) {
  std::byte *k_tile = kv.k_tile(number, 0), *v_tile = kv.v_tile(number, 0);
  switch (kv.nhd->dtype) {
    case Dtype::f32:
      return make_float_tile<float, float>(kv, of, k_tile, v_tile);
    case Dtype::f16:
      return make_float_tile<Fp16, float>(kv, of, k_tile, v_tile);
    case Dtype::fp8:
      return make_float_tile<Fp8, float>(kv, of, k_tile, v_tile);
    case Dtype::bf16:
      return kv.dtype == Dtype::bf16 ? make_float_tile<Bf16, Bf16>(kv, of, k_tile, v_tile)
                                     : make_float_tile<Bf16, float>(kv, of, k_tile, v_tile);
    case Dtype::s8:
      return make_s8_tile(kv, of, reinterpret_cast<std::uint8_t*>(k_tile), reinterpret_cast<std::int8_t*>(v_tile),
                          kv.k_scales(number, 0), kv.v_scales(number, 0));
  }
}
