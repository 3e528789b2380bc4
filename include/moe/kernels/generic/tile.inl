// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Products of a tile of rows with a panel of packed weights.
//
// Uses: Scalar, Vec, accumulate, `pass_width(rows)`, the outputs that one pass over the panel
// accumulates in registers, and for storage that `widens_in_pairs`: widen, interleave,
// deinterleave.

/// Tiles of many rows compute while they wait for no weights; tiles of few rows stream them.
template <int rows>
inline constexpr bool of_many_rows = 2 * rows > most_rows;

/// How far ahead lines of the panel are asked for. Whoever computes must get past the end of the
/// page, where the hardware's prefetcher stops: 2 KiB. Whoever streams wants to have more lines
/// under way, 4 KiB: for 3 to most_rows / 2 rows that gave 0.93 of what memory reads, 2 KiB and
/// nothing gave 0.78. One or two rows are best left to the hardware of AMD: any distance or hint
/// cost 5 to 10 % of 60 GB/s and gave nothing at 34 GB/s. Neither did the first 1 to 4 KiB of the
/// panel after this one; two panels at a time were as fast or, where they are short, 14 % slower.
/// Intel's wants several streams (`tile_in_streams`).
template <int rows>
constexpr std::ptrdiff_t bytes_ahead() noexcept {
  if (of_many_rows<rows>) return 2048;
  return rows <= 2 ? 0 : 4096;
}

/// A panel's outputs at one k. Where numbers are widened in pairs, each two vectors hold those at
/// even and those at odd places, and so do the sums until they are stored: that is half the work of
/// widening them in their order, 2 to 4 % of a token's time in bfloat16.
template <class Storage, int vectors>
MOE_ALWAYS_INLINE void load_column(const Storage* panel, Vec (&column)[vectors]) noexcept {
  if constexpr (widens_in_pairs<Storage>) {
    MOE_UNROLL
    for (int v = 0; v < vectors; v += 2) widen(panel + v * Vec::lanes, column[v], column[v + 1]);
  } else {
    MOE_UNROLL
    for (int v = 0; v < vectors; ++v) column[v] = Vec::load(panel + v * Vec::lanes);
  }
}

/// A row's sums, in the order of its outputs.
template <class Storage, int vectors>
MOE_ALWAYS_INLINE void store_sums(Vec (&sum)[vectors], Scalar* sums) noexcept {
  if constexpr (widens_in_pairs<Storage>) {
    MOE_UNROLL
    for (int v = 0; v < vectors; v += 2) interleave(sum[v], sum[v + 1]);
  }
  MOE_UNROLL
  for (int v = 0; v < vectors; ++v) sum[v].store(sums + v * Vec::lanes);
}

/// One pass over a panel, of outputs from `panel` and `sums` on; `ask(panel, k)` asks for lines.
template <int rows, class Storage, class Ask>
MOE_ALWAYS_INLINE void tile_pass(const Scalar* a, const Storage* panel, std::ptrdiff_t inner,
                                 Scalar* sums, bool resume, Ask ask) noexcept {
  constexpr int vectors = static_cast<int>(pass_width(rows) / Vec::lanes);
  Vec sum[rows][vectors];
  MOE_UNROLL
  for (int r = 0; r < rows; ++r) {
    MOE_UNROLL
    for (int v = 0; v < vectors; ++v)
      sum[r][v] = resume ? Vec::load(sums + r * panel_width + v * Vec::lanes) : Vec::zero();
    if constexpr (widens_in_pairs<Storage>) {
      MOE_UNROLL
      for (int v = 0; v < vectors; v += 2) deinterleave(sum[r][v], sum[r][v + 1]);
    }
  }
  for (std::ptrdiff_t k = 0; k < inner; ++k) {
    ask(panel, k);
    Vec column[vectors];
    load_column(panel, column);
    MOE_UNROLL
    for (int r = 0; r < rows; ++r) accumulate<rows>(r, a + r, column, sum[r]);
    a += rows;
    panel += panel_width;
  }
  MOE_UNROLL
  for (int r = 0; r < rows; ++r) store_sums<Storage>(sum[r], sums + r * panel_width);
}

