// Products on packed weights, for every ISA with vectors. The int8 and the float products are one algorithm over
// a Product:
//
//   step    one line of a panel: 4 input channels (w8) or 1 (f32, bf16) for its 16 output channels
//   slice   the output channels of a line that one register holds: all 16 or half of them
//   tile    rows x slices whose sums stay in registers while the lines go by
//   chunk   the steps of a tile's rows that fit in the L1 cache; the rows are copied side by side, so that no stride of
//           the caller's makes them evict each other, and the sums wait in memory between two chunks
//   group   panels that stay in the L2 cache while all tiles of rows pass; meanwhile the next group is asked for
//
// A sum is one chain over ascending k whatever the tile, so splitting rows or panels another way changes no bit.
//
// A Product names: Args, Unit (what a row gives to one step), Sums (those of a row and a slice), Line, Factor;
// kStepBytes (of a line in memory), kSlices (of a panel); kMaxTileRows, kMaxLoneTileRows (when one tile holds all
// rows), tile_slices(n_rows); n_steps, panel, copy_row, first_sums (what a row's sums start at), load_line, broadcast,
// add, finish.

constexpr std::int64_t kLineBytes = 64;  // of the cache
constexpr std::int64_t kChunkBytes = 28 << 10;
constexpr int kMaxChunkSteps = 512;
constexpr std::int64_t kGroupBytes = 512 << 10;
constexpr std::int32_t kMaxGroupPanels = 12;
// A core gets its share of the memory's bandwidth only from several streams at once: a group is a multiple of this many
// panels, and they are read, or asked for, side by side.
constexpr std::int32_t kStreams = 4;
// Far enough ahead to hide the L2 cache, and DRAM where so many streams are read at once; near enough to stay in the L1
// cache.
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

// What is asked of the memory during a chunk: a line of each stream every `interval` steps, the streams a panel apart.
struct Ahead {
  const std::uint8_t* lines;
  std::int64_t interval;
};

// Where a slice lies behind the first one of its panel.
template <class Product>
constexpr std::int64_t slice_offset(std::int64_t slice, std::int64_t panel_bytes) {
  return slice / Product::kSlices * panel_bytes + slice % Product::kSlices * (Product::kStepBytes / Product::kSlices);
}

// to[s][r] = from[s * from_stride + r] + chunk of row r . chunk of slice s. `lines` is the chunk's first line in the
// first slice; kSum counts the sums of the tile row by row. Not inlined: in a larger function GCC 12 stores the sums at
// every step.
template <class Product, int kRows, int kTileSlices, int... kSum, int... kSlice, int... kStream>
__attribute__((noinline)) void add_chunk(Pack<kSum...>, Pack<kSlice...>, Pack<kStream...>,
                                         const TileRows<Product, kRows>& rows, const std::uint8_t* lines,
                                         std::int64_t panel_bytes, std::int64_t n_steps, Ahead ahead,
                                         const typename Product::Sums* from, std::int64_t from_stride,
                                         typename Product::Sums (*to)[kRows]) {
  constexpr int kStride = TileRows<Product, kRows>::kStride;
  typename Product::Sums acc[] = {from[kSum % kTileSlices * from_stride + kSum / kTileSlices]...};
  for (std::int64_t step = 0; step < n_steps;) {
    (__builtin_prefetch(ahead.lines + kStream * panel_bytes, 0, 2), ...);
    ahead.lines += Product::kStepBytes;
    const std::int64_t end = n_steps - step < ahead.interval ? n_steps : step + ahead.interval;
    do {
      const typename Product::Line line[] = {Product::load_line(lines + slice_offset<Product>(kSlice, panel_bytes))...};
      (__builtin_prefetch(lines + slice_offset<Product>(kSlice, panel_bytes) + kNearBytes, 0, 3), ...);
      const typename Product::Unit* unit = rows.units + step;
      ((acc[kSum] =
            Product::add(acc[kSum], line[kSum % kTileSlices], Product::broadcast(unit + kSum / kTileSlices * kStride))),
       ...);
      lines += Product::kStepBytes;
    } while (++step < end);
  }
  ((to[kSum % kTileSlices][kSum / kTileSlices] = acc[kSum]), ...);
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
  std::int64_t first_step, n_steps;
  bool is_first, is_last;
};

