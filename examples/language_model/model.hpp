// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A decoder-only transformer whose feed-forward blocks are mixtures of experts.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/moe.hpp>

#include "language_model/attention.hpp"
#include "language_model/config.hpp"
#include "language_model/linear.hpp"
#include "language_model/rms_norm.hpp"
#include "language_model/session.hpp"

namespace language_model {

/// A row of the embedding. Here a token is a byte.
using Token = int;

/// Called with the number of a layer that has experts, what its MoE block gets, (T, D), and the
/// block's routing. Both are valid during the call.
template <class Scalar>
using BlockObserver = std::function<void(Index layer, MatrixView<const Scalar> x,
                                         const moe::Routing<Scalar>& routing)>;

/// Gives the MoE block of a layer.
template <class Scalar>
using MixtureLoader =
    std::function<moe::io::CheckpointLayer<Scalar>(const moe::io::Checkpoint&, Index layer)>;

/// x += attention(norm(x)); x += feed_forward(norm(x)).
template <class Scalar>
struct DecoderLayer {
  using Sparse = moe::io::CheckpointLayer<Scalar>;
  /// One expert for every token is what an ordinary feed-forward block is.
  using Dense = moe::SharedExperts<moe::SwiGluExperts<Scalar>>;

  RmsNorm<Scalar> attention_norm;
  Attention<Scalar> attention;
  RmsNorm<Scalar> feed_forward_norm;
  std::variant<Sparse, Dense> feed_forward;
};

/// A model of one of the families that `read_config` knows.
///
/// Values  forward and logits give the same bits for any number of threads.
template <class Scalar>
class Model {
 public:
  /// Throws  moe::FormatError naming the field or the tensor that is missing or does not fit; what
  ///         the loader throws, if there is one.
  explicit Model(const moe::io::Checkpoint& checkpoint,
                 const MixtureLoader<Scalar>& load_mixture = {});

  const ModelConfig& config() const noexcept { return config_; }

  /// Reads the next positions of every sequence of the session and gives their last hidden states.
  /// The observer, if there is one, sees every MoE block.
  ///
  /// Shapes  tokens holds as many for each sequence, one sequence after the other; result (T, D).
  /// Throws  std::invalid_argument if the vocabulary lacks a token, or the session has no room.
  Matrix<Scalar> forward(std::span<const Token> tokens, Session<Scalar>& session,
                         const BlockObserver<Scalar>& observer = {}) const;

  /// The score of every next token.
  ///
  /// Shapes  hidden (T, D), result (T, vocab_size).
  Matrix<Scalar> logits(MatrixView<const Scalar> hidden) const { return head_(hidden); }

 private:
  Matrix<Scalar> embed(std::span<const Token> tokens) const;

  ModelConfig config_;
  Matrix<Scalar> embedding_;  // (vocab_size, D)
  std::vector<DecoderLayer<Scalar>> layers_;
  RmsNorm<Scalar> norm_;
  Linear<Scalar> head_;
};

extern template class Model<float>;
extern template class Model<double>;

}  // namespace language_model
