// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// TopKRouter: every token-choice family with a linear router.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/random.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/thread_buffer.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/linear_map.hpp"
#include "moe/routing/noise.hpp"
#include "moe/routing/router_backward.hpp"
#include "moe/routing/router_logits.hpp"
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/token_choice.hpp"

namespace moe::inline MOE_ABI {

/// Sizes and conventions of a TopKRouter.
struct RouterConfig {
  Index d_model = 0;
  Index num_experts = 0;
  Index top_k = 0;
  RoutingRule rule = {.renormalization = {.kind = Renormalization::sum}};
};

/// Logits by a RoutingRule's form, x weight^T + bias in the simplest, then the rest of the rule for
/// each token.
template <class ScalarT>
class TopKRouter {
 public:
  using Scalar = ScalarT;

  /// Throws  std::invalid_argument if a size is not positive, K > E, or the rule cannot work;
  ///         ShapeError if the weights do not have the sizes of `config`.
  TopKRouter(const RouterConfig& config, RouterWeights<Scalar> weights);

  /// A router whose logits have about unit variance for a unit-variance input.
  template <BitGenerator Generator>
  static TopKRouter random(const RouterConfig& config, Generator& generator) {
    RouterWeights<Scalar> weights;
    weights.weight.resize(std::max<Index>(config.num_experts, 0),
                          std::max<Index>(config.d_model, 0));
    detail::fill_uniform(weights.weight.data(), weights.weight.size(), config.d_model,
                         detail::draw_seed(generator));
    return TopKRouter(config, std::move(weights));
  }

  Index d_model() const noexcept { return config_.d_model; }
  Index num_experts() const noexcept { return config_.num_experts; }
  Index top_k() const noexcept { return config_.top_k; }
  const RoutingRule& rule() const noexcept { return config_.rule; }
  const RouterWeights<Scalar>& weights() const noexcept { return logits_.weights(); }

  /// For a bias that is learnt by a BiasController.
  ///
  /// Throws  ShapeError unless the bias is empty or E long.
  void set_selection_bias(Vector<Scalar> bias) {
    if (bias.size() != 0)
      detail::check_size("TopKRouter::set_selection_bias", "bias.size()", num_experts(),
                         bias.size());
    logits_.set_selection_bias(std::move(bias));
  }

  /// Routes every token.
  ///
  /// Shapes  x (T, D); routing becomes (T, K) and, where `options` keeps them, (T, E). Logits are
  ///         kept as they are before they are scaled to a deviation and before noise: so MoE++
  ///         gives them to its next layer.
  /// Ties    lower expert index first; NaN as for `choose_experts`.
  /// Cost    2 T E D flop, parallel over blocks of tokens.
  /// Throws  ShapeError if x is not D wide or an input has another shape than RouteInputs says;
  ///         std::invalid_argument if noise or jitter is given that the rule does not have.
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    route(x, {}, options, routing);
  }

  /// The same with noise or previous logits that the caller supplies.
  void route(MatrixView<const Scalar> x, const RouteInputs<Scalar>& inputs, RouteOptions options,
             Routing<Scalar>& routing) const;

  /// The logits (E) of token t that its scores were made of, after scaling and noise: the routing's
  /// own, or `memory` (E), which has them then. The routing must have logits.
  const Scalar* scored_logits(const Routing<Scalar>& routing, const RouteInputs<Scalar>& inputs,
                              const RouteOptions& options, Index t, Scalar* memory) const {
    return logits_.change(detail::row_data(routing.logits, t), inputs, options, t, memory);
  }

  using Gradients = RouterGradients<Scalar>;

  /// Zeros, to which `backward` adds.
  Gradients gradients() const { return logits_.gradients(); }

  /// The reverse of `route`: from gradients with respect to the weights, and those that losses gave
  /// with respect to the logits, to those of the router's weights, of the tokens and of the
  /// previous logits. The selection bias has none; noise and jitter are constants.
  ///
  /// Values  the bits do not depend on the number of threads.
  /// Throws  ShapeError if the routing was made without logits and scores, or a size disagrees.
  void backward(const RouterBackward<Scalar>& call, Gradients& gradients) const {
    constexpr const char* where = "TopKRouter::backward";
    check_backward(where, gradients);
    detail::check_router_call(where, call, num_experts(), d_model());
    check_inputs(where, call.inputs, call.x.rows());
    if (!call.d_previous_logits.empty())
      detail::check_shape(where, "d_previous_logits.rows()", "d_previous_logits.cols()",
                          call.d_previous_logits, call.x.rows(),
                          call.inputs.previous_logits.cols());
    detail::for_each_rule_gradient<Scalar>(
        config_.rule, call,
        [&](Index t, Scalar* memory) {
          return scored_logits(call.routing, call.inputs, call.options, t, memory);
        },
        [&](Index t, const Scalar* /*changed*/, const Scalar* slope) {
          logits_.add_change_gradient(detail::row_data(call.routing.logits, t), slope,
                                      call.d_logits.row(t));
        });
    logits_.backward(call, gradients);
  }

  /// Throws  ShapeError if the gradients are of another router.
  void check_backward(const char* where, const Gradients& gradients) const {
    logits_.check_gradients(where, gradients);
  }

  /// What the experts see in place of x (T, D): x itself, or `buffer` with x jittered, where the
  /// rule says so and the options are those of training.
  MatrixView<const Scalar> hidden_states(MatrixView<const Scalar> x, const RouteOptions& options,
                                         GrowingMatrix<Scalar>& buffer) const {
    const JitterRule& rule = config_.rule.jitter;
    if (!options.training || rule.target != JitterTarget::hidden_states || rule.epsilon == 0)
      return x;
    buffer.resize(x.rows(), x.cols());
    jitter<Scalar>(x, rule.epsilon, options.seed, buffer);
    return buffer;
  }

