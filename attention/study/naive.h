// The formula as it stands: all scores go to memory, come back for the softmax, and once more to weigh the values.
// Bytes: keys and values once a query head and query tile at best, and n_rows * n_keys floats four times.
#pragma once

#include "study.h"

namespace llm_decoder {
namespace gpu {
namespace study {

// A thread a score. grid.x: n_rows * n_keys over kStudyThreads.
GPU_KERNEL naive_scores_kernel(const StudyArgs args) {
  const std::int64_t i = std::int64_t{block_index().x} * n_threads() + thread_index();
  const auto row = static_cast<int>(i / args.n_keys);
  const int key = static_cast<int>(i % args.n_keys);
  if (row >= n_rows(args)) return;
  const RowPlace place = place_of(args, row);
  const Bf16* q = args.q + std::int64_t{row} * args.head_dim;
  const Bf16* k = args.k + key_at(args, place, key);
  float sum = 0.0f;
  for (int channel = 0; channel < args.head_dim; ++channel) sum += to_float(q[channel]) * to_float(k[channel]);
  args.scores[i] = key < n_seen(args, place.query) ? sum * args.scale * kStudyLog2e : -kInfinity;
}

// A warp a row.
GPU_KERNEL naive_softmax_kernel(const StudyArgs args) {
  const int row = block_index().x * kStudyWarps + warp_index();
  if (row >= n_rows(args)) return;
  float* scores = args.scores + std::int64_t{row} * args.n_keys;
  float largest = -kInfinity, sum = 0.0f;
  for (int key = lane(); key < args.n_keys; key += kWarpSize) largest = scores[key] > largest ? scores[key] : largest;
  largest = max_of_warp(largest);
  for (int key = lane(); key < args.n_keys; key += kWarpSize) sum += exp2(scores[key] - largest);
  sum = sum_of_warp(sum);
  for (int key = lane(); key < args.n_keys; key += kWarpSize) scores[key] = exp2(scores[key] - largest) / sum;
}

// A warp a row.
GPU_KERNEL naive_values_kernel(const StudyArgs args) {
  const int row = block_index().x * kStudyWarps + warp_index();
  if (row >= n_rows(args)) return;
  const RowPlace place = place_of(args, row);
  const float* p = args.scores + std::int64_t{row} * args.n_keys;
  for (int channel = lane(); channel < args.head_dim; channel += kWarpSize) {
    float sum = 0.0f;
    for (int key = 0; key < args.n_keys; ++key) sum += p[key] * to_float(args.v[key_at(args, place, key) + channel]);
    args.out[std::int64_t{row} * args.head_dim + channel] = from_float<Bf16>(sum);
  }
}

}  // namespace study
}  // namespace gpu
}  // namespace llm_decoder
