// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Causal self-attention that learns.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <moe/io/tensors.hpp>

#include "language_model/config.hpp"
#include "language_model/rotary.hpp"
#include "language_model/training/linear.hpp"
#include "language_model/training/norm.hpp"
#include "language_model/training/parameter.hpp"

namespace language_model::training {

/// Grouped-query attention over whole sequences. Between a forward and its backward it holds what
/// the latter needs: one sequence of calls at a time.
template <class Scalar>
class TrainableAttention {
 public:
  /// Loads the tensors whose names begin with `prefix`.
  ///
  /// Throws  moe::FormatError naming the tensor that is missing or has another shape.
  TrainableAttention(const moe::io::Tensors& tensors, const ModelConfig& config,
                     const std::string& prefix);

  /// Shapes  x, y (sequences * positions, D), one sequence after the other.
  void forward(MatrixView<const Scalar> x, Index positions, Matrix<Scalar>& y);

  /// Adds to the gradients, and writes dx.
  ///
  /// Shapes  x as in the forward, dy, dx (sequences * positions, D).
  void backward(MatrixView<const Scalar> x, MatrixView<const Scalar> dy, MatrixView<Scalar> dx);

  void add_parameters(const std::string& prefix, Parameters<Scalar>& parameters);
  void save(const std::string& prefix, const TensorUse<Scalar>& use) const;

 private:
  /// Memory of one thread for the keys and values of one head.
  struct HeadMemory {
    Panels<Scalar> by_position;
    Panels<Scalar> by_column;
    Panels<Scalar> other;
    Matrix<Scalar> slopes;  // (positions, positions)
  };

  /// Columns of one head of one sequence.
  template <class M>
  MatrixView<Scalar> head(M& m, Index sequence, Index h) const {
    return {m.data() + sequence * positions_ * m.cols() + h * head_dim_, positions_, head_dim_,
            m.cols()};
  }
  MatrixView<Scalar> weights_of(Index sequence, Index h) {
    return {weights_.data() + (sequence * num_heads_ + h) * positions_ * positions_, positions_,
            positions_};
  }
  Index sequences() const { return query_.rows() / positions_; }
  Scalar scale() const;
  void attend(Index sequence, Index group);
  void attend_back(Index sequence, Index group);
  void weigh(MatrixView<Scalar> scores, Index first, Index count) const;

  ModelConfig config_;
  Index num_heads_ = 0;
  Index group_size_ = 1;  // query heads of one key and value head
  Index head_dim_ = 0;
  Index sliding_window_ = 0;
  TrainableLinear<Scalar> query_map_;
  TrainableLinear<Scalar> key_map_;
  TrainableLinear<Scalar> value_map_;
  TrainableLinear<Scalar> output_map_;
  std::optional<TrainableNorm<Scalar>> query_norm_;
  std::optional<TrainableNorm<Scalar>> key_norm_;

  Index positions_ = 1;
  std::optional<Rotary<Scalar>> rotary_;
  Matrix<Scalar> plain_query_;  // before the norm, where there is one
  Matrix<Scalar> plain_key_;
  Matrix<Scalar> query_;  // (T, heads * head_dim), turned
  Matrix<Scalar> key_;    // (T, key and value heads * head_dim), turned
  Matrix<Scalar> value_;
  Matrix<Scalar> mixed_;         // (T, heads * head_dim)
  std::vector<Scalar> weights_;  // (sequences, heads, positions, positions)
  Matrix<Scalar> d_query_;
  Matrix<Scalar> d_key_;
  Matrix<Scalar> d_value_;
  Matrix<Scalar> d_mixed_;
  Panels<Scalar> columns_;  // of mixed_, then of x
};

extern template class TrainableAttention<float>;
extern template class TrainableAttention<double>;

}  // namespace language_model::training