template <int rows, class Storage>
void tile(const Scalar* a, const Storage* panel, std::ptrdiff_t inner, Scalar* sums, bool resume,
          const char* next, std::ptrdiff_t step) noexcept {
  constexpr std::ptrdiff_t line = 64 / static_cast<std::ptrdiff_t>(sizeof(Storage));
  std::ptrdiff_t ahead = bytes_ahead<rows>() / static_cast<std::ptrdiff_t>(sizeof(Storage));
  // A single tile of many rows streams, too.
  if constexpr (of_many_rows<rows>)
    if (step == 0) ahead = 4096 / static_cast<std::ptrdiff_t>(sizeof(Storage));
  for (std::ptrdiff_t first = 0; first < panel_width; first += pass_width(rows)) {
    const char* asked = next;
    tile_pass<rows>(a, panel + first, inner, sums + first, resume,
                    [&](const Storage* at, std::ptrdiff_t /*k*/) {
                      if constexpr (bytes_ahead<rows>() > 0) {
                        MOE_UNROLL
                        for (std::ptrdiff_t p = 0; p < panel_width; p += line)
                          __builtin_prefetch(at + ahead + p);
                      }
                      if constexpr (of_many_rows<rows>) {
                        __builtin_prefetch(asked, 0, 2);
                        asked += step;
                      }
                    });
  }
}

/// Panels that few rows stream side by side: as many as there are registers for their sums, in
/// groups that divide each other.
template <int rows>
constexpr int side_panels() noexcept {
  constexpr int fit = side_sums / (rows * static_cast<int>(panel_width / Vec::lanes));
  return fit >= 8 ? 8 : fit >= 4 ? 4 : 0;
}

inline constexpr std::ptrdiff_t side_bytes_ahead = 1024;

/// What panels that are streamed side by side ask for: a little ahead in each of them, past the end
/// of the page where the hardware begins anew, and at their ends the beginnings of the next
/// group's. Of what memory reads, one token reached 0.82 to 0.94 in bfloat16 without it, 0.89
/// to 1.0 with it; in four bits 0.71 to 0.89, and 0.82 to 0.98. Where a step takes two lines of
/// each panel, in single precision and int8, it made no difference, wherever it asked or at the
/// beginnings alone.
class SideLines {
 public:
  /// Of a group's first panel, the bytes begin .. end - 1; the others lie `stride` bytes apart.
  SideLines(const std::byte* begin, const std::byte* end, std::ptrdiff_t stride) noexcept
      : at_(reinterpret_cast<std::intptr_t>(begin)),
        end_(reinterpret_cast<std::intptr_t>(end)),
        stride_(stride) {}

  /// Goes on without a request.
  MOE_ALWAYS_INLINE void skip(std::ptrdiff_t bytes) noexcept { at_ += bytes; }

  /// Once for every `bytes` that are read of each panel: asks for what stands `bytes_ahead` behind
  /// them; where they are more than a line, for nothing.
  template <int panels, std::ptrdiff_t bytes, std::ptrdiff_t bytes_ahead = side_bytes_ahead>
  MOE_ALWAYS_INLINE void ask() noexcept {
    if constexpr (bytes > 64) return;
    std::intptr_t from = at_ + bytes_ahead;
    // Behind the first panel stands the second one, which is being read: on to the next group.
    if (from >= end_) from += (panels - 1) * stride_;
    MOE_UNROLL
    for (int p = 0; p < panels; ++p)
      __builtin_prefetch(reinterpret_cast<const void*>(from + p * stride_));
    at_ += bytes;
  }

 private:
  // Numbers, since what is asked for may lie far behind the weights.
  std::intptr_t at_;
  std::intptr_t end_;
  std::ptrdiff_t stride_;
};

