// A step's keys and values into their pages, quantised where pages are bytes; on the way query and key heads may be
// normalised (RMS) and rotated. With keys and values alone it is reshape_and_cache; with queries beside them, all three
// out of the packed rows of one product, it is all that a decoder does between that product and attention, in one pass.
//
// Memory bounds it: each element is read once from memory and written once. A row, one head of one token, belongs to as
// many lanes as it has chunks of 16 bytes of halves: a warp holds several short heads or one of 256, and neighbouring
// heads lie in neighbouring lanes on both sides. What the rows of a token share (angles, norm weights) and the other
// half of a rotated pair come a second time out of the first cache.
#pragma once

#include "machine.h"
#include "row_chunk.h"

namespace llm_decoder {
namespace gpu {

// Where K or V of all pages goes: element (page, slot, kv_head, d) at page * page_stride + slot * slot_stride + kv_head
// * head_stride + d. What is written is x / scale: one scale a slot and head where there is per_slot, computed here and
// written there; else one a head where there is per_head, else one for all.
struct AppendTarget {
  void* data = nullptr;
  std::int64_t page_stride = 0, slot_stride = 0, head_stride = 0;  // elements
  float scale = 1.0f;
  const float* per_head = nullptr;  // [n_kv_heads]
  float* per_slot = nullptr;        // [n_pages, page_size, n_kv_heads]
};

struct AppendKvArgs {
  void* q = nullptr;  // [n_tokens, n_heads, head_dim], changed in place
  std::int64_t q_token_stride = 0, q_head_stride = 0;
  const void* key = nullptr;  // [n_tokens, n_kv_heads, head_dim]
  std::int64_t key_token_stride = 0, key_head_stride = 0;
  const void* value = nullptr;  // the same shape
  std::int64_t value_token_stride = 0, value_head_stride = 0;
  const std::int64_t* slot_mapping = nullptr;  // [n_tokens]: page * page_size + slot; negative: not appended
  AppendTarget k_pages, v_pages;
  int n_tokens = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, page_size = 0;  // n_heads 0: no queries

  const float *q_norm = nullptr, *k_norm = nullptr;  // [head_dim] or null: x / sqrt(mean(x^2) + eps) * weight
  float norm_eps = 0.0f;
  // The first 2 * half channels of queries and keys are rotated: channel i with i + half or, interleaved, 2 i with
  // 2 i + 1.
  int half = 0;
  const float *cos = nullptr, *sin = nullptr;  // [n_tokens, half]
  bool is_interleaved = false;

  int row_lanes = 0;  // row_lanes_of(head_dim), the launcher's
};

constexpr int kAppendThreads = 128;

// T: of the activations, float, Bf16 or Fp16. Page: of the pages, Bf16, Fp16, Fp8 or Int8.
template <class T, class Page>
class AppendRow {
 public:
  GPU_FUNCTION explicit AppendRow(const AppendKvArgs& args) : args_(args) {
    const int warp = block_index().x * (kAppendThreads / kWarpSize) + warp_index();
    const int row = warp * (kWarpSize / args.row_lanes) + lane() / args.row_lanes;
    const int rows_of_token = args.n_heads + 2 * args.n_kv_heads;
    token_ = row / rows_of_token;
    head_ = row % rows_of_token;
    channel_ = lane() % args.row_lanes * kChunk;
    is_here_ = token_ < args.n_tokens && channel_ < args.head_dim;
    if (head_ < args.n_heads) {
      kind_ = Kind::query;
      norm_ = args.q_norm;
      x_ = row_of(args.q, args.q_token_stride, args.q_head_stride);
    } else if (head_ < args.n_heads + args.n_kv_heads) {
      kind_ = Kind::key;
      norm_ = args.k_norm;
      head_ -= args.n_heads;
      x_ = row_of(args.key, args.key_token_stride, args.key_head_stride);
    } else {
      kind_ = Kind::value;
      norm_ = nullptr;
      head_ -= args.n_heads + args.n_kv_heads;
      x_ = row_of(args.value, args.value_token_stride, args.value_head_stride);
    }
  }

  GPU_FUNCTION void run() {
    float x[kChunk] = {}, squares = 0.0f;
    if (is_here_) {
      load_chunk(x_ + channel_, x);
      GPU_UNROLL
      for (int i = 0; i < kChunk; ++i) squares += x[i] * x[i];
      weigh(x, channel_);
      if (kind_ != Kind::value && channel_ < 2 * args_.half) rotate(x);
    }
    float factor = 1.0f;
    if (args_.q_norm != nullptr || args_.k_norm != nullptr) {
      squares = sum_row(squares);
      if (norm_ != nullptr) factor = rsqrt(squares / static_cast<float>(args_.head_dim) + args_.norm_eps);
    }
    GPU_UNROLL
    for (int i = 0; i < kChunk; ++i) x[i] *= factor;
    sync_warp();  // all lanes have read their row: it may change
    std::uint32_t largest = 0;
    if (args_.k_pages.per_slot != nullptr || args_.v_pages.per_slot != nullptr) largest = largest_of_row(x);
    if (!is_here_) return;
    if (kind_ == Kind::query) {
      store_chunk(static_cast<T*>(args_.q) + at(args_.q_token_stride, args_.q_head_stride) + channel_, x);
    } else {
      append(kind_ == Kind::key ? args_.k_pages : args_.v_pages, bits_float(largest), x);
    }
  }

 private:
  enum class Kind { query, key, value };

  // Turned by its angle a channel is x * cos + other * sin: other is its partner, sin has the sign.
  struct Turn {
    float other[kChunk] = {}, sin[kChunk] = {};
    float cos[kChunk] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
  };

