// Products on packed weights, for every ISA with vectors. The int8 and the float product are one algorithm over a
// Product:
//
//   step    one line of 64 bytes of a panel: 4 input channels (w8) or 1 (f32) for its 16 output channels
//   tile    rows x panels whose sums stay in registers while the lines go by
//   chunk   the steps of a tile's rows that fit in the L1 cache; the rows are copied side by side, so that no stride of
//           the caller's makes them evict each other, and the sums wait in memory between two chunks
//   group   panels that stay in the L2 cache while all tiles of rows pass; meanwhile the next group is asked for
//
// A sum is one chain over ascending k whatever the tile, so splitting rows or panels another way changes no bit.
//
// A Product names: Args, Unit (what a row gives to one step), Sums (16 sums of a row and a panel), Line, Factor;
// kMaxTileRows, kMaxLoneTileRows (when one tile holds all rows), tile_panels(n_rows) (1, 2 or 4); n_steps, panel,
// copy_row, zero, load_line, broadcast, add, finish.

constexpr std::int64_t kLineBytes = 64;
constexpr std::int64_t kChunkBytes = 16 << 10;
constexpr int kMaxChunkSteps = 512;
constexpr std::int64_t kGroupBytes = 768 << 10;
constexpr std::int32_t kMinGroupPanels = 4;
constexpr std::int32_t kMaxGroupPanels = 12;
// Far enough ahead to hide the L2 cache, and DRAM where several panels at once are read for the first time; near enough
// to stay in the L1 cache.
constexpr std::int64_t kNearBytes = 1024;

template <class Product, int kRows>
struct TileRows {
  static constexpr int kLineUnits = kLineBytes / sizeof(typename Product::Unit);
  static constexpr int kFitSteps = kChunkBytes / kLineBytes / kRows * kLineUnits;
  static constexpr int kSteps = kFitSteps < kMaxChunkSteps ? kFitSteps : kMaxChunkSteps;
  // A line more than a power of two: rows fall into different sets of the L1 cache.
  static constexpr int kStride = kSteps + kLineUnits;

  alignas(kLineBytes) typename Product::Unit units[kRows * kStride];
};

// Indices 0 .. n - 1 as a pack: arrays indexed by constants alone stay in registers.
template <int... kIndex>
struct Pack {};
template <int n, int... kIndex>
struct PackTo : PackTo<n - 1, n - 1, kIndex...> {};
template <int... kIndex>
struct PackTo<0, kIndex...> : Pack<kIndex...> {};

// What is asked of the memory during a chunk: a line for each panel of the tile every `interval` steps.
struct Ahead {
  const std::uint8_t* lines;
  std::int64_t interval;
};

// sums[p][r] += chunk of row r . chunk of panel p. `lines` is the chunk's first line in the first panel; kSum counts
// the sums of the tile row by row. Not inlined: in a larger function GCC 12 stores the sums at every step.
template <class Product, int kRows, int kPanels, int... kSum, int... kPanel>
__attribute__((noinline)) void add_chunk(Pack<kSum...>, Pack<kPanel...>, const TileRows<Product, kRows>& rows,
                                         const std::uint8_t* lines, std::int64_t panel_bytes, std::int64_t n_steps,
                                         Ahead ahead, typename Product::Sums (*sums)[kRows]) {
  constexpr int kStride = TileRows<Product, kRows>::kStride;
  typename Product::Sums acc[] = {sums[kSum % kPanels][kSum / kPanels]...};
  for (std::int64_t step = 0; step < n_steps;) {
    (__builtin_prefetch(ahead.lines + kPanel * panel_bytes, 0, 2), ...);
    ahead.lines += kLineBytes;
    const std::int64_t end = n_steps - step < ahead.interval ? n_steps : step + ahead.interval;
    do {
      const typename Product::Line line[] = {Product::load_line(lines + kPanel * panel_bytes)...};
      (__builtin_prefetch(lines + kPanel * panel_bytes + kNearBytes, 0, 3), ...);
      const typename Product::Unit* unit = rows.units + step;
      ((acc[kSum] = Product::add(acc[kSum], line[kSum % kPanels], Product::broadcast(unit + kSum / kPanels * kStride))),
       ...);
      lines += kLineBytes;
    } while (++step < end);
  }
  ((sums[kSum % kPanels][kSum / kPanels] = acc[kSum]), ...);
}

// Which rows by which panels, and which of the row tiles this is.
struct TilePlace {
  std::int32_t row, n_rows;
  std::int32_t panel, n_group;
  std::int64_t tile, n_tiles;
};

struct Chunk {
  const std::uint8_t* lines;  // of the group's first panel
  std::int64_t panel_bytes;
  std::int64_t n_steps;
  bool is_last;
};

inline Chunk chunk_at(const std::uint8_t* panel, std::int64_t step, std::int64_t max_steps, std::int64_t n_steps) {
  const std::int64_t n_left = n_steps - step;
  const bool is_last = n_left <= max_steps;
  return {panel + step * kLineBytes, n_steps * kLineBytes, is_last ? n_left : max_steps, is_last};
}

