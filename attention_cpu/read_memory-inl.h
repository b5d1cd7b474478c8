// A walk over memory that does nothing but read it: four sums, so that loads are in flight while others are added, and
// the lines that come in 8 KiB prefetched, which is past what the hardware looks ahead in a page.

std::int32_t read_memory(const float* memory, std::int64_t n_floats) {
  constexpr std::int64_t kSums = 4;
  constexpr std::int64_t kAhead = 2048;
  I32 sums[kSums] = {splat(0), splat(0), splat(0), splat(0)};
  for (std::int64_t i = 0; i < n_floats; i += kSums * kLanes) {
    for (std::int64_t j = 0; j < kSums; ++j) {
      prefetch(memory + i + j * kLanes + kAhead);
      sums[j] = add(sums[j], as_i32(load(memory + i + j * kLanes)));
    }
  }
  return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}