/// Where the hardware fetches several streams faster than one (see `fetches_in_streams`): decode
/// with one stream reached 0.74 of what memory reads (0.51 in bfloat16), with one asked for 8 KiB
/// ahead 0.84, with 4 streams asked for 2 KiB ahead 0.87, with 8 left to the hardware 0.90 to 0.95
/// (0.85), with one beside the next (`tile_in_streams`) 0.03 to 0.09 less than with 8.
template <int rows, int panels, class Storage>
void tiles_side_by_side(const Scalar* a, const Storage* panel, std::ptrdiff_t inner,
                        Scalar* sums) noexcept {
  constexpr int vectors = static_cast<int>(panel_width / Vec::lanes);
  const std::ptrdiff_t stride = inner * panel_width;
  Vec sum[panels][rows][vectors];
  MOE_UNROLL
  for (int p = 0; p < panels; ++p) {
    MOE_UNROLL
    for (int r = 0; r < rows; ++r) {
      MOE_UNROLL
      for (int v = 0; v < vectors; ++v) sum[p][r][v] = Vec::zero();
    }
  }
  constexpr std::ptrdiff_t bytes = panel_width * static_cast<std::ptrdiff_t>(sizeof(Storage));
  const auto* const begin = reinterpret_cast<const std::byte*>(panel);
  SideLines ahead{begin, begin + inner * bytes, inner * bytes};
  for (std::ptrdiff_t k = 0; k < inner; ++k) {
    ahead.ask<panels, bytes>();
    MOE_UNROLL
    for (int p = 0; p < panels; ++p) {
      Vec column[vectors];
      load_column(panel + p * stride, column);
      MOE_UNROLL
      for (int r = 0; r < rows; ++r) accumulate<rows>(r, a + r, column, sum[p][r]);
    }
    a += rows;
    panel += panel_width;
  }
  MOE_UNROLL
  for (int p = 0; p < panels; ++p) {
    MOE_UNROLL
    for (int r = 0; r < rows; ++r)
      store_sums<Storage>(sum[p][r], sums + (p * rows + r) * panel_width);
  }
}

/// The same with more rows, whose sums fill the registers: while a panel is in use, the next one is
/// asked for in eight places in turn, so that as many of the hardware's prefetchers run. Requests
/// alone are bound by the 16 lines that a core's first-level cache waits for: one stream of them
/// gave 20 GB/s of 26 that memory reads, its lines 8 to 32 KiB ahead and into the second-level
/// cache 20 to 21; 2, 4 and 8 panels multiplied side by side, each left to the hardware, 20, 25 and
/// 25, for which only 7, 3 and 1 rows have the registers; a panel asked for in 1, 2, 4 and 8 places
/// 23, 24, 26 and 28 of 29, with any number of rows.
template <int rows, class Storage>
void tile_in_streams(const Scalar* a, const Storage* panel, std::ptrdiff_t inner, Scalar* sums,
                     bool resume, Lines next, std::ptrdiff_t ahead) noexcept {
  constexpr std::ptrdiff_t bytes = panel_width * static_cast<std::ptrdiff_t>(sizeof(Storage));
  const std::ptrdiff_t back = next.stride - 8 * next.step;
  for (std::ptrdiff_t first = 0; first < panel_width; first += pass_width(rows)) {
    const char* asked = next.begin;
    tile_pass<rows>(a, panel + first, inner, sums + first, resume,
                    [&](const Storage* at, std::ptrdiff_t k) {
                      MOE_UNROLL
                      for (std::ptrdiff_t p = 0; p < bytes; p += 64) {
                        // Each takes one of the loads' places, of which these products leave two.
                        if (p < next.stride) __builtin_prefetch(asked + p);
                        if (ahead != 0)
                          __builtin_prefetch(reinterpret_cast<const char*>(at) + ahead + p);
                      }
                      asked += next.step;
                      if (k % 8 == 7) asked += back;
                    });
  }
}

template <int rows, class Storage>
constexpr void add_tiles(TileKernels<Scalar, Storage>& table) noexcept {
  table.of_rows[rows - 1] = &tile<rows, Storage>;
  if constexpr (side_panels<rows>() > 0) {
    table.side_panels[rows - 1] = side_panels<rows>();
    table.side_by_side[rows - 1] = &tiles_side_by_side<rows, side_panels<rows>(), Storage>;
  } else {
    table.in_streams[rows - 1] = &tile_in_streams<rows, Storage>;
  }
  if constexpr (rows > 1) add_tiles<rows - 1>(table);
}

template <class Storage>
constexpr TileKernels<Scalar, Storage> make_tiles() noexcept {
  TileKernels<Scalar, Storage> table;
  table.most_rows = most_rows;
  add_tiles<most_rows>(table);
  return table;
}

template <class Storage>
inline constexpr TileKernels<Scalar, Storage> tiles = make_tiles<Storage>();
