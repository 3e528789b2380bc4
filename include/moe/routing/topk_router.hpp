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
#include "moe/routing/routing_rule.hpp"
#include "moe/routing/token_choice.hpp"
#include "moe/routing/topk_backward.hpp"

namespace moe::inline MOE_ABI {

/// Sizes and conventions of a TopKRouter.
struct RouterConfig {
  Index d_model = 0;
  Index num_experts = 0;
  Index top_k = 0;
  RoutingRule rule = {.renormalization = {.kind = Renormalization::sum}};
};

/// What a TopKRouter has learnt.
///
/// Shapes  weight (E, D), or (E, P) with a projection; projection (P, D); residual (E, R), of the
///         previous layer's R logits; bias, selection_bias (E); projection_bias (P). All but weight
///         may be empty.
template <class Scalar>
struct RouterWeights {
  Matrix<Scalar> weight{};           // (E, D)
  Vector<Scalar> bias{};             // (E), added to the logits
  Vector<Scalar> selection_bias{};   // (E), added to the scores for selection only
  Matrix<Scalar> projection{};       // (P, D)
  Vector<Scalar> projection_bias{};  // (P)
  Matrix<Scalar> residual{};         // (E, R)
};

/// What a caller may supply to `TopKRouter::route` beside the tokens.
///
/// Shapes  jitter (T, D), uniform in 0 .. 1; noise (T, E), of deviation 1; previous_logits (T, R).
///         Empty: drawn from the options' seed; no residual.
template <class Scalar>
struct RouteInputs {
  MatrixView<const Scalar> jitter{};
  MatrixView<const Scalar> noise{};
  MatrixView<const Scalar> previous_logits{};
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
  const RouterWeights<Scalar>& weights() const noexcept { return weights_; }

