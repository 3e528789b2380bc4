// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Normalisation by the root mean square.
#pragma once

#include <cmath>
#include <utility>

#include <moe/core/types.hpp>
#include <moe/core/view.hpp>
#include <moe/parallel/parallel_for.hpp>

namespace language_model {

using moe::Index;
using moe::Matrix;
using moe::MatrixView;
using moe::Vector;

/// y = weight * x / sqrt(mean(x^2) + epsilon), row by row.
///
/// Source  Zhang and Sennrich (2019), eq. 4, arXiv:1910.07467.
template <class ScalarT>
class RmsNorm {
 public:
  using Scalar = ScalarT;

  RmsNorm(Vector<Scalar> weight, double epsilon)
      : weight_(std::move(weight)), epsilon_(static_cast<Scalar>(epsilon)) {}

  /// Shapes  x, y (rows, size of the weight); y may be x itself.
  void operator()(MatrixView<const Scalar> x, MatrixView<Scalar> y) const {
    moe::parallel::for_each_block(x.rows(), 64, [&](Index begin, Index end) {
      const auto from = x.map();
      auto to = y.map();
      for (Index r = begin; r < end; ++r) {
        const Scalar mean = from.row(r).squaredNorm() / static_cast<Scalar>(x.cols());
        const Scalar scale = 1 / std::sqrt(mean + epsilon_);
        to.row(r) = scale * from.row(r).cwiseProduct(weight_.transpose());
      }
    });
  }

 private:
  Vector<Scalar> weight_;  // (width)
  Scalar epsilon_;
};

}  // namespace language_model
