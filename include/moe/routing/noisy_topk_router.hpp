// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// NoisyTopKRouter: the router of the sparsely-gated mixture of experts.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/noise.hpp"
#include "moe/routing/router_backward.hpp"
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/scores.hpp"
#include "moe/routing/selection.hpp"

namespace moe::inline MOE_ABI {

/// Sizes and conventions of a NoisyTopKRouter.
struct NoisyTopKConfig {
  Index d_model = 0;
  Index num_experts = 0;
  Index top_k = 0;
  double noise_epsilon = 1e-2;  ///< the least deviation of the noise
};

/// h = x W_gate^T + noise (softplus(x W_noise^T) + epsilon), with noise in training only; the K
/// best of h, softmax over those.
///
/// Values  the routing's logits are those without noise; its scores a softmax of h.
/// Ties    lower expert index first; NaN as for `choose_experts`.
/// Source  Shazeer et al. (2017), eq. 3-5, arXiv:1701.06538. The paper starts from weights of 0.
template <class ScalarT>
class NoisyTopKRouter {
 public:
  using Scalar = ScalarT;

  /// Shapes  gate, noise (E, D).
  /// Throws  std::invalid_argument if a size makes no sense; ShapeError if a weight is not (E, D).
  NoisyTopKRouter(const NoisyTopKConfig& config, Matrix<Scalar> gate, Matrix<Scalar> noise)
      : config_(config), gate_(gate), noise_(noise) {
    constexpr const char* where = "NoisyTopKRouter";
    detail::check(config_.d_model > 0, where, "d_model must be positive");
    detail::check(config_.top_k > 0 && config_.top_k <= config_.num_experts, where,
                  "top_k must be from 1 to num_experts");
    detail::check(std::isfinite(config_.noise_epsilon) && config_.noise_epsilon >= 0, where,
                  "noise_epsilon must be finite and not negative");
    detail::check_size(where, "gate.rows()", config_.num_experts, gate_.outputs());
    detail::check_size(where, "gate.cols()", config_.d_model, gate_.inner());
    detail::check_size(where, "noise.rows()", config_.num_experts, noise_.outputs());
    detail::check_size(where, "noise.cols()", config_.d_model, noise_.inner());
  }

  Index d_model() const noexcept { return config_.d_model; }
  Index num_experts() const noexcept { return config_.num_experts; }
  Index top_k() const noexcept { return config_.top_k; }
  /// A copy, unpacked.
  Matrix<Scalar> gate_weight() const { return gate_.weight(); }
  Matrix<Scalar> noise_weight() const { return noise_.weight(); }

  /// Shapes  x (T, D); routing becomes (T, K) and, where `options` keeps them, (T, E).
  /// Throws  ShapeError if sizes disagree.
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    NoisyLogits<Scalar> drawn;
    route(x, {}, options, routing, drawn);
  }

  /// The same, with what was drawn in `drawn`.
  ///
  /// Shapes  noise (T, E), of deviation 1, or empty to draw it from the options' seed.
  void route(MatrixView<const Scalar> x, MatrixView<const Scalar> noise, RouteOptions options,
             Routing<Scalar>& routing, NoisyLogits<Scalar>& drawn) const {
    constexpr const char* where = "NoisyTopKRouter::route";
    const Index experts = num_experts();
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    detail::check_noise(where, "noise.rows()", "noise.cols()", noise, x.rows(), experts);
    routing.resize(x.rows(), experts, top_k(), options);
    routing.score_function = ScoreFunction::softmax;
    const Index noisy_tokens = options.training ? x.rows() : 0;
    drawn.noisy_logits.resize(noisy_tokens, experts);
    drawn.deviation.resize(noisy_tokens, experts);
    if (options.training)
      detail::for_each_logits(x, noise_, [&](Index t, const Scalar* z) {
        for (Index e = 0; e < experts; ++e)
          drawn.deviation(t, e) = softplus(z[e]) + static_cast<Scalar>(config_.noise_epsilon);
      });
    const std::uint64_t seed = detail::stream_seed(options.seed, detail::NoiseStream::logits);
    detail::for_each_logits(x, gate_, [&](Index t, Scalar* z) {
      if (routing.logits.size() != 0) std::copy_n(z, experts, detail::row_data(routing.logits, t));
      if (options.training) {
        std::vector<Scalar> normal(static_cast<std::size_t>(experts));
        detail::noise_row(noise, Noise::normal, seed, t, experts, normal.data());
        for (Index e = 0; e < experts; ++e) {
          z[e] += normal[static_cast<std::size_t>(e)] * drawn.deviation(t, e);
          drawn.noisy_logits(t, e) = z[e];
        }
      }
      if (routing.scores.size() != 0) softmax(z, experts, detail::row_data(routing.scores, t));
      choose(t, z, routing);
    });
  }