  /// For a bias that is learnt by a BiasController.
  ///
  /// Throws  ShapeError unless the bias is empty or E long.
  void set_selection_bias(Vector<Scalar> bias) {
    if (bias.size() != 0)
      detail::check_size("TopKRouter::set_selection_bias", "bias.size()", num_experts(),
                         bias.size());
    weights_.selection_bias = std::move(bias);
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

  using Gradients = RouterGradients<Scalar>;

  /// Zeros, to which `backward` adds.
  Gradients gradients() const {
    return {Matrix<Scalar>::Zero(weights_.weight.rows(), weights_.weight.cols()),
            Vector<Scalar>::Zero(weights_.bias.size())};
  }

  /// The reverse of `route`: from gradients with respect to the weights, and those that losses gave
  /// with respect to the logits, to those of the router's weight and bias and of the tokens. The
  /// selection bias has none.
  ///
  /// Values  the bits do not depend on the number of threads.
  /// Throws  std::invalid_argument if logits are not linear in x, or scaled to a deviation, or take
  ///         a residual, or had noise and became weights past the scores: these have no gradient
  ///         here; ShapeError if the routing was made without logits and scores, or the gradients
  ///         are of another router.
  void backward(const RouterBackward<Scalar>& call, Gradients& gradients) const {
    constexpr const char* where = "TopKRouter::backward";
    check_backward(where, call.options, gradients);
    detail::backward_of_logits(where, config_.rule, weights_.weight, call, gradients);
  }

  /// Throws  what `backward` would for these options and gradients, beginning with `where`, so that
  ///         a layer refuses them before it has added to any gradient.
  void check_backward(const char* where, const RouteOptions& options,
                      const Gradients& gradients) const {
    const LogitRule& logits = config_.rule.logits;
    detail::check(logits.form == LogitForm::linear && logits.standard_deviation == 0 &&
                      weights_.residual.size() == 0,
                  where, "only logits that are linear in x have a gradient");
    // Routing::logits are those without noise, scores those with.
    const WeightSource source = config_.rule.weights_from;
    detail::check(!options.training || logits.noise == 0 || source == WeightSource::scores ||
                      source == WeightSource::one,
                  where, "weights that are made of noisy logits have no gradient");
    detail::check_size(where, "gradients.weight.rows()", num_experts(), gradients.weight.rows());
    detail::check_size(where, "gradients.weight.cols()", d_model(), gradients.weight.cols());
    detail::check_size(where, "gradients.bias.size()", weights_.bias.size(), gradients.bias.size());
  }

  /// What the experts see in place of x (T, D): x itself, or `buffer` with x jittered, where the
  /// rule says so and the options are those of training.
  MatrixView<const Scalar> hidden_states(MatrixView<const Scalar> x, const RouteOptions& options,
                                         GrowingMatrix<Scalar>& buffer) const {
    const JitterRule& rule = config_.rule.jitter;
    if (!options.training || rule.target != JitterTarget::hidden_states) return x;
    buffer.resize(x.rows(), x.cols());
    jitter<Scalar>(x, rule.epsilon, options.seed, buffer);
    return buffer;
  }

 private:
  /// What the workers need for one token each. Who works on which tokens differs from call to call,
  /// so the calling thread has it for all.
  struct ChoiceMemory {
    std::vector<TokenChoiceScratch<Scalar>> scratch;  // (threads)
    std::vector<Scalar> values;                       // (threads, 3 E)

    void resize(int threads, const RoutingRule& rule, Index num_experts) {
      const auto count = static_cast<std::size_t>(threads);
      if (scratch.size() < count) scratch.resize(count);
      for (TokenChoiceScratch<Scalar>& of_thread : scratch) of_thread.resize(rule, num_experts);
      if (values.size() < count * 3 * static_cast<std::size_t>(num_experts))
        values.resize(count * 3 * static_cast<std::size_t>(num_experts));
    }
  };

  void check_weights() const {
    constexpr const char* where = "TopKRouter";
    const bool projects = weights_.projection.size() != 0;
    const Index width = projects ? weights_.projection.rows() : config_.d_model;
    detail::check(projects || config_.rule.logits.form != LogitForm::two_layer, where,
                  "logits of two layers need a projection");
    detail::check(!projects || config_.rule.logits.form != LogitForm::linear, where,
                  "linear logits have no projection");
    detail::check_size(where, "weight.rows()", config_.num_experts, weights_.weight.rows());
    detail::check_size(where, "weight.cols()", width, weights_.weight.cols());
    if (projects)
      detail::check_size(where, "projection.cols()", config_.d_model, weights_.projection.cols());
    if (weights_.projection_bias.size() != 0)
      detail::check_size(where, "projection_bias.size()", projects ? width : 0,
                         weights_.projection_bias.size());
    if (weights_.bias.size() != 0)
      detail::check_size(where, "bias.size()", config_.num_experts, weights_.bias.size());
    if (weights_.selection_bias.size() != 0)
      detail::check_size(where, "selection_bias.size()", config_.num_experts,
                         weights_.selection_bias.size());
    if (weights_.residual.size() != 0)
      detail::check_size(where, "residual.rows()", config_.num_experts, weights_.residual.rows());
  }

  /// Shapes  x (T, D), logits (T, E).
  void find_logits(MatrixView<const Scalar> x, const RouteInputs<Scalar>& inputs,
                   const RouteOptions& options, MatrixView<Scalar> logits) const {
    const RoutingRule& rule = config_.rule;
    MatrixView<const Scalar> seen = x;  // (T, D) or (T, P)
    struct Jittered;
    struct Projected;
    const auto buffer = [&]<class Tag>(Tag* /*tag*/, Index cols) {
      return MatrixView<Scalar>(
          detail::thread_buffer<Tag, Scalar>(static_cast<std::size_t>(x.rows() * cols)), x.rows(),
          cols);
    };
    if (options.training && rule.jitter.target == JitterTarget::router_input) {
      const MatrixView<Scalar> jittered = buffer(static_cast<Jittered*>(nullptr), d_model());
      jitter_rows(x, inputs, options, jittered);
      seen = jittered;
    }
    if (!projection_.empty()) {
      const MatrixView<Scalar> projected =
          buffer(static_cast<Projected*>(nullptr), projection_.outputs());
      projection_.run(seen, projected);
      for_each_row(projected, [&](Index /*t*/, Scalar* row) {
        for (Index p = 0; p < projected.cols(); ++p) {
          if (weights_.projection_bias.size() != 0) row[p] += weights_.projection_bias[p];
          if (rule.logits.form == LogitForm::two_layer) row[p] = std::tanh(row[p]);
        }
      });
      seen = projected;
    }
    map_.run(seen, logits);
    if (rule.logits.form == LogitForm::cosine)
      for_each_row(logits, [&](Index t, Scalar* row) { divide_by_norms(seen.row(t), row); });
    if (weights_.bias.size() != 0)
      for_each_row(logits, [&](Index /*t*/, Scalar* row) {
        for (Index e = 0; e < num_experts(); ++e) row[e] += weights_.bias[e];
      });
    if (inputs.previous_logits.cols() != 0) residual_.run(inputs.previous_logits, logits, true);
  }

  /// Calls body(t, row) for every row, in parallel.
  template <class Body>
  static void for_each_row(MatrixView<Scalar> m, const Body& body) {
    parallel::for_each_block(m.rows(), detail::router_block_tokens, [&](Index begin, Index end) {
      for (Index t = begin; t < end; ++t) body(t, m.row(t));
    });
  }

  void jitter_rows(MatrixView<const Scalar> x, const RouteInputs<Scalar>& inputs,
                   const RouteOptions& options, MatrixView<Scalar> jittered) const {
    const std::uint64_t seed = detail::stream_seed(options.seed, detail::NoiseStream::jitter);
    const auto epsilon = static_cast<Scalar>(config_.rule.jitter.epsilon);
    for_each_row(jittered, [&](Index t, Scalar* row) {
      detail::noise_row(inputs.jitter, Noise::uniform, seed, t, d_model(), row);
      for (Index d = 0; d < d_model(); ++d) row[d] = x(t, d) * (1 - epsilon + 2 * epsilon * row[d]);
    });
  }

  /// Norms below 1e-12 count as 1e-12.
  void divide_by_norms(const Scalar* token, Scalar* logits) const {
    constexpr Scalar least = Scalar(1e-12);
    const auto norm = [](const Scalar* v, Index n) {
      Scalar sum = 0;
      for (Index i = 0; i < n; ++i) sum += v[i] * v[i];
      return std::fmax(std::sqrt(sum), least);
    };
    const Scalar of_token =
        norm(token, map_.inner()) * static_cast<Scalar>(config_.rule.logits.temperature);
    for (Index e = 0; e < num_experts(); ++e)
      logits[e] /= of_token * norm(detail::row_data(weights_.weight, e), map_.inner());
  }

  /// What brings logits to the rule's deviation. Equal logits stay as they are.
  Scalar scale_of(const Scalar* logits) const {
    Scalar mean = 0;
    Scalar squares = 0;
    for (Index e = 0; e < num_experts(); ++e) mean += logits[e];
    mean /= static_cast<Scalar>(num_experts());
    for (Index e = 0; e < num_experts(); ++e) squares += (logits[e] - mean) * (logits[e] - mean);
    const Scalar deviation = std::sqrt(squares / static_cast<Scalar>(num_experts() - 1));
    if (!(deviation > 0)) return 1;
    return static_cast<Scalar>(config_.rule.logits.standard_deviation) / deviation;
  }

  void choose(const Scalar* logits, const RouteInputs<Scalar>& inputs, const RouteOptions& options,
              Index t, ChoiceMemory& memory, int thread, Routing<Scalar>& routing) const {
    Scalar* const scores = memory.values.data() + 3 * thread * num_experts();
    Scalar* const scaled = scores + num_experts();
    Scalar* const noisy = scaled + num_experts();
    const LogitRule& rule = config_.rule.logits;
    if (rule.standard_deviation > 0) {
      const Scalar factor = scale_of(logits);
      for (Index e = 0; e < num_experts(); ++e) scaled[e] = factor * logits[e];
      logits = scaled;
    }
    if (options.training && rule.noise > 0) {
      const std::uint64_t seed = detail::stream_seed(options.seed, detail::NoiseStream::logits);
      detail::noise_row(inputs.noise, Noise::normal, seed, t, num_experts(), noisy);
      for (Index e = 0; e < num_experts(); ++e)
        noisy[e] = logits[e] + static_cast<Scalar>(rule.noise) * noisy[e];
      logits = noisy;
    }
    choose_experts(config_.rule, logits,
                   weights_.selection_bias.size() != 0 ? weights_.selection_bias.data() : nullptr,
                   num_experts(), top_k(), memory.scratch[static_cast<std::size_t>(thread)],
                   options.keep_scores ? detail::row_data(routing.scores, t) : scores,
                   detail::row_data(routing.experts, t), detail::row_data(routing.weights, t));
  }

  RouterConfig config_;
  RouterWeights<Scalar> weights_;         // as given; the maps below have them packed
  detail::LinearMap<Scalar> map_;         // weight
  detail::LinearMap<Scalar> projection_;  // empty without
  detail::LinearMap<Scalar> residual_;    // empty without
};

template <class ScalarT>
TopKRouter<ScalarT>::TopKRouter(const RouterConfig& config, RouterWeights<Scalar> weights)
    : config_(config), weights_(std::move(weights)) {
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
  check_weights();
  map_ = detail::LinearMap<Scalar>(weights_.weight);
  projection_ = detail::LinearMap<Scalar>(weights_.projection);
  residual_ = detail::LinearMap<Scalar>(weights_.residual);
}

template <class ScalarT>
void TopKRouter<ScalarT>::route(MatrixView<const Scalar> x, const RouteInputs<Scalar>& inputs,
                                RouteOptions options, Routing<Scalar>& routing) const {
  constexpr const char* where = "TopKRouter::route";
  const RoutingRule& rule = config_.rule;
  detail::check_size(where, "x.cols()", d_model(), x.cols());
  detail::check_noise(where, "jitter.rows()", "jitter.cols()", inputs.jitter, x.rows(), d_model());
  detail::check_noise(where, "noise.rows()", "noise.cols()", inputs.noise, x.rows(), num_experts());
  detail::check(inputs.jitter.empty() || rule.jitter.target == JitterTarget::router_input, where,
                "the rule has no jitter of the router's input");
  detail::check(inputs.noise.empty() || rule.logits.noise > 0, where,
                "the rule has no noise of the logits");
  // The first layer of a model has no previous one.
  if (inputs.previous_logits.cols() != 0) {
    detail::check_size(where, "previous_logits.rows()", x.rows(), inputs.previous_logits.rows());
    detail::check_size(where, "previous_logits.cols()", weights_.residual.cols(),
                       inputs.previous_logits.cols());
  }
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
  find_logits(x, inputs, options, logits);
  ChoiceMemory& memory = detail::thread_object<ChoiceMemory>();
  memory.resize(parallel::available_threads(), rule, num_experts());
  constexpr Index block = detail::router_block_tokens;
  parallel::for_each_task((x.rows() + block - 1) / block, [&](Index task, int thread) {
    const Index end = std::min((task + 1) * block, x.rows());
    for (Index t = task * block; t < end; ++t)
      choose(logits.row(t), inputs, options, t, memory, thread, routing);
  });
}

}  // namespace moe::inline MOE_ABI
