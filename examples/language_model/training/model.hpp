// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A transformer that learns.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <moe/io/checkpoint.hpp>

#include "language_model/config.hpp"
#include "language_model/model.hpp"
#include "language_model/training/attention.hpp"
#include "language_model/training/feed_forward.hpp"
#include "language_model/training/norm.hpp"
#include "language_model/training/options.hpp"
#include "language_model/training/parameter.hpp"

namespace language_model::training {

/// What one step gave.
struct StepReport {
  double loss = 0;                ///< mean nats of a prediction, without the losses of routers
  std::vector<LayerStep> layers;  ///< those that have experts
};

/// The model of model.hpp with a backward pass. It works on whole windows.
///
/// Values  the same bits for any number of threads.
template <class Scalar>
class TrainableModel {
 public:
  /// Throws  moe::FormatError naming the field or the tensor that is missing or does not fit;
  ///         std::invalid_argument if the options do not fit the model.
  TrainableModel(const moe::io::Checkpoint& checkpoint, const TrainOptions& options);

  const ModelConfig& config() const noexcept { return config_; }

  /// Predicts `targets` from `tokens`, window by window, and adds the gradients of the mean loss
  /// and of the routers' losses to those of the parameters. `seed` is the step's.
  ///
  /// Shapes  tokens, targets (windows * positions).
  /// Throws  std::invalid_argument if the vocabulary lacks a token.
  StepReport step(std::span<const Token> tokens, std::span<const Token> targets, Index windows,
                  std::uint64_t seed);

  /// The mean nats of the predictions, as a model in use makes them: without dropout, noise and
  /// capacity. No gradient changes.
  ///
  /// Shapes, Throws  as step.
  double evaluate(std::span<const Token> tokens, std::span<const Token> targets, Index windows);

  /// All that is learnt. The spans stay valid as long as the model.
  Parameters<Scalar> parameters();
  void zero_gradients();

  /// After the parameters moved: routers are packed anew, selection biases learn from the loads.
  void refresh(const StepReport& report);

  /// Calls use(name, values, is_vector) for every tensor of a checkpoint, under its published name.
  void save(const TensorUse<Scalar>& use) const;

 private:
  using Mixture = TrainableMixture<Scalar>;
  using Dense = TrainableDense<Scalar>;

  struct Layer {
    TrainableNorm<Scalar> attention_norm;
    TrainableAttention<Scalar> attention;
    TrainableNorm<Scalar> feed_forward_norm;
    std::variant<Mixture, Dense> feed_forward;
    // Of the last forward, (T, D) each.
    Matrix<Scalar> input;
    Matrix<Scalar> normed_input;
    Matrix<Scalar> middle;
    Matrix<Scalar> normed_middle;
  };

  void drop(const Matrix<Scalar>& from, std::uint64_t seed, Index stream, bool drops,
            const Matrix<Scalar>* base, Matrix<Scalar>& to) const;
  void forward(std::span<const Token> tokens, std::span<const Token> targets, Index windows,
               std::uint64_t seed, StepReport* report);
  double score(std::span<const Token> targets);
  void backward(std::span<const Token> tokens, std::uint64_t seed);

  ModelConfig config_;
  TrainOptions options_;
  Matrix<Scalar> embedding_;  // (vocab_size, D)
  Matrix<Scalar> embedding_gradient_;
  std::vector<Layer> layers_;
  TrainableNorm<Scalar> norm_;
  TrainableLinear<Scalar> head_;  // empty where the head is the embedding
  Panels<Scalar> panels_;         // of the head's factors, one after the other

  Matrix<Scalar> x_;       // (T, D), behind the last layer
  Matrix<Scalar> added_;   // (T, D)
  Matrix<Scalar> normed_;  // (T, D), the last
  Matrix<Scalar> logits_;  // (T, vocab_size), then their gradient
  Matrix<Scalar> d_x_;
  Matrix<Scalar> d_added_;
  Matrix<Scalar> d_normed_;
};

extern template class TrainableModel<float>;
extern template class TrainableModel<double>;

}  // namespace language_model::training
