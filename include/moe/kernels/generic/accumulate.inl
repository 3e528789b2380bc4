// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The step that all products are made of.
//
// Uses: Scalar, Vec, `memory_factors(rows, vectors)`, of how many of a tile's rows the factor is
// read by the multiply-add itself; where that is not 0, multiply_add of a pointer to the factor.

/// sum[v] += *x column[v] for row r of a tile.
template <int rows, int vectors>
MOE_ALWAYS_INLINE void accumulate(int r, const Scalar* x, const Vec (&column)[vectors],
                                  Vec (&sum)[vectors]) noexcept {
  constexpr int from_memory = memory_factors(rows, vectors);
  if constexpr (from_memory > 0) {
    if (r * from_memory / rows != (r + 1) * from_memory / rows) {
      MOE_UNROLL
      for (int v = 0; v < vectors; ++v) sum[v] = multiply_add(x, column[v], sum[v]);
      return;
    }
  }
  const Vec factor = Vec::broadcast(*x);
  MOE_UNROLL
  for (int v = 0; v < vectors; ++v) sum[v] = multiply_add(factor, column[v], sum[v]);
}
