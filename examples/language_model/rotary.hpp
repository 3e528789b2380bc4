// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Rotary positions: a head's dimensions, taken in pairs, are turned by angles that grow with the
// position.
#pragma once

#include <cmath>

#include <Eigen/Core>

#include <moe/core/types.hpp>
#include <moe/core/view.hpp>
#include <moe/parallel/parallel_for.hpp>

#include "language_model/config.hpp"

namespace language_model {

using moe::Matrix;
using moe::MatrixView;
using moe::Vector;

/// The angles of a run of positions. Dimension i is paired with i + R/2, where R is the number of
/// dimensions that are turned; the angle is position * theta^(-2i/R).
///
/// Source  Su et al. (2021), sec. 3.2, arXiv:2104.09864.
/// Differs the source pairs 2i with 2i + 1; the published weights are stored for halves.
template <class Scalar>
class Rotary {
 public:
  /// Positions first .. first + count - 1.
  Rotary(const ModelConfig& config, Index first, Index count)
      : head_dim_(config.head_dim),
        cosine_(count, config.rotary_dims / 2),
        sine_(count, config.rotary_dims / 2) {
    for (Index p = 0; p < cosine_.rows(); ++p) {
      for (Index i = 0; i < cosine_.cols(); ++i) {
        const double share = 2 * static_cast<double>(i) / static_cast<double>(config.rotary_dims);
        const double angle = static_cast<double>(first + p) * std::pow(config.rope_theta, -share);
        cosine_(p, i) = static_cast<Scalar>(std::cos(angle));
        sine_(p, i) = static_cast<Scalar>(std::sin(angle));
      }
    }
  }

  /// Turns every head of every row in place. Row t stands at position first + t % count.
  ///
  /// Shapes  x (T, heads * head_dim).
  void operator()(MatrixView<Scalar> x) const { turn_heads<false>(x); }

  /// Turns them back, which is the reverse for gradients too.
  void back(MatrixView<Scalar> x) const { turn_heads<true>(x); }

 private:
  using Array = Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>>;
  using ConstArray = Eigen::Map<const Eigen::Array<Scalar, Eigen::Dynamic, 1>>;

  template <bool back>
  void turn_heads(MatrixView<Scalar> x) const {
    moe::parallel::for_each_block(x.rows(), 64, [&](Index begin, Index end) {
      Vector<Scalar> memory(cosine_.cols());
      for (Index t = begin; t < end; ++t)
        for (Index d = 0; d < x.cols(); d += head_dim_)
          turn<back>(x.row(t) + d, t % cosine_.rows(), memory.data());
    });
  }

  template <bool back>
  void turn(Scalar* head, Index position, Scalar* memory) const {
    const Index half = cosine_.cols();
    Array a(head, half);
    Array b(head + half, half);
    Array turned(memory, half);
    const ConstArray cosine(cosine_.data() + position * half, half);
    const ConstArray sine(sine_.data() + position * half, half);
    if constexpr (back) {
      turned = a * cosine + b * sine;
      b = b * cosine - a * sine;
    } else {
      turned = a * cosine - b * sine;
      b = b * cosine + a * sine;
    }
    a = turned;
  }

  Index head_dim_;
  Matrix<Scalar> cosine_;  // (count, R/2)
  Matrix<Scalar> sine_;    // (count, R/2)
};

}  // namespace language_model
