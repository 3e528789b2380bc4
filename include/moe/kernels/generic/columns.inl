// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Products of a tile of columns, which keep 32 inner values together, with a panel.
//
// Uses: Scalar, Vec, accumulate, most_rows, `pass_width(columns)`, the outputs that one pass over
// the panel accumulates in registers.

/// One pass over a panel, of outputs from `panel` and `sums` on.
template <int columns, std::ptrdiff_t width>
MOE_ALWAYS_INLINE void columns_pass(const Scalar* a, std::ptrdiff_t stride, const Scalar* panel,
                                    std::ptrdiff_t inner, Scalar* sums, bool resume,
                                    Lines next) noexcept {
  constexpr int vectors = static_cast<int>(width / Vec::lanes);
  constexpr std::ptrdiff_t line = 64 / static_cast<std::ptrdiff_t>(sizeof(Scalar));
  Vec sum[columns][vectors];
  MOE_UNROLL
  for (int c = 0; c < columns; ++c) {
    MOE_UNROLL
    for (int v = 0; v < vectors; ++v)
      sum[c][v] = resume ? Vec::load(sums + c * panel_width + v * Vec::lanes) : Vec::zero();
  }
  for (std::ptrdiff_t k = 0; k < inner; k += panel_width) {
    const std::ptrdiff_t count = inner - k < panel_width ? inner - k : panel_width;
    const char* asked = next.begin;
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      __builtin_prefetch(a + stride + i * line);
      __builtin_prefetch(asked, 0, 2);
      asked += next.step;
      Vec column[vectors];
      MOE_UNROLL
      for (int v = 0; v < vectors; ++v) column[v] = Vec::load(panel + v * Vec::lanes);
      MOE_UNROLL
      for (int c = 0; c < columns; ++c)
        accumulate<columns>(c, a + c * column_stride + i, column, sum[c]);
      panel += panel_width;
    }
    a += stride;
    next.begin += next.stride;
  }
  MOE_UNROLL
  for (int c = 0; c < columns; ++c) {
    MOE_UNROLL
    for (int v = 0; v < vectors; ++v) sum[c][v].store(sums + c * panel_width + v * Vec::lanes);
  }
}

template <int columns>
void columns_tile(const Scalar* a, std::ptrdiff_t stride, const Scalar* panel, std::ptrdiff_t inner,
                  Scalar* sums, bool resume, std::ptrdiff_t width, Lines next) noexcept {
  constexpr std::ptrdiff_t pass = pass_width(columns);
  if constexpr (pass > panel_width / 2) {
    if (width <= panel_width / 2)
      return columns_pass<columns, panel_width / 2>(a, stride, panel, inner, sums, resume, next);
  }
  for (std::ptrdiff_t first = 0; first < width; first += pass)
    columns_pass<columns, pass>(a, stride, panel + first, inner, sums + first, resume, next);
}

inline void spread(const Scalar* columns, std::ptrdiff_t count, Scalar* a) noexcept {
  for (std::ptrdiff_t c = 0; c < count; ++c) {
    MOE_UNROLL
    for (std::ptrdiff_t i = 0; i < panel_width; i += Vec::lanes)
      Vec::load(columns + i).store(a + i);
    columns += panel_width;
    a += column_stride;
  }
}

template <int columns, class Table>
constexpr void add_columns(Table& table) noexcept {
  table.of_columns[columns - 1] = &columns_tile<columns>;
  if constexpr (columns > 1) add_columns<columns - 1>(table);
}

template <class Table>
constexpr Table make_columns() noexcept {
  Table table;
  table.most_columns = most_rows;
  table.spread = &spread;
  add_columns<most_rows>(table);
  return table;
}

/// A template, so that programs without a backward pass do not compile its kernels.
template <class Table>
inline constexpr Table columns = make_columns<Table>();
