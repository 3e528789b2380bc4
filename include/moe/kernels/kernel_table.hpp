// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What every level offers: tables of single-threaded loops on raw pointers. They do not allocate
// and do not throw.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/core/config.hpp"
#include "moe/core/panels.hpp"

namespace moe::inline MOE_ABI::kernels {

/// Rows that no level's tile exceeds.
inline constexpr int most_tile_rows = 14;

/// Panels that no level streams side by side more of, and rows that none does with.
inline constexpr int most_side_panels = 8;
inline constexpr int most_side_rows = 3;

/// The activations that have a kernel; `clamped` is gated only.
enum class ActivationKind { relu, silu, gelu, gelu_tanh, clamped };

/// Functions that activations and scores are made of: within 2 and 4 ulp in single precision.
enum class MapKind { exponential, error_function };

/// The constants of `clamped`; other activations have none.
template <class Scalar>
struct ActivationRule {
  Scalar alpha = 1;
  Scalar limit = 0;
  Scalar offset = 0;
  bool clamps_gate_below = false;
};

/// Lines that a kernel asks for while it computes. The i-th of its inner values, or of as many of
/// them as it takes together, asks at begin + i % period * step + i / period * stride, in bytes; a
/// kernel says what its period is.
struct Lines {
  const char* begin = nullptr;
  std::ptrdiff_t step = 0;
  std::ptrdiff_t stride = 0;
};

/// Products of a tile of rows with a panel.
///
///   sums[r][o] = sum over k of a[k][r] panel[k][o]
///
/// Shapes  a (inner, rows), panel (inner, 32), sums (rows, 32), all contiguous; panel and sums are
///         64-byte aligned.
/// Values  one accumulator for each output, over k in order, one rounding a step where the level
///         has a fused multiply-add: the same bits whatever the number of rows. With `resume`, sums
///         are the accumulators that an earlier slice of k left.
/// Memory  asks for the lines from `next` on to come to the second-level cache, `step` bytes
///         further for every k: a part of what comes next.
///
/// `side_by_side` gives the sums of several panels, which follow each other in memory, with few
/// rows: sums (panels, rows, 32), the same bits. `in_streams` gives those of more rows with one
/// panel, and asks for the lines of what comes next, with a period of 8 inner values and as many as
/// a stride has, to come to the first-level cache, and for those of the panel, `ahead` bytes ahead,
/// unless that is 0.
template <class Scalar, class Storage>
struct TileKernels {
  using Tile = void (*)(const Scalar* a, const Storage* panel, std::ptrdiff_t inner, Scalar* sums,
                        bool resume, const char* next, std::ptrdiff_t step) noexcept;
  using SideTiles = void (*)(const Scalar* a, const Storage* panel, std::ptrdiff_t inner,
                             Scalar* sums) noexcept;
  using TileInStreams = void (*)(const Scalar* a, const Storage* panel, std::ptrdiff_t inner,
                                 Scalar* sums, bool resume, Lines next,
                                 std::ptrdiff_t ahead) noexcept;

  int most_rows = 0;
  Tile of_rows[most_tile_rows] = {};              // of_rows[r - 1] for r rows
  int side_panels[most_tile_rows] = {};           // with r rows side_panels[r - 1], or none
  SideTiles side_by_side[most_tile_rows] = {};    // of side_panels[r - 1] panels, or null
  TileInStreams in_streams[most_tile_rows] = {};  // or null, where there are panels side by side
};

/// Values from one column's 32 inner values to the next's. One more than they are: loads of one
/// inner value of several columns then meet different banks of a first-level cache. 32 apart, they
/// cost 3 to 7 % of a product's time.
inline constexpr std::ptrdiff_t column_stride = panel_width + 1;

/// Products of a tile of columns with a panel, for matrices whose columns keep 32 inner values
/// together, as a panel's inputs keep its 32 outputs: what a backward pass needs of them lies so.
///
///   sums[c][o] = sum over k of a[k / 32][c][k % 32] panel[k][o]
///
/// Shapes  a (inner / 32, columns, 32) with blocks `stride` and columns `column_stride` values
///         apart, panel (inner, 32), sums (columns, 32); panel and sums are 64-byte aligned. Of the
///         outputs at least the first `width`, 16 or 32, are computed.
/// Values  as those of TileKernels.
/// Memory  asks for the next block of a, to come to the first-level cache, and for other lines,
///         with a period of 32 inner values, to come to the second-level cache.
template <class Scalar>
struct ColumnKernels {
  using Tile = void (*)(const Scalar* a, std::ptrdiff_t stride, const Scalar* panel,
                        std::ptrdiff_t inner, Scalar* sums, bool resume, std::ptrdiff_t width,
                        Lines next) noexcept;

  int most_columns = 0;
  Tile of_columns[most_tile_rows] = {};  // of_columns[c - 1] for c columns