 private:
  /// What the workers need for one token each. Who works on which tokens differs from call to call,
  /// so the calling thread has it for all.
  struct ChoiceMemory {
    std::vector<TokenChoiceScratch<Scalar>> scratch;  // (threads)
    std::vector<Scalar> values;                       // (threads, 2 E)

    void resize(int threads, const RoutingRule& rule, Index num_experts) {
      const auto count = static_cast<std::size_t>(threads);
      if (scratch.size() < count) scratch.resize(count);
      for (TokenChoiceScratch<Scalar>& of_thread : scratch) of_thread.resize(rule, num_experts);
      if (values.size() < count * 2 * static_cast<std::size_t>(num_experts))
        values.resize(count * 2 * static_cast<std::size_t>(num_experts));
    }
  };

  void check_inputs(const char* where, const RouteInputs<Scalar>& inputs, Index tokens) const {
    const RoutingRule& rule = config_.rule;
    detail::check_noise(where, "jitter.rows()", "jitter.cols()", inputs.jitter, tokens, d_model());
    detail::check_noise(where, "noise.rows()", "noise.cols()", inputs.noise, tokens, num_experts());
    detail::check(inputs.jitter.empty() || rule.jitter.target == JitterTarget::router_input, where,
                  "the rule has no jitter of the router's input");
    detail::check(inputs.noise.empty() || rule.logits.noise > 0, where,
                  "the rule has no noise of the logits");
    // The first layer of a model has no previous one.
    if (inputs.previous_logits.cols() != 0) {
      detail::check_size(where, "previous_logits.rows()", tokens, inputs.previous_logits.rows());
      detail::check_size(where, "previous_logits.cols()", weights().residual.cols(),
                         inputs.previous_logits.cols());
    }
  }

  void choose(const Scalar* logits, const RouteInputs<Scalar>& inputs, const RouteOptions& options,
              Index t, ChoiceMemory& memory, int thread, Routing<Scalar>& routing) const {
    Scalar* const scores = memory.values.data() + 2 * thread * num_experts();
    logits = logits_.change(logits, inputs, options, t, scores + num_experts());
    const Vector<Scalar>& selection_bias = weights().selection_bias;
    choose_experts(config_.rule, logits,
                   selection_bias.size() != 0 ? selection_bias.data() : nullptr, num_experts(),
                   top_k(), memory.scratch[static_cast<std::size_t>(thread)],
                   options.keep_scores ? detail::row_data(routing.scores, t) : scores,
                   detail::row_data(routing.experts, t), detail::row_data(routing.weights, t));
  }

  RouterConfig config_;
  detail::RouterLogits<Scalar> logits_;
};

template <class ScalarT>
TopKRouter<ScalarT>::TopKRouter(const RouterConfig& config, RouterWeights<Scalar> weights)
    : config_(config) {
  constexpr const char* where = "TopKRouter";
  detail::check(config_.d_model > 0, where, "d_model must be positive");
  detail::check(config_.num_experts > 0, where, "num_experts must be positive");
  detail::check(config_.top_k > 0, where, "top_k must be positive");
  detail::check(config_.top_k <= config_.num_experts, where, "top_k must not exceed num_experts");
  detail::check_rule(where, config_.rule, config_.num_experts, config_.top_k);
  detail::check(config_.rule.logits.standard_deviation == 0 || config_.num_experts > 1, where,
                "a single expert's logits have no deviation");
  detail::check(std::isfinite(static_cast<Scalar>(config_.rule.scale)), where,
                "scale is too large for the scalar type");
  logits_ = detail::RouterLogits<Scalar>(where, num_experts(), d_model(), config_.rule,
                                         std::move(weights));
}

template <class ScalarT>
void TopKRouter<ScalarT>::route(MatrixView<const Scalar> x, const RouteInputs<Scalar>& inputs,
                                RouteOptions options, Routing<Scalar>& routing) const {
  constexpr const char* where = "TopKRouter::route";
  const RoutingRule& rule = config_.rule;
  detail::check_size(where, "x.cols()", d_model(), x.cols());
  check_inputs(where, inputs, x.rows());
  routing.resize(x.rows(), num_experts(), top_k(), options);
  routing.score_function = rule.score;
  routing.weight_target = rule.weight_target;
  routing.input_scale = rule.input_scale;
  if (rule.renormalization.after_drop) {
    routing.renormalization = rule.renormalization;
    routing.scale_after_drop = rule.scale;
  }
  struct Logits;
  MatrixView<Scalar> logits = routing.logits;
  if (!options.keep_logits)
    logits = {
        detail::thread_buffer<Logits, Scalar>(static_cast<std::size_t>(x.rows() * num_experts())),
        x.rows(), num_experts()};
  logits_.find(x, inputs, options, logits);
  auto& memory = detail::thread_object<ChoiceMemory>();
  memory.resize(parallel::available_threads(), rule, num_experts());
  constexpr Index block = detail::router_block_tokens;
  parallel::for_each_task((x.rows() + block - 1) / block, [&](Index task, int thread) {
    const Index end = std::min((task + 1) * block, x.rows());
    for (Index t = task * block; t < end; ++t)
      choose(logits.row(t), inputs, options, t, memory, thread, routing);
  });
}

}  // namespace moe::inline MOE_ABI
