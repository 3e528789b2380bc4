// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// BiasController: balance by a selection bias in place of a loss.
#pragma once

#include <cmath>
#include <span>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// How far a bias moves.
enum class BiasRule {
  sign,          ///< b += rate sign(mean - c)
  proportional,  ///< b += rate (mean - c); the paper finds it no better
};

/// Moves the selection biases of experts towards balance, after each global batch.
///
/// Source  Wang et al. (2024), arXiv:2408.15664; DeepSeek-V3 has a rate of 1e-3.
struct BiasController {
  double rate = 1e-3;
  BiasRule rule = BiasRule::sign;

  /// Shapes  counts, bias (E): choices of each expert, and the router's selection bias.
  /// Values  an expert with the mean load keeps its bias.
  /// Throws  ShapeError if sizes differ.
  template <class Scalar>
  void update(std::span<const Index> counts, Vector<Scalar>& bias) const {
    detail::check_size("BiasController::update", "bias.size()", static_cast<Index>(counts.size()),
                       bias.size());
    double mean = 0;
    for (const Index count : counts) mean += static_cast<double>(count);
    mean /= static_cast<double>(counts.size());
    for (Index e = 0; e < bias.size(); ++e) {
      const double lack = mean - static_cast<double>(counts[static_cast<std::size_t>(e)]);
      const double step = rule == BiasRule::proportional ? lack : lack > 0 ? 1 : lack < 0 ? -1 : 0;
      bias[e] += static_cast<Scalar>(rate * step);
    }
  }
};

}  // namespace moe::inline MOE_ABI
