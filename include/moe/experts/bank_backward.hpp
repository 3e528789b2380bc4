// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the backward pass of a bank works on.
#pragma once

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"

namespace moe::inline MOE_ABI::detail {

/// What a bank's backward is given and what it gives.
///
/// Shapes  dy (T, D), the gradient with respect to the layer's output; weights (T, K), by which the
///         layer multiplied the outputs, or none; sums, the pre-activations of the forward:
///         expert e's panel p stands at (first_row(e) panels + p rows_of(e)) 32 as (rows, 32);
///         rows (N, D), where the gradients with respect to the experts' inputs go; d_weights
///         (T, K), where those with respect to the weights go, for slots that have a row.
template <class Scalar>
struct BankBackward {
  const ExpertInput<Scalar>& input;
  MatrixView<const Scalar> dy;
  MatrixView<const Scalar> weights;
  const Scalar* sums = nullptr;
  MatrixView<Scalar> rows;
  MatrixView<Scalar> d_weights{};
};

/// Sizes of a bank in a backward.
struct BackwardSizes {
  template <class Weights>
  explicit BackwardSizes(const Weights& weights) noexcept
      : d_model(weights.config.d_model),
        d_ff(weights.config.d_ff),
        up_panels(weights.up.panels()),
        down_panels(weights.down.panels()),
        sums(up_panels * kernels::panel_width),
        filled(down_panels * kernels::panel_width) {}

  Index d_model;
  Index d_ff;
  Index up_panels;
  Index down_panels;
  Index sums;    // of a row, before the activation: whole panels
  Index filled;  // of a row of dy in panels
};

/// Rows begin .. begin + rows - 1 of an expert, in blocks of a tile's rows.
struct RowPiece {
  Index expert;
  Index first_row;  // of the expert in the plan
  Index begin;      // among the expert's rows
  Index rows;
  Index expert_rows;
  Index blocks;
  Index at;  // rows of the pieces before it in the group

  Index block_row(Index b) const noexcept { return rows * b / blocks; }
};

}  // namespace moe::inline MOE_ABI::detail
