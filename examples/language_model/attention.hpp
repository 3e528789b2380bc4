// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Causal self-attention with shared key and value heads, and a cache.
#pragma once

#include <optional>
#include <string>

#include <moe/core/types.hpp>
#include <moe/io/tensors.hpp>

#include "language_model/config.hpp"
#include "language_model/linear.hpp"
#include "language_model/rms_norm.hpp"
#include "language_model/rotary.hpp"
#include "language_model/session.hpp"

namespace language_model {

/// Grouped-query attention: each key and value head serves a group of neighbouring query heads.
///
/// Values  the same bits for any number of threads.
/// Source  Ainslie et al. (2023), arXiv:2305.13245.
template <class Scalar>
class Attention {
 public:
  /// Loads the tensors whose names begin with `prefix`.
  ///
  /// Throws  moe::FormatError naming the tensor that is missing or has another shape.
  Attention(const moe::io::Tensors& tensors, const ModelConfig& config, const std::string& prefix);

  /// Attends from the new positions of every sequence to those before them and to themselves. The
  /// new keys and values join the cache behind the session's length, which stays.
  ///
  /// Shapes  x, result (sequences * new positions, D), one sequence after the other.
  Matrix<Scalar> operator()(const Matrix<Scalar>& x, const Rotary<Scalar>& rotary,
                            const Session<Scalar>& session, KeyValues<Scalar>& cache) const;

 private:
  /// The rows of one head of one sequence that one task computes.
  struct Task {
    Index sequence;
    Index head;
    Index begin;  // among the new positions
    Index rows;
  };

  void attend(const Task& task, const Matrix<Scalar>& query, const Session<Scalar>& session,
              const KeyValues<Scalar>& cache, Matrix<Scalar>& result) const;
  void weigh(Tile<Scalar>& scores, Index first_row_sees) const;

  Index num_heads_;
  Index group_size_;  // query heads of one key and value head
  Index head_dim_;
  Index sliding_window_;  // 0 for none
  Linear<Scalar> query_;
  Linear<Scalar> key_;
  Linear<Scalar> value_;
  Linear<Scalar> output_;
  std::optional<RmsNorm<Scalar>> query_norm_;
  std::optional<RmsNorm<Scalar>> key_norm_;
};

extern template class Attention<float>;
extern template class Attention<double>;

}  // namespace language_model
