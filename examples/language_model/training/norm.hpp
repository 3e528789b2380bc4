// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A normalisation that learns.
#pragma once

#include <cmath>
#include <string>
#include <utility>

#include <moe/core/types.hpp>
#include <moe/core/view.hpp>
#include <moe/parallel/parallel_for.hpp>

#include "language_model/training/parameter.hpp"

namespace language_model::training {

/// y = weight * x / sqrt(mean(x^2) + epsilon), row by row.
template <class ScalarT>
class TrainableNorm {
 public:
  using Scalar = ScalarT;

  TrainableNorm() = default;
  TrainableNorm(Vector<Scalar> weight, double epsilon)
      : weight_(std::move(weight)), epsilon_(static_cast<Scalar>(epsilon)) {
    gradient_.setZero(weight_.size());
  }

  const Vector<Scalar>& weight() const noexcept { return weight_; }

  /// Shapes  x, y (rows, width); y may be x.
  void forward(MatrixView<const Scalar> x, MatrixView<Scalar> y) const {
    moe::parallel::for_each_block(x.rows(), block_rows, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r)
        y.map().row(r) = scale_of(x, r) * x.map().row(r).cwiseProduct(weight_.transpose());
    });
  }

  /// Adds to the gradient, and to dx.
  ///
  /// Shapes  x as in the forward, dy, dx (rows, width).
  void backward(MatrixView<const Scalar> x, MatrixView<const Scalar> dy, MatrixView<Scalar> dx) {
    const Index width = weight_.size();
    const Index blocks = (x.rows() + block_rows - 1) / block_rows;
    partial_.setZero(blocks, width);  // Sums of a block each, so that threads do not matter.
    moe::parallel::for_each_block(x.rows(), block_rows, [&](Index begin, Index end) {
      auto sum = partial_.row(begin / block_rows);
      for (Index r = begin; r < end; ++r) {
        const auto in = x.map().row(r);
        const auto out = dy.map().row(r);
        const Scalar scale = scale_of(x, r);
        const Scalar product = in.cwiseProduct(weight_.transpose()).dot(out);
        sum += scale * in.cwiseProduct(out);
        dx.map().row(r) += scale * out.cwiseProduct(weight_.transpose()) -
                           (scale * scale * scale * product / static_cast<Scalar>(width)) * in;
      }
    });
    for (Index b = 0; b < blocks; ++b) gradient_ += partial_.row(b).transpose();
  }

  void add_parameters(const std::string& name, Parameters<Scalar>& parameters) {
    parameters.push_back({name + ".weight", values_of(weight_), values_of(gradient_), false});
  }

 private:
  static constexpr Index block_rows = 64;

  Scalar scale_of(MatrixView<const Scalar> x, Index r) const {
    const Scalar mean = x.map().row(r).squaredNorm() / static_cast<Scalar>(x.cols());
    return 1 / std::sqrt(mean + epsilon_);
  }

  Vector<Scalar> weight_;  // (width)
  Scalar epsilon_ = 0;
  Vector<Scalar> gradient_;
  Matrix<Scalar> partial_;
};

}  // namespace language_model::training