// Each tile asks for its share of the next group. A lone tile reads every line from memory itself: it asks for nothing,
// and its panels are streams enough.
inline Ahead ahead_of(const TilePlace& place, const Chunk& chunk, const std::uint8_t* lines) {
  if (place.n_tiles == 1) return {lines, chunk.n_steps};
  const std::int64_t share = chunk.n_steps * place.tile / place.n_tiles;
  return {lines + place.n_group * chunk.panel_bytes + share * kLineBytes, place.n_tiles};
}

// Asks for the lines of `out` that a panel's sums will go to, so that they are there, and ours to write, by then.
template <class Args>
void expect_out(const Args& args, std::int32_t row, std::int32_t n_rows, std::int32_t panel) {
  const float* out = args.out + row * args.out_stride + static_cast<std::int64_t>(panel) * kPanelWidth;
  for (std::int32_t r = 0; r < n_rows; ++r) __builtin_prefetch(out + r * args.out_stride, 1);
}

// Adds the chunk of panels [first, ...) of the group, kPanels at a time, finishes those whose last chunk it was, and
// returns the first panel that is left.
template <class Product, int kRows, int kPanels>
std::int32_t add_panels(const typename Product::Args& args, const TilePlace& place,
                        const TileRows<Product, kRows>& rows, const Chunk& chunk, std::int32_t first,
                        typename Product::Sums (*sums)[kRows]) {
  std::int32_t p = first;
  for (; p + kPanels <= place.n_group; p += kPanels) {
    const std::uint8_t* lines = chunk.lines + p * chunk.panel_bytes;
    for (int i = 0; chunk.is_last && i < kPanels; ++i) expect_out(args, place.row, kRows, place.panel + p + i);
    add_chunk<Product, kRows, kPanels>(PackTo<kRows * kPanels>(), PackTo<kPanels>(), rows, lines, chunk.panel_bytes,
                                       chunk.n_steps, ahead_of(place, chunk, lines), sums + p);
    for (int i = 0; chunk.is_last && i < kPanels; ++i) {
      Product::finish(args, place.row, kRows, place.panel + p + i, sums[p + i]);
    }
  }
  return p;
}

template <class Product, int kRows>
void multiply_tile(const typename Product::Args& args, const TilePlace& place) {
  constexpr std::int64_t kSteps = TileRows<Product, kRows>::kSteps;
  const std::int64_t n_steps = Product::n_steps(args);
  TileRows<Product, kRows> rows;
  typename Product::Sums sums[kMaxGroupPanels][kRows];
  for (std::int32_t p = 0; p < place.n_group; ++p) {
    for (int r = 0; r < kRows; ++r) sums[p][r] = Product::zero();
  }

  for (std::int64_t step = 0; step < n_steps; step += kSteps) {
    const Chunk chunk = chunk_at(Product::panel(args, place.panel), step, kSteps, n_steps);
    for (int r = 0; r < kRows; ++r) {
      Product::copy_row(args, place.row + r, step, chunk.n_steps, rows.units + r * TileRows<Product, kRows>::kStride);
    }
    const std::int32_t p = add_panels<Product, kRows, Product::tile_panels(kRows)>(args, place, rows, chunk, 0, sums);
    add_panels<Product, kRows, 1>(args, place, rows, chunk, p, sums);
  }
}

// place.n_rows as a constant.
template <class Product, int kRows>
void multiply_tile_of(const typename Product::Args& args, const TilePlace& place) {
  if (place.n_rows == kRows) {
    multiply_tile<Product, kRows>(args, place);
  } else if constexpr (kRows > 1) {
    multiply_tile_of<Product, kRows - 1>(args, place);
  }
}

template <class Product>
std::int32_t group_panels(const typename Product::Args& args) {
  const std::int64_t n_fit = kGroupBytes / (Product::n_steps(args) * kLineBytes + 1);
  if (n_fit < kMinGroupPanels) return kMinGroupPanels;
  return n_fit < kMaxGroupPanels ? static_cast<std::int32_t>(n_fit) / kMinGroupPanels * kMinGroupPanels
                                 : kMaxGroupPanels;
}

template <class Product>
void multiply(const typename Product::Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  constexpr std::int32_t kMaxRows = Product::kMaxLoneTileRows;
  const std::int64_t m = args.m;
  const std::int64_t n_tiles = m <= kMaxRows ? 1 : ceil_div(m, Product::kMaxTileRows);
  const std::int32_t group = group_panels<Product>(args);
  TilePlace place{0, 0, panel_begin, 0, 0, n_tiles};
  for (; place.panel < panel_end; place.panel += group) {
    place.n_group = panel_end - place.panel < group ? panel_end - place.panel : group;
    for (place.tile = 0; place.tile < n_tiles; ++place.tile) {
      place.row = static_cast<std::int32_t>(m * place.tile / n_tiles);
      place.n_rows = static_cast<std::int32_t>(m * (place.tile + 1) / n_tiles) - place.row;
      multiply_tile_of<Product, kMaxRows>(args, place);
    }
  }
}
