// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The one matrix product of the library: a tile of at most 32 rows times a weight matrix.
#pragma once

#include <Eigen/Core>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"

namespace moe::inline MOE_ABI::detail {

/// Rows of a tile. 32 is also the largest compile-time row count for which Eigen keeps a product on
/// the calling thread: above it, Eigen may start OpenMP threads whose number decides the blocking,
/// and with it the bits.
inline constexpr Index tile_rows = 32;

/// How many rows a tile of `rows` rows must be padded to. A row's bits must not depend on its
/// neighbours, so every tile has to take the same path through Eigen's kernel. That one handles
/// rows in fours and leaves a rest to code with another order of summation; where inner + rows +
/// outputs is below 20, Eigen would even leave it for a coefficient-wise product.
inline Index padded_rows(Index rows, Index inner, Index outputs) noexcept {
  if (inner + outputs < 20) return tile_rows;
  return (rows + 3) / 4 * 4;
}

/// y = x w^T, each output the dot product of a row of x with a row of w.
///
/// Shapes  x (rows, inner), w (outputs, inner), y (rows, outputs), all contiguous; rows is what
///         `padded_rows` returned, the caller zeroes the rows that it added.
/// Cost    2 rows inner outputs flop on this thread.
template <class Scalar>
void tile_product(const Scalar* x, Index rows, Index inner, const Scalar* w, Index outputs,
                  Scalar* y) {
  using Tile = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor, tile_rows,
                             Eigen::Dynamic>;
  MOE_ASSERT(rows % 4 == 0 && rows <= tile_rows);
  if (outputs == 0 || rows == 0) return;
  Eigen::Map<Tile> result(y, rows, outputs);
  if (inner == 0) {
    result.setZero();
    return;
  }
  result.noalias() = Eigen::Map<const Tile>(x, rows, inner) *
                     Eigen::Map<const Matrix<Scalar>>(w, outputs, inner).transpose();
}

/// A copy of at most 32 rows, padded with zeros for a product with `outputs` outputs.
///
/// Shapes  x (rows, inner); result (padded rows, inner).
template <class Scalar>
Matrix<Scalar> padded_tile(MatrixView<const Scalar> x, Index outputs) {
  Matrix<Scalar> tile = Matrix<Scalar>::Zero(padded_rows(x.rows(), x.cols(), outputs), x.cols());
  tile.topRows(x.rows()) = x.map();
  return tile;
}

/// The product of the first `rows` rows of a tile with w^T.
///
/// Shapes  tile (at least rows, inner), w (outputs, inner); result (padded rows, outputs), where
///         only the first `rows` mean anything.
template <class Scalar>
Matrix<Scalar> padded_product(const Matrix<Scalar>& tile, Index rows, const Matrix<Scalar>& w) {
  const Index padded = padded_rows(rows, tile.cols(), w.rows());
  Matrix<Scalar> y(padded, w.rows());
  if (padded == tile.rows()) {
    tile_product(tile.data(), padded, tile.cols(), w.data(), w.rows(), y.data());
  } else {
    Matrix<Scalar> x = Matrix<Scalar>::Zero(padded, tile.cols());
    x.topRows(rows) = tile.topRows(rows);
    tile_product(x.data(), padded, tile.cols(), w.data(), w.rows(), y.data());
  }
  return y;
}

}  // namespace moe::inline MOE_ABI::detail
