// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A feed-forward block that learns: a mixture of experts, or one expert for every token.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <moe/io/checkpoint.hpp>
#include <moe/moe.hpp>

#include "language_model/training/options.hpp"
#include "language_model/training/parameter.hpp"
#include "language_model/training/tensor_names.hpp"

namespace language_model::training {

/// What the router of one layer did in one step.
struct LayerStep {
  std::vector<Index> expert_load;  ///< choices that each expert got, before drops
  double dropped = 0;              ///< share of the choices
  double balance_loss = 0;         ///< without its coefficient
  double z_loss = 0;               ///< without its coefficient
};

/// A block of SwiGLU experts behind a TopKRouter.
template <class Scalar>
class TrainableMixture {
 public:
  using Bank = moe::SwiGluExperts<Scalar>;
  using Layer = moe::SparseMoe<moe::TopKRouter<Scalar>, Bank>;

  /// Throws  std::invalid_argument if the block has other experts or another router.
  TrainableMixture(const moe::io::CheckpointLayer<Scalar>& loaded, const TrainOptions& options);

  /// Losses are scaled by their coefficients over `sharing`, the layers that have one each.
  ///
  /// Shapes  x, y (T, D).
  LayerStep forward(MatrixView<const Scalar> x, MatrixView<Scalar> y, std::uint64_t seed,
                    Index sharing);

  /// Without noise, dropout and capacity, and without a backward.
  void run(MatrixView<const Scalar> x, MatrixView<Scalar> y);

  /// Adds to the gradients; dx is written.
  void backward(MatrixView<const Scalar> x, MatrixView<const Scalar> dy, MatrixView<Scalar> dx);

  /// After a step of an optimiser: the router is packed anew, and a bias learns from the loads.
  void refresh(std::span<const Index> load);

  void add_parameters(const std::string& prefix, Parameters<Scalar>& parameters);
  void save(const MixtureNames& names, const TensorUse<Scalar>& use) const;
  Layer& layer() noexcept { return layer_; }

 private:
  void draw_noise(std::uint64_t seed, Index tokens);

  TrainOptions options_;
  Layer layer_;
  moe::RouterWeights<Scalar> weights_;  // of the router
  moe::SparseMoeGradients<moe::TopKRouter<Scalar>, Bank, Bank> gradients_;
  moe::Tape<Scalar> tape_;
  moe::Workspace<Scalar> workspace_;
  // Where the caller draws the noise, so as to know it.
  moe::RouteOptions route_options_;
  moe::Routing<Scalar> routing_;
  moe::DispatchPlan plan_;
  Matrix<Scalar> noise_;  // (T, E)
};

/// One SwiGLU expert for every token.
template <class Scalar>
class TrainableDense {
 public:
  using Bank = moe::SwiGluExperts<Scalar>;

  explicit TrainableDense(Bank bank);

  void forward(MatrixView<const Scalar> x, MatrixView<Scalar> y);
  void backward(MatrixView<const Scalar> x, MatrixView<const Scalar> dy, MatrixView<Scalar> dx);
  void add_parameters(const std::string& prefix, Parameters<Scalar>& parameters);
  void save(Index layer, const TensorUse<Scalar>& use) const;

 private:
  Bank bank_;
  typename Bank::Gradients gradients_;
  moe::DispatchPlan plan_;
  std::vector<Scalar> sums_;
  moe::Scratch scratch_;
};

extern template class TrainableMixture<float>;
extern template class TrainableMixture<double>;
extern template class TrainableDense<float>;
extern template class TrainableDense<double>;

}  // namespace language_model::training
