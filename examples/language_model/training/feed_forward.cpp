// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See feed_forward.hpp.
#include "language_model/training/feed_forward.hpp"

#include <algorithm>
#include <cstddef>
#include <random>
#include <stdexcept>
#include <utility>

namespace language_model::training {
namespace {

template <class Scalar>
typename TrainableMixture<Scalar>::Layer typed_layer(const moe::io::CheckpointLayer<Scalar>& loaded,
                                                     const TrainOptions& options) {
  using Bank = moe::SwiGluExperts<Scalar>;
  const auto* const router = loaded.router().template target<moe::TopKRouter<Scalar>>();
  const auto* const bank = loaded.experts().template target<Bank>();
  if (router == nullptr || bank == nullptr)
    throw std::invalid_argument("only blocks of SwiGLU experts behind a linear router are trained");
  moe::SharedExperts<Bank> shared;
  if (loaded.shared().bank())
    shared = moe::SharedExperts<Bank>(*loaded.shared().bank()->template target<Bank>());
  moe::RoutingRule rule = router->rule();
  if (options.balance == Balance::noise) {
    if (rule.jitter.epsilon > 0)
      throw std::invalid_argument(
          "balance 'noise' draws noise of its own: set router_jitter_noise to 0");
    rule.logits.noise = 1 / static_cast<double>(router->num_experts());
  }
  moe::Capacity capacity;
  if (options.capacity > 0)
    capacity = {.factor = options.capacity, .formula = moe::CapacityFormula::choices_ceil};
  moe::RouterWeights<Scalar> weights = router->weights();
  if (options.balance == Balance::bias && weights.selection_bias.size() == 0)
    throw std::invalid_argument(
        "balance 'bias' needs a model with a selection bias, such as glm4_moe");
  typename TrainableMixture<Scalar>::Layer layer(
      moe::TopKRouter<Scalar>({.d_model = router->d_model(),
                               .num_experts = router->num_experts(),
                               .top_k = router->top_k(),
                               .rule = rule},
                              std::move(weights)),
      *bank, std::move(shared), capacity);
  layer.set_expert_dropout({.routed = options.expert_dropout, .shared = options.expert_dropout});
  return layer;
}

template <class Scalar>
void add_bank(const std::string& name, moe::SwiGluExperts<Scalar>& bank,
              typename moe::SwiGluExperts<Scalar>::Gradients& gradients,
              Parameters<Scalar>& parameters) {
  parameters.push_back({name + ".up", bank.values()[0], gradients.values()[0], true});
  parameters.push_back({name + ".down", bank.values()[1], gradients.values()[1], true});
}

template <class Scalar>
void save_expert(const moe::ExpertMatrices<Scalar>& expert, const ExpertNames& names,
                 const TensorUse<Scalar>& use) {
  use(names.gate + ".weight", expert.gate, false);
  use(names.up + ".weight", expert.up, false);
  use(names.down + ".weight", expert.down, false);
}

}  // namespace

template <class Scalar>
TrainableMixture<Scalar>::TrainableMixture(const moe::io::CheckpointLayer<Scalar>& loaded,
                                           const TrainOptions& options)
    : options_(options),
      layer_(typed_layer<Scalar>(loaded, options)),
      weights_(layer_.router().weights()),
      gradients_(layer_.gradients()) {}

/// Noise of a step: the positions of one stream.
template <class Scalar>
void TrainableMixture<Scalar>::draw_noise(std::uint64_t seed, Index tokens) {
  noise_.resize(tokens, layer_.experts().num_experts());
  std::mt19937_64 generator(seed);
  moe::fill_noise(moe::Noise::normal, generator, MatrixView<Scalar>(noise_));
}

template <class Scalar>
LayerStep TrainableMixture<Scalar>::forward(MatrixView<const Scalar> x, MatrixView<Scalar> y,
                                            std::uint64_t seed, Index sharing) {
  namespace losses = moe::losses;
  route_options_ = {.training = true, .seed = seed};
  const bool draws = options_.balance == Balance::noise;
  if (draws) {
    draw_noise(seed, x.rows());
    layer_.router().route(x, {.noise = noise_}, route_options_, routing_);
    moe::make_plan(routing_, layer_.capacity(), plan_);
    layer_.forward(x, routing_, plan_, y, tape_, workspace_, route_options_);
  } else {
    layer_.forward(x, y, tape_, workspace_, route_options_);
  }
  const moe::Routing<Scalar>& routing = tape_.routing;
  LayerStep step;
  step.expert_load = moe::metrics::expert_load(routing);
  step.dropped = moe::metrics::drop_fraction(tape_.plan);
  const double balance = options_.balance_weight / static_cast<double>(sharing);
  if (options_.balance == Balance::aux)
    step.balance_loss =
        static_cast<double>(losses::transformers(routing, {}, {tape_.d_scored, balance}));
  if (draws) {
    const auto deviation = static_cast<Scalar>(layer_.router().rule().logits.noise);
    const Matrix<Scalar> deviations =
        Matrix<Scalar>::Constant(noise_.rows(), noise_.cols(), deviation);
    const Matrix<Scalar> noisy = routing.logits + deviation * noise_;
    // A threshold is a noisy logit: it moves as the logit under it.
    step.balance_loss =
        (static_cast<double>(losses::importance(routing, losses::Variance::population, {},
                                                {tape_.d_weights, balance / 2})) +
         losses::load(routing.logits, noisy, deviations, routing.top_k(),
                      losses::Variance::population, losses::LoadThreshold::excluding, {},
                      {tape_.d_logits, tape_.d_scored, {}, balance / 2})) /
        2;
  }
  const double z = options_.z_loss / static_cast<double>(sharing);
  if (z > 0) step.z_loss = static_cast<double>(losses::z_loss(routing, {}, {tape_.d_logits, z}));
  return step;
}

template <class Scalar>
void TrainableMixture<Scalar>::run(MatrixView<const Scalar> x, MatrixView<Scalar> y) {
  const moe::Capacity capacity = std::exchange(layer_.capacity(), moe::Capacity());
  layer_.forward(x, y, workspace_, {.keep_logits = false, .keep_scores = false});
  layer_.capacity() = capacity;
}

template <class Scalar>
void TrainableMixture<Scalar>::backward(MatrixView<const Scalar> x, MatrixView<const Scalar> dy,
                                        MatrixView<Scalar> dx) {
  layer_.backward(x, tape_, dy, dx, gradients_, workspace_);
  if (options_.balance != Balance::noise) return;
  layer_.router().backward({.x = x,
                            .options = route_options_,
                            .routing = tape_.routing,
                            .plan = tape_.plan,
                            .d_weights = tape_.d_weights_used,
                            .d_logits = tape_.d_logits,
                            .dx = dx,
                            .d_routed = tape_.d_weights,
                            .d_scored = tape_.d_scored,
                            .inputs = {.noise = noise_}},
                           gradients_.router);
}

template <class Scalar>
void TrainableMixture<Scalar>::refresh(std::span<const Index> load) {
  if (options_.balance == Balance::bias)
    moe::BiasController{.rate = options_.bias_rate}.update(load, weights_.selection_bias);
  const moe::TopKRouter<Scalar>& router = layer_.router();
  layer_.router() = moe::TopKRouter<Scalar>({.d_model = router.d_model(),
                                             .num_experts = router.num_experts(),
                                             .top_k = router.top_k(),
                                             .rule = router.rule()},
                                            weights_);
}

template <class Scalar>
void TrainableMixture<Scalar>::add_parameters(const std::string& prefix,
                                              Parameters<Scalar>& parameters) {
  add_bank(prefix + "experts", layer_.experts(), gradients_.experts, parameters);
  if (layer_.shared().bank())
    add_bank(prefix + "shared_experts", *layer_.shared().bank(), *gradients_.shared, parameters);
  parameters.push_back({prefix + "gate.weight", values_of(weights_.weight),
                        values_of(gradients_.router.weight), true});
}

template <class Scalar>
void TrainableMixture<Scalar>::save(const MixtureNames& names, const TensorUse<Scalar>& use) const {
  use(names.router(), weights_.weight, false);
  if (weights_.selection_bias.size() != 0)
    use(names.selection_bias(), weights_.selection_bias, true);
  for (Index e = 0; e < layer_.experts().num_experts(); ++e)
    save_expert(layer_.experts().expert(e), names.expert(e), use);
  if (layer_.shared().bank()) save_expert(layer_.shared().bank()->expert(0), names.shared(), use);
}

template <class Scalar>
TrainableDense<Scalar>::TrainableDense(Bank bank)
    : bank_(std::move(bank)), gradients_(bank_.gradients()) {}

template <class Scalar>
void TrainableDense<Scalar>::forward(MatrixView<const Scalar> x, MatrixView<Scalar> y) {
  moe::make_full_plan(x.rows(), 1, plan_);
  sums_.resize(static_cast<std::size_t>(x.rows() * bank_.sums_size()));
  bank_.forward({x, plan_}, y, sums_, scratch_);
}

template <class Scalar>
void TrainableDense<Scalar>::backward(MatrixView<const Scalar> x, MatrixView<const Scalar> dy,
                                      MatrixView<Scalar> dx) {
  const moe::ExpertInput<Scalar> input{x, plan_};
  bank_.backward({input, dy, sums_, dx}, gradients_, scratch_);
}

template <class Scalar>
void TrainableDense<Scalar>::add_parameters(const std::string& prefix,
                                            Parameters<Scalar>& parameters) {
  add_bank(prefix + "mlp", bank_, gradients_, parameters);
}

template <class Scalar>
void TrainableDense<Scalar>::save(Index layer, const TensorUse<Scalar>& use) const {
  save_expert(bank_.expert(0), dense_names(layer), use);
}

template class TrainableMixture<float>;
template class TrainableMixture<double>;
template class TrainableDense<float>;
template class TrainableDense<double>;

}  // namespace language_model::training
