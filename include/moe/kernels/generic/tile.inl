// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Products of a tile of rows with a panel of packed weights.
//
// Uses: Scalar, Vec, `pass_width(rows)`, the outputs that one pass over the panel accumulates in
// registers.

template <int rows, std::ptrdiff_t first, class Storage>
MOE_ALWAYS_INLINE void tile_pass(const Scalar* a, const Storage* panel, std::ptrdiff_t inner,
                                 Scalar* sums, bool resume, const char* next,
                                 std::ptrdiff_t step) noexcept {
  constexpr int vectors = static_cast<int>(pass_width(rows) / Vec::lanes);
  // How far ahead lines are asked for: past what the hardware's prefetcher has under way at a
  // page's end. Between 1 and 4 KiB made no difference that could be told from noise.
  constexpr std::ptrdiff_t ahead = 2048 / static_cast<std::ptrdiff_t>(sizeof(Storage));
  constexpr std::ptrdiff_t line = 64 / static_cast<std::ptrdiff_t>(sizeof(Storage));
  Vec sum[rows][vectors];
  MOE_UNROLL
  for (int r = 0; r < rows; ++r) {
    MOE_UNROLL
    for (int v = 0; v < vectors; ++v)
      sum[r][v] = resume ? Vec::load(sums + r * panel_width + first + v * Vec::lanes) : Vec::zero();
  }
  for (std::ptrdiff_t k = 0; k < inner; ++k) {
    MOE_UNROLL
    for (std::ptrdiff_t p = 0; p < panel_width; p += line) __builtin_prefetch(panel + ahead + p);
    __builtin_prefetch(next, 0, 2);
    next += step;
    Vec column[vectors];
    MOE_UNROLL
    for (int v = 0; v < vectors; ++v) column[v] = Vec::load(panel + first + v * Vec::lanes);
    MOE_UNROLL
    for (int r = 0; r < rows; ++r) {
      const Vec x = Vec::broadcast(a[r]);
      MOE_UNROLL
      for (int v = 0; v < vectors; ++v) sum[r][v] = multiply_add(x, column[v], sum[r][v]);
    }
    a += rows;
    panel += panel_width;
  }
  MOE_UNROLL
  for (int r = 0; r < rows; ++r) {
    MOE_UNROLL
    for (int v = 0; v < vectors; ++v)
      sum[r][v].store(sums + r * panel_width + first + v * Vec::lanes);
  }
}

template <int rows, std::ptrdiff_t first, class Storage>
MOE_ALWAYS_INLINE void tile_passes(const Scalar* a, const Storage* panel, std::ptrdiff_t inner,
                                   Scalar* sums, bool resume, const char* next,
                                   std::ptrdiff_t step) noexcept {
  tile_pass<rows, first>(a, panel, inner, sums, resume, next, step);
  if constexpr (first + pass_width(rows) < panel_width)
    tile_passes<rows, first + pass_width(rows)>(a, panel, inner, sums, resume, next, step);
}

template <int rows, class Storage>
void tile(const Scalar* a, const Storage* panel, std::ptrdiff_t inner, Scalar* sums, bool resume,
          const char* next, std::ptrdiff_t step) noexcept {
  tile_passes<rows, 0>(a, panel, inner, sums, resume, next, step);
}

template <int rows, class Storage>
constexpr void add_tiles(TileKernels<Scalar, Storage>& table) noexcept {
  table.of_rows[rows - 1] = &tile<rows, Storage>;
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
