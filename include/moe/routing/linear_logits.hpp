// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Logits of a linear router, tile by tile: what routers with a choice of their own share.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/product.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI::detail {

/// Calls body(t, z) for every token, where z (E) are the logits x[t] weight^T; in parallel.
///
/// Shapes  x (T, D), weight (E, D).
/// Values  a token's logits have the same bits whatever the other tokens.
template <class Scalar, class Body>
void for_each_logits(MatrixView<const Scalar> x, const Matrix<Scalar>& weight, Body&& body) {
  parallel::for_each_block(x.rows(), tile_rows, [&](Index begin, Index end) {
    const Index rows = end - begin;
    const Matrix<Scalar> tile = padded_tile(x.middle_rows(begin, rows), weight.rows());
    Matrix<Scalar> logits = padded_product(tile, rows, weight);
    for (Index t = begin; t < end; ++t) body(t, logits.row(t - begin).data());
  });
}

}  // namespace moe::inline MOE_ABI::detail
