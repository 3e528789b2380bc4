// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Routing: which experts a token goes to, and with which weight. A plain value: a router fills one,
// a caller may inspect, record, edit or replay it, or build one by hand.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/growing_matrix.hpp"
#include "moe/core/renormalization.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// How logits z become scores s.
enum class ScoreFunction {
  softmax,        ///< s = softmax(z) over all experts of the token
  sigmoid,        ///< s = 1 / (1 + exp(-z))
  sqrt_softplus,  ///< s = sqrt(log(1 + exp(z)))
  identity,       ///< s = z
};

/// Where a routing weight acts. Llama-4 scales the expert's input; every other family its output.
enum class WeightTarget { output, input };

/// What a router is asked to record beside its choice, and what it may use beside the tokens. Spans
/// have one entry for each token and need not outlive the call.
struct RouteOptions {
  bool keep_logits = true;  ///< Routing::logits, needed by the z-loss
  bool keep_scores = true;  ///< Routing::scores, needed by load balancing and entropy
  bool training = false;    ///< jitter, noise and sampling are on
  std::uint64_t seed = 0;   ///< of what is drawn in training: the same seed draws the same
  std::span<const std::int32_t> token_ids = {};     ///< vocabulary ids, for HashRouter
  std::span<const std::int32_t> token_types = {};   ///< modalities, for ModalityRouter
  std::span<const std::int32_t> token_groups = {};  ///< sequences or tasks, for GroupRouter
};

/// Shapes  experts, weights (T, K); logits, scores (T, E), or (0, 0) where they were not kept.
/// Values  slot 0 is the best choice by the router's own order; weights are final, that is
///         renormalised and scaled; scores are what `score_function` gave, without any bias that
///         serves selection only. An unused slot holds `no_expert` and weight 0.
template <class Scalar>
struct Routing {
  Index num_experts = 0;
  ScoreFunction score_function = ScoreFunction::softmax;
  WeightTarget weight_target = WeightTarget::output;
  double input_scale = 1;  ///< of every expert's input
  RenormalizationRule renormalization =
      {};                              ///< to be done when choices were dropped, if after_drop
  double scale_after_drop = 1;         ///< and then the weights are multiplied by this
  GrowingMatrix<ExpertIndex> experts;  // (T, K)
  GrowingMatrix<Scalar> weights;       // (T, K)
  GrowingMatrix<Scalar> logits;        // (T, E)
  GrowingMatrix<Scalar> scores;        // (T, E)

  Index tokens() const noexcept { return experts.rows(); }
  Index top_k() const noexcept { return experts.cols(); }

  /// Makes room for the result of a router; memory is reused, and grows only.
  void resize(Index tokens, Index experts_of_layer, Index choices, RouteOptions options) {
    num_experts = experts_of_layer;
    weight_target = WeightTarget::output;
    input_scale = 1;
    renormalization = {};
    scale_after_drop = 1;
    experts.resize(tokens, choices);
    weights.resize(tokens, choices);
    logits.resize(options.keep_logits ? tokens : 0, options.keep_logits ? num_experts : 0);
    scores.resize(options.keep_scores ? tokens : 0, options.keep_scores ? num_experts : 0);
  }
};

namespace detail {

/// Throws ShapeError if sizes disagree, std::invalid_argument if there are no slots, an expert is
/// out of range, a weight is not finite or an unused slot has one. `where` begins the message.
template <class Scalar>
void check_routing(const char* where, const Routing<Scalar>& routing) {
  const Index tokens = routing.tokens();
  const Index experts = routing.num_experts;
  check(routing.top_k() > 0, where, "routing.top_k() must be positive");
  check_renormalization(where, routing.renormalization);
  check(std::isfinite(routing.input_scale), where, "routing.input_scale is not finite");
  check(std::isfinite(routing.scale_after_drop), where, "routing.scale_after_drop is not finite");
  check_size(where, "routing.weights.rows()", tokens, routing.weights.rows());
  check_size(where, "routing.weights.cols()", routing.top_k(), routing.weights.cols());
  if (routing.logits.size() != 0) {
    check_size(where, "routing.logits.rows()", tokens, routing.logits.rows());
    check_size(where, "routing.logits.cols()", experts, routing.logits.cols());
  }
  if (routing.scores.size() != 0) {
    check_size(where, "routing.scores.rows()", tokens, routing.scores.rows());
    check_size(where, "routing.scores.cols()", experts, routing.scores.cols());
  }
  for (Index t = 0; t < tokens; ++t) {
    for (Index k = 0; k < routing.top_k(); ++k) {
      const Index expert = routing.experts(t, k);
      if (expert < no_expert || expert >= experts) [[unlikely]]
        throw_invalid(where, text_of("routing.experts(", t, ", ", k, "): expected 0 to ",
                                     experts - 1, ", got ", expert));
      if (!std::isfinite(routing.weights(t, k))) [[unlikely]]
        throw_invalid(where, text_of("routing.weights(", t, ", ", k, ") is not finite"));
      if (expert == no_expert && routing.weights(t, k) != 0) [[unlikely]]
        throw_invalid(
            where, text_of("routing.weights(", t, ", ", k, ") must be 0: the slot has no expert"));
    }
  }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