template <class Product>
Chunk chunk_at(const std::uint8_t* panel, std::int64_t step, std::int64_t max_steps, std::int64_t n_steps) {
  const std::int64_t n_left = n_steps - step;
  const bool is_last = n_left <= max_steps;
  return {panel + step * Product::kStepBytes,
          n_steps * Product::kStepBytes,
          step,
          is_last ? n_left : max_steps,
          step == 0,
          is_last};
}

// The lines that are needed next but are not in the L2 cache, of the kStreams panels that panel `p` of the group is one
// of. Many tiles pass over the group: they need the next group. A lone one needs its next panels, the next chunk of the
// first, or the next group.
template <class Product>
const std::uint8_t* next_lines(const TilePlace& place, const Chunk& chunk, std::int32_t p) {
  const std::int32_t first = p / kStreams * kStreams;
  if (place.n_tiles > 1) return chunk.lines + (place.n_group + first) * chunk.panel_bytes;
  if (first + kStreams < place.n_group) return chunk.lines + (first + kStreams) * chunk.panel_bytes;
  if (!chunk.is_last) return chunk.lines + chunk.n_steps * Product::kStepBytes;
  return chunk.lines - chunk.first_step * Product::kStepBytes + place.n_group * chunk.panel_bytes;
}

// The tiles that pass over kStreams panels, n_slices at a time, each ask for their share of the next lines. A lone tile
// that reads so many streams itself has no need to ask.
template <class Product>
Ahead ahead_of(const TilePlace& place, const Chunk& chunk, std::int32_t slice, std::int32_t n_slices) {
  constexpr std::int32_t kStreamSlices = kStreams * Product::kSlices;
  if (place.n_tiles == 1 && n_slices == kStreamSlices) return {chunk.lines, chunk.n_steps};
  const std::int64_t n_turns = kStreamSlices / n_slices;
  const std::int64_t turn = place.tile * n_turns + slice % kStreamSlices / n_slices;
  const std::int64_t share = chunk.n_steps * turn / (place.n_tiles * n_turns);
  return {next_lines<Product>(place, chunk, slice / Product::kSlices) + share * Product::kStepBytes,
          place.n_tiles * n_turns};
}

// Asks for the lines of `out` that a slice's sums will go to, so that they are there, and ours to write, by then.
template <class Product>
void expect_out(const typename Product::Args& args, std::int32_t row, std::int32_t n_rows, std::int32_t slice) {
  const float* out = args.out + row * args.out_stride + std::int64_t{slice} * (kPanelWidth / Product::kSlices);
  for (std::int32_t r = 0; r < n_rows; ++r) __builtin_prefetch(out + r * args.out_stride, 1);
}

// The rows of a tile, ready for a chunk, and their sums between two chunks.
template <class Product, int kRows>
struct Tile {
  TileRows<Product, kRows> rows;
  typename Product::Sums first_sums[kRows];  // of every slice
  typename Product::Sums sums[kMaxGroupPanels * Product::kSlices][kRows];
};