  GPU_FUNCTION std::int64_t at(std::int64_t token_stride, std::int64_t head_stride) const {
    return token_ * token_stride + head_ * head_stride;
  }
  GPU_FUNCTION const T* row_of(const void* data, std::int64_t token_stride, std::int64_t head_stride) const {
    return static_cast<const T*>(data) + at(token_stride, head_stride);
  }

  // Norm weights of eight channels from `channel` on, a multiple of eight.
  GPU_FUNCTION void weigh(float (&x)[kChunk], int channel) const {
    if (norm_ == nullptr) return;
    float weights[kChunk];
    load_chunk(norm_ + channel, weights);
    GPU_UNROLL
    for (int i = 0; i < kChunk; ++i) x[i] *= weights[i];
  }

  GPU_FUNCTION void rotate(float (&x)[kChunk]) const {
    Turn turn;
    load_turn(x, turn);
    GPU_UNROLL
    for (int i = 0; i < kChunk; ++i) x[i] = x[i] * turn.cos[i] + turn.other[i] * turn.sin[i];
  }

  GPU_FUNCTION void load_turn(const float (&x)[kChunk], Turn& turn) const {
    const std::int64_t angles = std::int64_t{token_} * args_.half;
    const float *cos = args_.cos + angles, *sin = args_.sin + angles;
    if (args_.is_interleaved && args_.half % (kChunk / 2) == 0) {
      const Vec<float, 4> cos_of = load_vec<4>(cos + channel_ / 2), sin_of = load_vec<4>(sin + channel_ / 2);
      GPU_UNROLL
      for (int i = 0; i < kChunk; ++i) {
        turn.other[i] = x[i ^ 1];
        turn.cos[i] = cos_of.values[i / 2];
        turn.sin[i] = i % 2 == 0 ? -sin_of.values[i / 2] : sin_of.values[i / 2];
      }
    } else if (!args_.is_interleaved && args_.half % kChunk == 0) {
      const bool is_second = channel_ >= args_.half;
      const int angle = is_second ? channel_ - args_.half : channel_;
      const int other = is_second ? angle : channel_ + args_.half;
      load_chunk(cos + angle, turn.cos);
      load_chunk(sin + angle, turn.sin);
      load_chunk(x_ + other, turn.other);
      weigh(turn.other, other);
      GPU_UNROLL
      for (int i = 0; i < kChunk; ++i) turn.sin[i] = is_second ? turn.sin[i] : -turn.sin[i];
    } else {
      load_ragged_turn(cos, sin, turn);
    }
  }

  // Where vectors do not fit, a channel at a time.
  GPU_FUNCTION void load_ragged_turn(const float* cos, const float* sin, Turn& turn) const {
    GPU_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      const int channel = channel_ + i;
      if (channel >= 2 * args_.half) continue;
      const bool is_second = args_.is_interleaved ? channel % 2 == 1 : channel >= args_.half;
      const int step = args_.is_interleaved ? 1 : args_.half;
      const int first = is_second ? channel - step : channel, other = is_second ? first : channel + step;
      const int angle = args_.is_interleaved ? first / 2 : first;
      turn.other[i] = to_float(x_[other]) * (norm_ != nullptr ? norm_[other] : 1.0f);
      turn.cos[i] = cos[angle];
      turn.sin[i] = is_second ? sin[angle] : -sin[angle];
    }
  }

  GPU_FUNCTION float sum_row(float x) const {
    for (int mask = args_.row_lanes / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
  }

  // The bits of the largest magnitude: magnitudes are in the order of their bits, and NaN above all.
  GPU_FUNCTION std::uint32_t largest_of_row(const float (&x)[kChunk]) const {
    std::uint32_t largest = 0;
    GPU_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      const std::uint32_t magnitude = float_bits(x[i]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    for (int mask = args_.row_lanes / 2; mask > 0; mask /= 2) {
      const std::uint32_t theirs = shuffle_xor(largest, mask);
      largest = theirs > largest ? theirs : largest;
    }
    return largest;
  }

  GPU_FUNCTION void append(const AppendTarget& to, float largest, float (&x)[kChunk]) const {
    const std::int64_t slot = args_.slot_mapping[token_];
    if (slot < 0) return;
    float scale = to.per_head != nullptr ? to.per_head[head_] : to.scale;
    if constexpr (sizeof(Page) == 1) {
      if (to.per_slot != nullptr) {
        constexpr float kLargest = std::is_same_v<Page, Fp8> ? 448.0f : 127.0f;
        constexpr float kSmallestNormal = 1.17549435e-38f;
        scale = largest / kLargest;
        if (scale < kSmallestNormal) scale = 1.0f;  // zeros, or as good as
        if (channel_ == 0) to.per_slot[slot * args_.n_kv_heads + head_] = scale;
      }
    }
    const float inverse = reciprocal(scale);
    GPU_UNROLL
    for (int i = 0; i < kChunk; ++i) x[i] *= inverse;
    const std::int64_t page = slot / args_.page_size, slot_of_page = slot % args_.page_size;
    store_chunk(static_cast<Page*>(to.data) + page * to.page_stride + slot_of_page * to.slot_stride +
                    head_ * to.head_stride + channel_,
                x);
  }

  const AppendKvArgs& args_;
  int token_, head_, channel_;  // the head among its kind, the first of this lane's channels
  bool is_here_;                // there is such a row, and it has such a channel
  Kind kind_;
  const float* norm_;
  const T* x_;
};

// grid.x: ceil(n_tokens * (n_heads + 2 * n_kv_heads) / rows of a block).
template <class T, class Page>
GPU_KERNEL append_kv_kernel(const AppendKvArgs args) {
  AppendRow<T, Page> row(args);
  row.run();
}

}  // namespace gpu
}  // namespace llm_decoder