  using Gradients = RouterGradients<Scalar>;

  /// Zeros, to which `backward` adds: `weight` is that of the gate.
  Gradients gradients() const {
    return {.weight = Matrix<Scalar>::Zero(num_experts(), d_model()),
            .noise_weight = Matrix<Scalar>::Zero(num_experts(), d_model())};
  }

  /// The reverse of `route`. What was drawn is a constant: noisy logits have a gradient by the gate
  /// and, through the deviation, by the noise weight. `d_scored` is that with respect to the noisy
  /// logits.
  ///
  /// Throws  ShapeError if the routing was made without logits and scores, or a size disagrees.
  void backward(const RouterBackward<Scalar>& call, Gradients& gradients) const {
    constexpr const char* where = "NoisyTopKRouter::backward";
    check_backward(where, gradients);
    const Index experts = num_experts();
    const Index tokens = call.x.rows();
    detail::check_router_call(where, call, experts, d_model());
    detail::check_no_inputs(where, call.inputs, true);
    detail::check_noise(where, "noise.rows()", "noise.cols()", call.inputs.noise, tokens, experts);
    const bool draws = call.options.training;
    // With softmax scores s of the noisy logits, the weights are the scores over their sum.
    const RoutingRule rule{.renormalization = {.kind = Renormalization::sum}};
    Matrix<Scalar> d_deviation = Matrix<Scalar>::Zero(draws ? tokens : 0, experts);
    if (draws && !call.d_deviation.empty()) d_deviation = call.d_deviation.map();
    const std::uint64_t seed = detail::stream_seed(call.options.seed, detail::NoiseStream::logits);
    detail::for_each_rule_gradient<Scalar>(
        rule, call,
        [&](Index t, Scalar* /*memory*/) { return detail::row_data(call.routing.logits, t); },
        [&](Index t, const Scalar* /*z*/, const Scalar* slope) {
          for (Index e = 0; e < experts; ++e) call.d_logits(t, e) += slope[e];
          if (!draws) return;
          std::vector<Scalar> normal(static_cast<std::size_t>(experts));
          detail::noise_row(call.inputs.noise, Noise::normal, seed, t, experts, normal.data());
          for (Index e = 0; e < experts; ++e)
            d_deviation(t, e) += slope[e] * normal[static_cast<std::size_t>(e)];
        });
    detail::add_linear_gradients<Scalar>(call, call.d_logits, gate_.weight(), gradients.weight);
    if (!draws) return;
    detail::for_each_logits(call.x, noise_, [&](Index t, const Scalar* z) {
      for (Index e = 0; e < experts; ++e) {  // softplus' is the sigmoid.
        Scalar slope;
        score_logits(ScoreFunction::sigmoid, z + e, 1, &slope);
        d_deviation(t, e) *= slope;
      }
    });
    detail::add_linear_gradients<Scalar>(call, d_deviation, noise_.weight(),
                                         gradients.noise_weight);
  }

  /// Throws  ShapeError if the gradients are of another router.
  void check_backward(const char* where, const Gradients& gradients) const {
    detail::check_weight_gradient(where, gradients.weight, num_experts(), d_model());
    detail::check_shape(where, "gradients.noise_weight.rows()", "gradients.noise_weight.cols()",
                        gradients.noise_weight, num_experts(), d_model());
  }

 private:
  void choose(Index t, const Scalar* z, Routing<Scalar>& routing) const {
    std::vector<Scalar> key(static_cast<std::size_t>(num_experts()));
    for (Index e = 0; e < num_experts(); ++e)
      key[static_cast<std::size_t>(e)] = detail::selection_key(z[e]);
    ExpertIndex* const expert = detail::row_data(routing.experts, t);
    Scalar* const weight = detail::row_data(routing.weights, t);
    select_top_k(key.data(), num_experts(), top_k(), expert);
    for (Index k = 0; k < top_k(); ++k) weight[k] = z[expert[k]];
    softmax(weight, top_k(), weight);
  }

  NoisyTopKConfig config_;
  detail::LinearMap<Scalar> gate_;   // (E, D)
  detail::LinearMap<Scalar> noise_;  // (E, D)
};

}  // namespace moe::inline MOE_ABI
