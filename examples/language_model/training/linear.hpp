// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A projection that learns.
#pragma once

#include <string>
#include <utility>

#include "language_model/training/parameter.hpp"
#include "language_model/training/product.hpp"

namespace language_model::training {

/// y = x weight^T + bias.
template <class ScalarT>
class TrainableLinear {
 public:
  using Scalar = ScalarT;

  TrainableLinear() = default;
  explicit TrainableLinear(Matrix<Scalar> weight, Vector<Scalar> bias = {})
      : weight_(std::move(weight)), bias_(std::move(bias)) {
    weight_gradient_.setZero(weight_.rows(), weight_.cols());
    bias_gradient_.setZero(bias_.size());
  }

  const Matrix<Scalar>& weight() const noexcept { return weight_; }
  const Vector<Scalar>& bias() const noexcept { return bias_; }

  /// Shapes  x (T, inputs), y (T, outputs).
  void forward(MatrixView<const Scalar> x, Matrix<Scalar>& y) {
    y.resize(x.rows(), weight_.rows());
    panels_.pack_rows(weight_);
    multiply<Scalar>(x, panels_, y);
    if (bias_.size() != 0) y.rowwise() += bias_.transpose();
  }

  /// Adds to the gradients, and writes dx or adds to it. `x_columns`, which several projections of
  /// one x share, is what pack_columns makes of the x of the forward.
  ///
  /// Shapes  dy (T, outputs), dx (T, inputs).
  void backward(const Panels<Scalar>& x_columns, MatrixView<const Scalar> dy, MatrixView<Scalar> dx,
                bool adds) {
    panels_.pack_columns(weight_);
    multiply<Scalar>(dy, panels_, dx, adds);
    multiply_transposed<Scalar>(dy, x_columns, weight_gradient_, true);
    for (Index t = 0; t < dy.rows() && bias_.size() != 0; ++t)
      for (Index o = 0; o < bias_.size(); ++o) bias_gradient_[o] += dy(t, o);
  }

  void add_parameters(const std::string& name, Parameters<Scalar>& parameters) {
    parameters.push_back({name + ".weight", values_of(weight_), values_of(weight_gradient_), true});
    if (bias_.size() != 0)
      parameters.push_back({name + ".bias", values_of(bias_), values_of(bias_gradient_), false});
  }

  void save(const std::string& name, const TensorUse<Scalar>& use) const {
    use(name + ".weight", weight_, false);
    if (bias_.size() != 0) use(name + ".bias", bias_, true);
  }

 private:
  Matrix<Scalar> weight_;  // (outputs, inputs)
  Vector<Scalar> bias_;    // (outputs) or empty
  Matrix<Scalar> weight_gradient_;
  Vector<Scalar> bias_gradient_;
  Panels<Scalar> panels_;
};

}  // namespace language_model::training
