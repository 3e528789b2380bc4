// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// GShardRouter: two experts, of which the second is kept or drawn at random in training.
#pragma once

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
#include "moe/routing/noise.hpp"
#include "moe/routing/presets.hpp"
#include "moe/routing/router_backward.hpp"
#include "moe/routing/token_choice.hpp"
#include "moe/routing/topk_router.hpp"

namespace moe::inline MOE_ABI {

/// What becomes of the second expert in training. Outside of it, it is always the second best.
enum class SecondExpertPolicy {
  best,      ///< the second best
  random,    ///< the second best, kept with probability min(1, weight / threshold)
  sampling,  ///< the best of logits plus Gumbel noise without the first: a draw from the softmax
};

struct SecondExpert {
  SecondExpertPolicy policy = SecondExpertPolicy::random;
  double threshold = 0.5;       ///< 0.5 keeps with probability 2 weight, as GShard; Mesh has 0.2
  bool of_probability = false;  ///< true: the router's probability counts, not the weight: NLLB
};

/// A TopKRouter of K = 2 whose second expert is kept at random. A second expert that is not kept
/// leaves the slot unused, and the first one's weight as it is.
///
/// Source  Lepikhin et al. (2020), algorithm 1, arXiv:2006.16668; lingvo `gshard_layers.py`; Mesh
///         TensorFlow `moe.py`; sampling: DeepSpeed `sharded_moe.py`.
template <class ScalarT>
class GShardRouter {
 public:
  using Scalar = ScalarT;

  /// Throws  std::invalid_argument if K is not 2, there is no second expert, or the threshold is
  ///         not positive.
  explicit GShardRouter(TopKRouter<Scalar> router, SecondExpert second = {})
      : router_(std::move(router)), second_(second) {
    detail::check(router_.top_k() == 2, "GShardRouter", "top_k must be 2");
    detail::check(std::isfinite(second_.threshold) && second_.threshold > 0, "GShardRouter",
                  "second.threshold must be finite and positive");
  }

  Index d_model() const noexcept { return router_.d_model(); }
  Index num_experts() const noexcept { return router_.num_experts(); }
  Index top_k() const noexcept { return 2; }
  const TopKRouter<Scalar>& router() const noexcept { return router_; }

  /// Shapes  x (T, D); routing becomes (T, 2) and, where `options` keeps them, (T, E).
  /// Throws  ShapeError if sizes disagree.
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    route(x, {}, options, routing);
  }

  /// The same with noise that the caller supplies for training.
  ///
  /// Shapes  noise: (T, 1), uniform, for `random`; (T, E), Gumbel, for `sampling`.
  void route(MatrixView<const Scalar> x, MatrixView<const Scalar> noise, RouteOptions options,
             Routing<Scalar>& routing) const {
    const bool samples = second_.policy == SecondExpertPolicy::sampling;
    detail::check_noise("GShardRouter::route", "noise.rows()", "noise.cols()", noise, x.rows(),
                        samples ? num_experts() : Index{1});
    if (!options.training || second_.policy == SecondExpertPolicy::best)
      return router_.route(x, options, routing);
    RouteOptions all = options;
    all.keep_logits = true;
    all.keep_scores = true;
    router_.route(x, all, routing);
    const std::uint64_t seed = detail::stream_seed(options.seed, detail::NoiseStream::choice);
    for (Index t = 0; t < routing.tokens(); ++t) {
      if (samples) {
        sample_second(noise, seed, options, t, routing);
      } else {
        keep_second(noise, seed, t, routing);
      }
    }
    if (!options.keep_logits) routing.logits.resize(0, 0);
    if (!options.keep_scores) routing.scores.resize(0, 0);
  }

  using Gradients = RouterGradients<Scalar>;

  /// Zeros, to which `backward` adds.
  Gradients gradients() const { return router_.gradients(); }

  /// As TopKRouter. Whether the second expert is kept has no gradient; the first one's weight was
  /// made beside it all the same.
  void backward(const RouterBackward<Scalar>& call, Gradients& gradients) const {
    const bool is_random = call.options.training && second_.policy == SecondExpertPolicy::random;
    if (!is_random || !call.has_choices()) return router_.backward(call, gradients);
    constexpr const char* where = "GShardRouter::backward";
    check_backward(where, gradients);
    detail::check_router_call(where, call, num_experts(), d_model());
    detail::check_size(where, "routing.top_k()", top_k(), call.routing.top_k());
    RouteOptions all = call.options;
    all.keep_logits = all.keep_scores = true;
    Routing<Scalar> both;  // as it was before second experts were left out
    router_.route(call.x, call.inputs, all, both);
    Matrix<Scalar> d_routed = call.d_routed.map();  // Who was left out has no weight.
    for (Index t = 0; t < d_routed.rows(); ++t)
      if (call.routing.experts(t, 1) == no_expert) d_routed(t, 1) = 0;
    router_.backward(call.on(both, d_routed), gradients);
  }
  void check_backward(const char* where, const Gradients& gradients) const {
    router_.check_backward(where, gradients);
  }

  /// As TopKRouter.
  MatrixView<const Scalar> hidden_states(MatrixView<const Scalar> x, const RouteOptions& options,
                                         GrowingMatrix<Scalar>& buffer) const {
    return router_.hidden_states(x, options, buffer);
  }

 private:
  void keep_second(MatrixView<const Scalar> noise, std::uint64_t seed, Index t,
                   Routing<Scalar>& routing) const {
    Scalar u = 0;
    detail::noise_row(noise, Noise::uniform, seed, t, 1, &u);
    const Scalar key =
        second_.of_probability ? routing.scores(t, routing.experts(t, 1)) : routing.weights(t, 1);
    if (u < key / static_cast<Scalar>(second_.threshold)) return;
    routing.experts(t, 1) = no_expert;
    routing.weights(t, 1) = 0;
  }

  void sample_second(MatrixView<const Scalar> noise, std::uint64_t seed,
                     const RouteOptions& options, Index t, Routing<Scalar>& routing) const {
    std::vector<Scalar> key(static_cast<std::size_t>(num_experts()));
    std::vector<Scalar> memory(key.size());
    const Scalar* const logits = router_.scored_logits(routing, {}, options, t, memory.data());
    detail::noise_row(noise, Noise::gumbel, seed, t, num_experts(), key.data());
    ExpertIndex best = no_expert;
    for (Index e = 0; e < num_experts(); ++e) {
      Scalar& k = key[static_cast<std::size_t>(e)];
      k = detail::selection_key(k + logits[e]);
      if (e == routing.experts(t, 0)) continue;
      if (best == no_expert || k > key[static_cast<std::size_t>(best)])
        best = static_cast<ExpertIndex>(e);
    }
    routing.experts(t, 1) = best;
    weigh_experts(router_.rule(), logits, detail::row_data(routing.scores, t), num_experts(),
                  detail::row_data(routing.experts, t), 2, detail::row_data(routing.weights, t));
  }

  TopKRouter<Scalar> router_;
  SecondExpert second_;
};

}  // namespace moe::inline MOE_ABI
