// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// SparseMixerRouter: the top-2 router of Phi-3.5-MoE.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/growing_matrix.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/noise.hpp"
#include "moe/routing/router_backward.hpp"
#include "moe/routing/scores.hpp"
#include "moe/routing/selection.hpp"

namespace moe::inline MOE_ABI {

/// Sizes and conventions of a SparseMixerRouter.
struct SparseMixerConfig {
  Index d_model = 0;
  Index num_experts = 0;
  double jitter = 0.01;     ///< experts further than twice this from the best do not take part
  double input_jitter = 0;  ///< of the hidden states in training, which the experts see as well
};

/// Noise that a caller supplies for training.
///
/// Shapes  gumbel (T, 2 E), first draw then second; uniform (T, 2) in 0 .. 1. Empty: drawn from the
///         options' seed.
template <class Scalar>
struct SparseMixerNoise {
  MatrixView<const Scalar> gumbel{};
  MatrixView<const Scalar> uniform{};
};

/// The best expert, weighted by a softmax over those near it: (max - z) / max(|z|, max) at most
/// 2 jitter. Then the same again without the first. The two weights do not sum to 1; both are 1
/// where the logits lie far apart. In training each is drawn from its softmax instead of being the
/// best, and a weight that was not the best counts a third three times out of four.
///
/// Values  weight (E, D); scores are a softmax over all experts. A NaN logit takes no part; without
///         another number the choice is the lowest expert left, with weight 0.
/// Source  Liu et al. (2023), arXiv:2310.00811; transformers `phimoe`, whose third is 0.3333.
/// Differs from llama.cpp, which runs Phi-3.5-MoE as softmax with renormalisation.
template <class ScalarT>
class SparseMixerRouter {
 public:
  using Scalar = ScalarT;

  /// Throws  std::invalid_argument if a size or the jitter makes no sense; ShapeError if the weight
  ///         is not (E, D).
  SparseMixerRouter(const SparseMixerConfig& config, Matrix<Scalar> weight)
      : config_(config), weight_(weight) {
    constexpr const char* where = "SparseMixerRouter";
    detail::check(config_.d_model > 0, where, "d_model must be positive");
    detail::check(config_.num_experts >= 2, where, "num_experts must be at least 2");
    detail::check(std::isfinite(config_.jitter) && config_.jitter >= 0, where,
                  "jitter must be finite and not negative");
    detail::check(config_.input_jitter >= 0 && config_.input_jitter < 1, where,
                  "input_jitter must be at least 0 and below 1");
    detail::check_size(where, "weight.rows()", config_.num_experts, weight_.outputs());
    detail::check_size(where, "weight.cols()", config_.d_model, weight_.inner());
  }

  Index d_model() const noexcept { return config_.d_model; }
  Index num_experts() const noexcept { return config_.num_experts; }
  Index top_k() const noexcept { return 2; }
  double jitter() const noexcept { return config_.jitter; }
  double input_jitter() const noexcept { return config_.input_jitter; }
  /// A copy, unpacked.
  Matrix<Scalar> weight() const { return weight_.weight(); }

  /// Shapes  x (T, D); routing becomes (T, 2) and, where `options` keeps them, (T, E).
  /// Throws  ShapeError if sizes disagree.
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    route(x, {}, options, routing);
  }

  /// The same with noise that the caller supplies for training.
  void route(MatrixView<const Scalar> x, const SparseMixerNoise<Scalar>& noise,
             RouteOptions options, Routing<Scalar>& routing) const {
    constexpr const char* where = "SparseMixerRouter::route";
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    detail::check_noise(where, "gumbel.rows()", "gumbel.cols()", noise.gumbel, x.rows(),
                        2 * num_experts());
    detail::check_noise(where, "uniform.rows()", "uniform.cols()", noise.uniform, x.rows(), 2);
    routing.resize(x.rows(), num_experts(), top_k(), options);
    routing.score_function = ScoreFunction::softmax;
    detail::for_each_logits(x, weight_, [&](Index t, Scalar* z) {
      if (routing.logits.size() != 0)
        std::copy_n(z, num_experts(), detail::row_data(routing.logits, t));
      if (routing.scores.size() != 0)
        softmax(z, num_experts(), detail::row_data(routing.scores, t));
      route_token(t, z, noise, options, routing);
    });
  }

  using Gradients = RouterGradients<Scalar>;

  /// Zeros, to which `backward` adds.
  Gradients gradients() const { return {.weight = Matrix<Scalar>::Zero(num_experts(), d_model())}; }

