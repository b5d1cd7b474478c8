// Products on packed weights, for every ISA with vectors. The int8 and the float product are one algorithm over a Product:
//
//   step    one line of 64 bytes of a panel: 4 input channels (w8) or 1 (f32) for its 16 output channels
//   tile    rows x panels whose sums stay in registers while the lines go by
//   chunk   the steps of a tile's rows that fit in the L1 cache; the rows are copied side by side, so that no stride of the
//           caller's makes them evict each other, and the sums wait in memory between two chunks
//   group   panels that stay in the L2 cache while all tiles of rows pass
//
// A sum is one chain over ascending k whatever the tile, so splitting rows or panels another way changes no bit.
//
// A Product names: Args, Unit (what a row gives to one step), Sums (16 sums of a row and a panel), kMaxTileRows,
// kMaxLoneTileRows (when one tile can hold all rows), tile_panels(n_rows); n_steps, panel, copy_row, zero, load_line,
// broadcast, add, finish.

constexpr std::int64_t kLineBytes = 64;
constexpr std::int64_t kChunkBytes = 16 << 10;
constexpr std::int64_t kGroupBytes = 768 << 10;
constexpr std::int32_t kMinGroupPanels = 4;
constexpr std::int32_t kMaxGroupPanels = 12;
constexpr int kAheadPanels = 4;
constexpr std::int64_t kNearBytes = 1024;

template <class Product, int kRows>
struct TileRows {
  static constexpr int kLineUnits = kLineBytes / sizeof(typename Product::Unit);
  static constexpr int kSteps = kChunkBytes / kLineBytes / kRows * kLineUnits;
  static constexpr int kStride = kSteps + kLineUnits;  // not a power of two: rows fall into different sets of the L1 cache

  alignas(kLineBytes) typename Product::Unit units[kRows * kStride];
};

// Indices 0 .. n - 1 as a pack: arrays indexed by constants alone stay in registers.
template <int... kIndex>
struct Pack {};
template <int n, int... kIndex>
struct PackTo : PackTo<n - 1, n - 1, kIndex...> {};
template <int... kIndex>
struct PackTo<0, kIndex...> : Pack<kIndex...> {};

// What a tile asks the memory for while it computes: lines of `kAheadPanels` panels, one of each every `interval` steps.
struct Ahead {
  const std::uint8_t* lines;
  std::int64_t interval;
};

// sums[p][r] += chunk of row r . chunk of panel p. `lines` is the chunk's first line in the first panel; kSum counts the
// sums of the tile row by row. Not inlined: in a larger function GCC 12 stores the sums at every step.
template <class Product, int kRows, int kPanels, int... kSum, int... kPanel, int... kAhead>
__attribute__((noinline)) void add_chunk(Pack<kSum...>, Pack<kPanel...>, Pack<kAhead...>,
                                         const TileRows<Product, kRows>& rows, const std::uint8_t* lines,
                                         std::int64_t panel_bytes, std::int64_t n_steps, Ahead ahead,
                                         typename Product::Sums (*sums)[kRows]) {
  constexpr int kStride = TileRows<Product, kRows>::kStride;
  typename Product::Sums acc[] = {sums[kSum % kPanels][kSum / kPanels]...};
  for (std::int64_t step = 0; step < n_steps;) {
    (_mm_prefetch(reinterpret_cast<const char*>(ahead.lines + kAhead * panel_bytes), _MM_HINT_T1), ...);
    ahead.lines += kLineBytes;
    const std::int64_t end = n_steps - step < ahead.interval ? n_steps : step + ahead.interval;
    do {
      const typename Product::Line line[] = {Product::load_line(lines + kPanel * panel_bytes)...};
      (_mm_prefetch(reinterpret_cast<const char*>(lines + kPanel * panel_bytes + kNearBytes), _MM_HINT_T0), ...);
      const typename Product::Unit* unit = rows.units + step;
      ((acc[kSum] = Product::add(acc[kSum], line[kSum % kPanels], Product::broadcast(unit + kSum / kPanels * kStride))),
       ...);
      lines += kLineBytes;
    } while (++step < end);
  }
  ((sums[kSum % kPanels][kSum / kPanels] = acc[kSum]), ...);
}