  /// Sets columns (count, 32) `column_stride` apart.
  void (*spread)(const Scalar* columns, std::ptrdiff_t count, Scalar* a) noexcept = nullptr;
};

/// The activation of a tile's sums. A program has those that it names, since each of them for each
/// level takes its time to compile.
///
///   gated  hidden[i][r] = activation(gate, up) of sums + bias, gates in the first half of a panel
///   plain  hidden[i][r] = activation(sums + bias)
///
/// Shapes  sums (rows, 32), bias (32) or null, hidden (16, rows) if gated, (32, rows) if plain; or,
///         with a stride above 0, (rows, 16) or (rows, 32), rows `stride` values apart.
template <class Scalar>
using ActivationKernel = void (*)(const ActivationRule<Scalar>& rule, const Scalar* sums,
                                  const Scalar* bias, std::ptrdiff_t rows, Scalar* hidden,
                                  std::ptrdiff_t stride) noexcept;

/// See slopes.inl.
template <class Scalar>
using ActivationGradientKernel = void (*)(const ActivationRule<Scalar>& rule, const Scalar* sums,
                                          const Scalar* d_hidden, std::ptrdiff_t rows,
                                          Scalar* hidden, Scalar* d_sums) noexcept;

/// to[i][j] = from[j][i] for a block of 32 by 32, whose rows lie 32 and `stride` values apart.
template <class Scalar>
using TransposeKernel = void (*)(const Scalar* from, Scalar* to, std::ptrdiff_t stride) noexcept;

/// y[i] = f(x[i]).
template <class Scalar>
using MapKernel = void (*)(const Scalar* x, std::ptrdiff_t n, Scalar* y) noexcept;

/// What happens to finished sums, and loops over the experts of one token.
template <class Scalar>
struct RowKernels {
  /// out[r][o] = weight[r] * (sums + bias), for the first `columns` of a panel.
  /// Shapes  sums (rows, 32), bias (32) or null, weight (rows) or null, out (rows, columns) with
  ///         rows `stride` apart.
  void (*finish)(const Scalar* sums, const Scalar* bias, const Scalar* weight, std::ptrdiff_t rows,
                 std::ptrdiff_t columns, Scalar* out, std::ptrdiff_t stride) noexcept;

  /// The same for results that nobody reads soon: written without being read first.
  /// Memory  whole panels of out begin at multiples of 64 bytes.
  void (*finish_past_caches)(const Scalar* sums, const Scalar* bias, const Scalar* weight,
                             std::ptrdiff_t rows, std::ptrdiff_t columns, Scalar* out,
                             std::ptrdiff_t stride) noexcept;

  /// out = sum over i of weight[i] rows[i], in this order; zeros where there are no rows.
  /// Shapes  rows (count) pointers to n values, weight (count) or null, out (n).
  void (*weighted_sum)(const Scalar* const* rows, const Scalar* weight, std::ptrdiff_t count,
                       std::ptrdiff_t n, Scalar* out) noexcept;

  /// packed[k][r] = scale[r] * rows[r][k].
  /// Shapes  rows (count) pointers to n values, scale (count) or null, packed (n, count).
  void (*pack)(const Scalar* const* rows, const Scalar* scale, std::ptrdiff_t count,
               std::ptrdiff_t n, Scalar* packed) noexcept;

  /// score[i] = exp(logit[i] - largest), 0 for NaN; returns their sum. `largest` is finite.
  Scalar (*exponentials)(const Scalar* logit, std::ptrdiff_t n, Scalar largest,
                         Scalar* score) noexcept;

  /// The largest of n values, NaN left out; -infinity if there is none.
  Scalar (*largest)(const Scalar* value, std::ptrdiff_t n) noexcept;

  /// score[i] /= divisor.
  void (*divide_all)(Scalar* score, std::ptrdiff_t n, Scalar divisor) noexcept;

  /// key[i] = score[i] + bias[i], at least `lowest` but for its neighbour; `lowest` where the logit
  /// is NaN, so that every number, -infinity among them, stands above NaN.
  /// Shapes  logit, score, bias, key (n); bias may be null.
  void (*selection_keys)(const Scalar* logit, const Scalar* score, const Scalar* bias,
                         std::ptrdiff_t n, Scalar* key) noexcept;

  /// score[i] = 1 / (1 + exp(-logit[i])), 0 for NaN.
  void (*sigmoids)(const Scalar* logit, std::ptrdiff_t n, Scalar* score) noexcept;

  /// The first index from `begin` on whose key exceeds `bound`, or n.
  std::ptrdiff_t (*find_above)(const Scalar* key, std::ptrdiff_t begin, std::ptrdiff_t n,
                               Scalar bound) noexcept;
};

}  // namespace moe::inline MOE_ABI::kernels