  /// The reverse of `route`: of weight w = p_i, p the softmax over those near the best,
  /// dz_j = w (delta_ij - p_j) dw. In training too, whoever was drawn and whether w counted a third
  /// or not, which is the estimator that the method is named after.
  ///
  /// Throws  ShapeError if the routing was made without logits and scores, or a size disagrees.
  /// Source  Liu et al. (2023), arXiv:2310.00811; transformers `phimoe`.
  void backward(const RouterBackward<Scalar>& call, Gradients& gradients) const {
    constexpr const char* where = "SparseMixerRouter::backward";
    check_backward(where, gradients);
    detail::check_router_call(where, call, num_experts(), d_model());
    const Index choices = call.has_choices() ? top_k() : 0;
    if (choices > 0) detail::check_size(where, "routing.top_k()", top_k(), call.routing.top_k());
    detail::check_no_inputs(where, call.inputs);
    std::vector<Scalar> near(static_cast<std::size_t>(num_experts()));
    bool kept[2];
    for (Index t = 0; t < call.x.rows(); ++t) {
      const Scalar* const z = detail::row_data(call.routing.logits, t);
      detail::find_kept(call.plan, t, choices, kept);
      for (Index k = 0; k < choices; ++k) {
        const ExpertIndex chosen = call.routing.experts(t, k);
        Scalar slope = 0;
        if (!call.d_weights.empty() && kept[k]) slope += call.d_weights(t, k);
        if (!call.d_routed.empty()) slope += call.d_routed(t, k);
        best_of(z, k == 0 ? no_expert : call.routing.experts(t, 0), near);
        if (slope == 0 || !(near[static_cast<std::size_t>(chosen)] > lowest)) continue;
        softmax(near.data(), num_experts(), near.data());
        slope *= near[static_cast<std::size_t>(chosen)];
        for (Index e = 0; e < num_experts(); ++e)
          call.d_logits(t, e) -= slope * near[static_cast<std::size_t>(e)];
        call.d_logits(t, chosen) += slope;
      }
      for (Index e = 0; e < num_experts() && !call.d_scored.empty(); ++e)
        call.d_logits(t, e) += call.d_scored(t, e);
    }
    detail::add_linear_gradients<Scalar>(call, call.d_logits, weight_.weight(), gradients.weight);
  }

  /// Throws  ShapeError if the gradients are of another router.
  void check_backward(const char* where, const Gradients& gradients) const {
    detail::check_weight_gradient(where, gradients.weight, num_experts(), d_model());
  }

  /// What the router and the experts see in place of x (T, D): x itself, or `buffer` with x
  /// jittered by `input_jitter` in training.
  MatrixView<const Scalar> hidden_states(MatrixView<const Scalar> x, const RouteOptions& options,
                                         GrowingMatrix<Scalar>& buffer) const {
    if (!options.training || config_.input_jitter == 0) return x;
    buffer.resize(x.rows(), x.cols());
    moe::jitter<Scalar>(x, config_.input_jitter, options.seed, buffer);
    return buffer;
  }

 private:
  void route_token(Index t, const Scalar* z, const SparseMixerNoise<Scalar>& noise,
                   const RouteOptions& options, Routing<Scalar>& routing) const {
    const Index experts = num_experts();
    const auto size = static_cast<std::size_t>(experts);
    std::vector<Scalar> near(size);  // logits of this draw, -infinity for who takes no part
    std::vector<Scalar> gumbel(2 * size);
    std::vector<Scalar> uniform(2);
    if (options.training) {
      using detail::NoiseStream;
      detail::noise_row(noise.gumbel, Noise::gumbel,
                        detail::stream_seed(options.seed, NoiseStream::choice), t, 2 * experts,
                        gumbel.data());
      detail::noise_row(noise.uniform, Noise::uniform,
                        detail::stream_seed(options.seed, NoiseStream::multiplier), t, 2,
                        uniform.data());
    }
    ExpertIndex first = no_expert;
    for (Index k = 0; k < 2; ++k) {
      const ExpertIndex best = best_of(z, first, near);
      ExpertIndex chosen = best;
      if (options.training && near[static_cast<std::size_t>(best)] > lowest) {
        Scalar most = lowest;
        for (Index e = 0; e < experts; ++e) {
          const Scalar key =
              near[static_cast<std::size_t>(e)] + gumbel[static_cast<std::size_t>(k * experts + e)];
          if (key > most) {
            most = key;
            chosen = static_cast<ExpertIndex>(e);
          }
        }
      }
      softmax(near.data(), experts, near.data());
      Scalar weight = near[static_cast<std::size_t>(chosen)];
      if (chosen != best && !(uniform[static_cast<std::size_t>(k)] > Scalar(0.75)))
        weight *= Scalar(0.3333);
      routing.experts(t, k) = chosen;
      routing.weights(t, k) = weight;
      first = chosen;
    }
  }

  static constexpr Scalar lowest = -std::numeric_limits<Scalar>::infinity();

  /// The best expert but `taken`; `near` becomes the logits of those that take part with it.
  ExpertIndex best_of(const Scalar* z, ExpertIndex taken, std::vector<Scalar>& near) const {
    ExpertIndex best = no_expert;
    for (Index e = 0; e < num_experts(); ++e) {
      if (e == taken) continue;
      if (best == no_expert || z[e] > z[best] || std::isnan(z[best]))
        if (best == no_expert || !std::isnan(z[e])) best = static_cast<ExpertIndex>(e);
    }
    const Scalar most = z[best];
    const auto width = static_cast<Scalar>(2 * config_.jitter);
    for (Index e = 0; e < num_experts(); ++e) {
      const Scalar distance = (most - z[e]) / std::max(std::fabs(z[e]), most);
      const bool takes_part = e != taken && !std::isnan(z[e]) && (e == best || !(distance > width));
      near[static_cast<std::size_t>(e)] = takes_part ? z[e] : lowest;
    }
    return best;
  }

  SparseMixerConfig config_;
  detail::LinearMap<Scalar> weight_;  // (E, D)
};

}  // namespace moe::inline MOE_ABI
