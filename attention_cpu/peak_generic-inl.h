// The peak of plain C++, which is what the compiler makes of it: dot products and multiply-adds over a few lines that
// stay in the L1 cache.

constexpr std::int64_t kPeakLines = 64;

// Keeps the compiler from finding out that every round computes the same.
inline void forget(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

std::int64_t peak_int8(std::int64_t n_rounds) {
  std::int8_t a[kPeakLines * kPanelWidth], w[kPeakLines * kPanelWidth];
  std::memset(a, 3, sizeof(a));
  std::memset(w, 5, sizeof(w));
  std::int32_t sum = 0;
  for (std::int64_t round = 0; round < n_rounds; ++round) {
    forget(a);
    forget(w);
    for (std::int64_t i = 0; i < kPeakLines * kPanelWidth; ++i) sum += a[i] * w[i];
    sum &= 0xffff;
  }
  forget(&sum);
  return n_rounds * kPeakLines * kPanelWidth * 2;
}

std::int64_t peak_f32(std::int64_t n_rounds) {
  constexpr std::int64_t kSums = 4;
  F32 sums[kSums] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  float a[kPanelWidth], w[kPanelWidth];
  for (float& value : a) value = 0.5f;
  for (float& value : w) value = -0.25f;
  for (std::int64_t step = 0; step < n_rounds * kPeakLines; ++step) {
    forget(a);
    forget(w);
    for (F32& sum : sums) sum = add(sum, mul(load(a), load(w)));
  }
  for (F32& sum : sums) forget(&sum);
  return n_rounds * kPeakLines * kSums * kPanelWidth * 2;
}