// One panel group, all of k, for the rows of tile `tile` of `n_tiles`.
template <class Product, int kRows>
void multiply_tile(const typename Product::Args& args, std::int32_t row, std::int32_t panel, std::int32_t n_group,
                   std::int64_t tile, std::int64_t n_tiles) {
  constexpr int kPanels = Product::tile_panels(kRows);
  constexpr int kWave = kAheadPanels;
  constexpr std::int64_t kSteps = TileRows<Product, kRows>::kSteps;
  const std::int64_t n_steps = Product::n_steps(args);
  const std::int64_t panel_bytes = n_steps * kLineBytes;
  TileRows<Product, kRows> rows;
  typename Product::Sums sums[kMaxGroupPanels][kRows];
  for (std::int32_t p = 0; p < n_group; ++p) {
    for (int r = 0; r < kRows; ++r) sums[p][r] = Product::zero();
  }

  for (std::int64_t step = 0; step < n_steps; step += kSteps) {
    const std::int64_t n = n_steps - step < kSteps ? n_steps - step : kSteps;
    for (int r = 0; r < kRows; ++r) {
      Product::copy_row(args, row + r, step, n, rows.units + r * TileRows<Product, kRows>::kStride);
    }
    const std::uint8_t* lines = Product::panel(args, panel) + step * kLineBytes;
    std::int32_t p = 0;
    for (; p + kPanels <= n_group; p += kPanels) {
      const std::int64_t share = n * (tile * (kWave / kPanels) + p % kWave / kPanels) / (n_tiles * (kWave / kPanels));
      const Ahead ahead{lines + (n_group + p / kWave * kWave) * panel_bytes + share * kLineBytes, kWave / kPanels * n_tiles};
      add_chunk<Product, kRows, kPanels>(PackTo<kRows * kPanels>(), PackTo<kPanels>(), PackTo<kWave>(), rows,
                                         lines + p * panel_bytes, panel_bytes, n, ahead, sums + p);
    }
    for (; p < n_group; ++p) {
      const Ahead ahead{lines + (n_group + p) * panel_bytes, n_tiles};
      add_chunk<Product, kRows, 1>(PackTo<kRows>(), PackTo<1>(), PackTo<1>(), rows, lines + p * panel_bytes, panel_bytes,
                                   n, ahead, sums + p);
    }
  }
  for (std::int32_t p = 0; p < n_group; ++p) Product::finish(args, row, kRows, panel + p, sums[p]);
}

template <class Product, int kRows>
void multiply_tile_of(std::int32_t n_rows, const typename Product::Args& args, std::int32_t row, std::int32_t panel,
                      std::int32_t n_group, std::int64_t tile, std::int64_t n_tiles) {
  if (n_rows == kRows) {
    multiply_tile<Product, kRows>(args, row, panel, n_group, tile, n_tiles);
  } else if constexpr (kRows > 1) {
    multiply_tile_of<Product, kRows - 1>(n_rows, args, row, panel, n_group, tile, n_tiles);
  }
}

template <class Product>
void multiply(const typename Product::Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  const std::int64_t m = args.m;
  const std::int64_t max_rows = m <= Product::kMaxLoneTileRows ? Product::kMaxLoneTileRows : Product::kMaxTileRows;
  const std::int64_t n_tiles = ceil_div(m, max_rows);
  std::int64_t group = kGroupBytes / (Product::n_steps(args) * kLineBytes + 1);
  group = group < kMinGroupPanels ? kMinGroupPanels : group > kMaxGroupPanels ? kMaxGroupPanels : group;

  for (std::int64_t panel = panel_begin; panel < panel_end; panel += group) {
    const std::int64_t n_group = panel_end - panel < group ? panel_end - panel : group;
    for (std::int64_t tile = 0; tile < n_tiles; ++tile) {
      const std::int64_t row = m * tile / n_tiles;
      const std::int64_t n_rows = m * (tile + 1) / n_tiles - row;
      multiply_tile_of<Product, Product::kMaxLoneTileRows>(static_cast<std::int32_t>(n_rows), args,
                                                           static_cast<std::int32_t>(row), static_cast<std::int32_t>(panel),
                                                           static_cast<std::int32_t>(n_group), tile, n_tiles);
    }
  }
}
