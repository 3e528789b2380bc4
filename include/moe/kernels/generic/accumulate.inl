// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The step that all products are made of.
//
// Uses: Scalar, Vec, `memory_factors(rows, vectors)`, of how many of a tile's rows the factor is
// read by the multiply-add itself; where that is not 0, multiply_add of a pointer to the factor.

/// Whether the multiply-adds of row r of a tile read its factor themselves: as many rows as there
/// are `memory_factors`, spread over the tile.
MOE_ALWAYS_INLINE constexpr bool reads_factor(int r, int rows, int vectors) noexcept {
  const int reading = memory_factors(rows, vectors);
  return r * reading / rows != (r + 1) * reading / rows;
}

/// sum[v] += *x column[v] for row r of a tile.
template <int rows, int vectors>
MOE_ALWAYS_INLINE void accumulate(int r, const Scalar* x, const Vec (&column)[vectors],
                                  Vec (&sum)[vectors]) noexcept {
  if constexpr (memory_factors(rows, vectors) > 0) {
    if (reads_factor(r, rows, vectors)) {
      MOE_UNROLL
      for (int v = 0; v < vectors; ++v) sum[v] = multiply_add(x, column[v], sum[v]);
      return;
    }
  }
  const Vec factor = Vec::broadcast(*x);
  MOE_UNROLL
  for (int v = 0; v < vectors; ++v) sum[v] = multiply_add(factor, column[v], sum[v]);
}