// Adds the chunk of slices [begin, ...) of the group, kTileSlices at a time, finishes those whose last chunk it was,
// and returns the first slice that is left.
template <class Product, int kRows, int kTileSlices>
std::int32_t add_slices(const typename Product::Args& args, const TilePlace& place, const Chunk& chunk,
                        std::int32_t begin, Tile<Product, kRows>& tile) {
  std::int32_t s = begin;
  for (; s + kTileSlices <= place.n_group * Product::kSlices; s += kTileSlices) {
    const std::int32_t slice = place.panel * Product::kSlices + s;
    for (int i = 0; chunk.is_last && i < kTileSlices; ++i) expect_out<Product>(args, place.row, kRows, slice + i);
    // Sums that are finished at once all pass through the same memory, which stays in the L1 cache.
    typename Product::Sums(*to)[kRows] = tile.sums + (chunk.is_first && chunk.is_last ? 0 : s);
    add_chunk<Product, kRows, kTileSlices>(PackTo<kRows * kTileSlices>(), PackTo<kTileSlices>(), PackTo<kStreams>(),
                                           tile.rows, chunk.lines + slice_offset<Product>(s, chunk.panel_bytes),
                                           chunk.panel_bytes, chunk.n_steps,
                                           ahead_of<Product>(place, chunk, s, kTileSlices),
                                           chunk.is_first ? tile.first_sums : *to, chunk.is_first ? 0 : kRows, to);
    for (int i = 0; chunk.is_last && i < kTileSlices; ++i) Product::finish(args, place.row, kRows, slice + i, to[i]);
  }
  return s;
}

template <class Product, int kRows>
void multiply_tile(const typename Product::Args& args, const TilePlace& place) {
  constexpr std::int64_t kSteps = TileRows<Product, kRows>::kSteps;
  const std::int64_t n_steps = Product::n_steps(args);
  Tile<Product, kRows> tile;
  for (int r = 0; r < kRows; ++r) tile.first_sums[r] = Product::first_sums(args, place.row + r);

  // Chunks of one length, for a short one at the end is short streams of memory; whole lines, for that is how rows are
  // copied.
  const std::int64_t chunk_steps =
      round_up(ceil_div(n_steps, ceil_div(n_steps, kSteps)), TileRows<Product, kRows>::kLineUnits);
  for (std::int64_t step = 0; step < n_steps; step += chunk_steps) {
    const Chunk chunk = chunk_at<Product>(Product::panel(args, place.panel), step, chunk_steps, n_steps);
    for (int r = 0; r < kRows; ++r) {
      Product::copy_row(args, place.row + r, step, chunk.n_steps, tile.rows.units + r * tile.rows.kStride);
    }
    const std::int32_t s = add_slices<Product, kRows, Product::tile_slices(kRows)>(args, place, chunk, 0, tile);
    add_slices<Product, kRows, 1>(args, place, chunk, s, tile);
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

// m rows cut into n_tiles tiles of about one height.
struct RowTiles {
  std::int64_t m, n_tiles;

  std::int32_t row(std::int64_t tile) const { return static_cast<std::int32_t>(m * tile / n_tiles); }
  std::int32_t n_rows(std::int64_t tile) const { return row(tile + 1) - row(tile); }
};

template <class Product>
std::int32_t group_panels(const typename Product::Args& args, std::int64_t n_tiles) {
  const std::int64_t n_fit = kGroupBytes / (Product::n_steps(args) * Product::kStepBytes) / kStreams * kStreams;
  if (n_tiles == 1 || n_fit > kMaxGroupPanels) return kMaxGroupPanels;
  return n_fit < kStreams ? kStreams : static_cast<std::int32_t>(n_fit);
}

template <class Product>
void multiply(const typename Product::Args& args, std::int32_t panel_begin, std::int32_t panel_end) {
  constexpr std::int32_t kMaxRows = Product::kMaxLoneTileRows;
  const RowTiles tiles{args.m, args.m <= kMaxRows ? 1 : ceil_div(args.m, Product::kMaxTileRows)};
  const std::int32_t group = group_panels<Product>(args, tiles.n_tiles);
  TilePlace place{0, 0, panel_begin, 0, 0, tiles.n_tiles};
  for (; place.panel < panel_end; place.panel += group) {
    place.n_group = panel_end - place.panel < group ? panel_end - place.panel : group;
    for (place.tile = 0; place.tile < tiles.n_tiles; ++place.tile) {
      place.row = tiles.row(place.tile);
      place.n_rows = tiles.n_rows(place.tile);
      multiply_tile_of<Product, kMaxRows>(args, place);
    }
  }
}
