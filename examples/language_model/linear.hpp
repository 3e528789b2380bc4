// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Dense projections, and the tiles in which they are computed.
#pragma once

#include <algorithm>
#include <utility>

#include <Eigen/Core>

#include <moe/core/types.hpp>
#include <moe/core/view.hpp>
#include <moe/parallel/parallel_for.hpp>

namespace language_model {

using moe::Index;
using moe::Matrix;
using moe::MatrixView;
using moe::Vector;

/// Rows of one product. Eigen may start threads of its own for a product, and their number would
/// decide its blocking and with it the bits of the result. It leaves alone a result that has at
/// most 32 rows by its type; the threads here take tiles instead.
inline constexpr Index tile_rows = 32;

template <class Scalar>
using Tile = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor, tile_rows,
                           Eigen::Dynamic>;

/// A tile, or with `const Scalar` any matrix, that lies within a wider matrix.
template <class Scalar>
using TileMap = Eigen::Map<Tile<Scalar>, Eigen::Unaligned, Eigen::OuterStride<>>;
template <class Scalar>
using ConstMap = Eigen::Map<const Matrix<Scalar>, Eigen::Unaligned, Eigen::OuterStride<>>;

/// y = x weight^T + bias.
///
/// Values  the same bits for any number of threads.
template <class ScalarT>
class Linear {
 public:
  using Scalar = ScalarT;

  /// `bias` is empty for a projection without one.
  explicit Linear(Matrix<Scalar> weight, Vector<Scalar> bias = {})
      : weight_(std::move(weight)), bias_(std::move(bias)) {}

  /// Shapes  x (T, inputs), result (T, outputs).
  Matrix<Scalar> operator()(MatrixView<const Scalar> x) const {
    const Index row_tiles = (x.rows() + tile_rows - 1) / tile_rows;
    const Index output_blocks = (weight_.rows() + block_outputs - 1) / block_outputs;
    Matrix<Scalar> y(x.rows(), weight_.rows());  // (T, outputs)
    moe::parallel::for_each_task(row_tiles * output_blocks, [&](Index task, int /*thread*/) {
      run_tile(x, task % row_tiles * tile_rows, task / row_tiles * block_outputs, y);
    });
    return y;
  }

 private:
  /// Outputs of one task, so that a single token's projection has work for several threads too.
  static constexpr Index block_outputs = 512;

  void run_tile(MatrixView<const Scalar> x, Index row, Index output, Matrix<Scalar>& y) const {
    const Index rows = std::min(tile_rows, x.rows() - row);
    const Index outputs = std::min(block_outputs, weight_.rows() - output);
    TileMap<Scalar> result(&y(row, output), rows, outputs, Eigen::OuterStride<>(y.cols()));
    result.noalias() =
        x.middle_rows(row, rows).map() * weight_.middleRows(output, outputs).transpose();
    if (bias_.size() != 0) result.rowwise() += bias_.segment(output, outputs).transpose();
  }

  Matrix<Scalar> weight_;  // (outputs, inputs)
  Vector<Scalar> bias_;    // (outputs) or empty
};

}  // namespace language_model
