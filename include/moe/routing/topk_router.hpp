// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// TopKRouter: every token-choice family with a linear router.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/product.hpp"
#include "moe/core/random.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/noise.hpp"
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
  TopKRouter(const RouterConfig& config, RouterWeights<Scalar> weights)
      : config_(config), weights_(std::move(weights)) {
    constexpr const char* where = "TopKRouter";
    detail::check(config_.d_model > 0, where, "d_model must be positive");
    detail::check(config_.num_experts > 0, where, "num_experts must be positive");
    detail::check(config_.top_k > 0, where, "top_k must be positive");
    detail::check(config_.top_k <= config_.num_experts, where, "top_k must not exceed num_experts");
    detail::check_rule(where, config_.rule, config_.num_experts, config_.top_k);
    detail::check(std::isfinite(static_cast<Scalar>(config_.rule.scale)), where,
                  "scale is too large for the scalar type");
    check_weights();
  }

  /// A router whose logits have about unit variance for a unit-variance input.
  template <std::uniform_random_bit_generator Generator>
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
  ///         kept as they are before noise.
  /// Ties    lower expert index first; NaN as for `choose_experts`.
  /// Cost    2 T E D flop, parallel over blocks of tokens.
  /// Throws  ShapeError if x is not D wide or an input has another shape than RouteInputs says;
  ///         std::invalid_argument if previous logits are missing or not expected.
  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    route(x, {}, options, routing);
  }

  /// The same with noise or previous logits that the caller supplies.
  void route(MatrixView<const Scalar> x, const RouteInputs<Scalar>& inputs, RouteOptions options,
             Routing<Scalar>& routing) const {
    constexpr const char* where = "TopKRouter::route";
    const RoutingRule& rule = config_.rule;
    detail::check_size(where, "x.cols()", d_model(), x.cols());
    detail::check_noise(where, "jitter.rows()", "jitter.cols()", inputs.jitter, x.rows(),
                        d_model());
    detail::check_noise(where, "noise.rows()", "noise.cols()", inputs.noise, x.rows(),
                        num_experts());
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
    parallel::for_each_block(x.rows(), detail::tile_rows, [&](Index begin, Index end) {
      route_tile(x, inputs, options, begin, end, routing);
    });
  }

  /// What the experts see in place of x (T, D): x itself, or `buffer` with x jittered, where the
  /// rule says so and the options are those of training.
  MatrixView<const Scalar> hidden_states(MatrixView<const Scalar> x, const RouteOptions& options,
                                         Matrix<Scalar>& buffer) const {
    const JitterRule& rule = config_.rule.jitter;
    if (!options.training || rule.target != JitterTarget::hidden_states) return x;
    buffer.resize(x.rows(), x.cols());
    jitter<Scalar>(x, rule.epsilon, options.seed, buffer);
    return buffer;
  }

 private:
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

  /// Logits of a tile of tokens.
  ///
  /// Shapes  result (padded rows, E).
  Matrix<Scalar> tile_logits(MatrixView<const Scalar> x, const RouteInputs<Scalar>& inputs,
                             const RouteOptions& options, Index begin, Index rows) const {
    const RoutingRule& rule = config_.rule;
    const bool jitters = options.training && rule.jitter.target == JitterTarget::router_input;
    MatrixView<const Scalar> tokens = x.middle_rows(begin, rows);
    Matrix<Scalar> tile = detail::padded_tile(tokens, num_experts());
    if (jitters) {
      const std::uint64_t seed = detail::stream_seed(options.seed, detail::NoiseStream::jitter);
      const auto epsilon = static_cast<Scalar>(rule.jitter.epsilon);
      Vector<Scalar> u(d_model());  // (D)
      for (Index t = 0; t < rows; ++t) {
        detail::noise_row(inputs.jitter, Noise::uniform, seed, begin + t, d_model(), u.data());
        tile.row(t).array() *= 1 - epsilon + 2 * epsilon * u.transpose().array();
      }
    }
    if (weights_.projection.size() != 0) {
      tile = detail::padded_product(tile, rows, weights_.projection);
      if (weights_.projection_bias.size() != 0)
        tile.rowwise() += weights_.projection_bias.transpose();
      if (rule.logits.form == LogitForm::two_layer) tile = tile.array().tanh();
    }
    Matrix<Scalar> logits = detail::padded_product(tile, rows, weights_.weight);
    if (rule.logits.form == LogitForm::cosine) divide_by_norms(tile, rows, logits);
    if (weights_.bias.size() != 0) logits.rowwise() += weights_.bias.transpose();
    if (inputs.previous_logits.cols() != 0)
      logits.topRows(rows) +=
          detail::padded_product(
              detail::padded_tile(inputs.previous_logits.middle_rows(begin, rows), num_experts()),
              rows, weights_.residual)
              .topRows(rows);
    for (Index t = 0; t < rows && rule.logits.standard_deviation > 0; ++t) standardize(logits, t);
    return logits;
  }

  /// Norms below 1e-12 count as 1e-12.
  void divide_by_norms(const Matrix<Scalar>& tile, Index rows, Matrix<Scalar>& logits) const {
    constexpr Scalar least = Scalar(1e-12);
    const auto norm = [](const Scalar* v, Index n) {
      Scalar sum = 0;
      for (Index i = 0; i < n; ++i) sum += v[i] * v[i];
      return std::fmax(std::sqrt(sum), least);
    };
    const auto temperature = static_cast<Scalar>(config_.rule.logits.temperature);
    for (Index t = 0; t < rows; ++t) {
      const Scalar token = norm(tile.row(t).data(), tile.cols()) * temperature;
      for (Index e = 0; e < num_experts(); ++e)
        logits(t, e) /= token * norm(weights_.weight.row(e).data(), weights_.weight.cols());
    }
  }

  void standardize(Matrix<Scalar>& logits, Index t) const {
    Scalar mean = 0;
    Scalar squares = 0;
    for (Index e = 0; e < num_experts(); ++e) mean += logits(t, e);
    mean /= static_cast<Scalar>(num_experts());
    for (Index e = 0; e < num_experts(); ++e)
      squares += (logits(t, e) - mean) * (logits(t, e) - mean);
    const Scalar deviation = std::sqrt(squares / static_cast<Scalar>(num_experts() - 1));
    if (!(deviation > 0)) return;  // Equal logits stay as they are.
    logits.row(t) *= static_cast<Scalar>(config_.rule.logits.standard_deviation) / deviation;
  }

  void route_tile(MatrixView<const Scalar> x, const RouteInputs<Scalar>& inputs,
                  const RouteOptions& options, Index begin, Index end,
                  Routing<Scalar>& routing) const {
    const Index rows = end - begin;
    Matrix<Scalar> logits = tile_logits(x, inputs, options, begin, rows);
    if (routing.logits.size() != 0)
      for (Index t = begin; t < end; ++t)
        std::copy_n(logits.row(t - begin).data(), num_experts(), routing.logits.row(t).data());
    if (options.training && config_.rule.logits.noise > 0) {
      const std::uint64_t seed = detail::stream_seed(options.seed, detail::NoiseStream::logits);
      Vector<Scalar> noise(num_experts());  // (E)
      for (Index t = begin; t < end; ++t) {
        detail::noise_row(inputs.noise, Noise::normal, seed, t, num_experts(), noise.data());
        logits.row(t - begin) += static_cast<Scalar>(config_.rule.logits.noise) * noise.transpose();
      }
    }

    const Scalar* const selection_bias =
        weights_.selection_bias.size() != 0 ? weights_.selection_bias.data() : nullptr;
    TokenChoiceScratch<Scalar> scratch(config_.rule, num_experts());
    std::vector<Scalar> scores(static_cast<std::size_t>(num_experts()));
    const bool keep_scores = routing.scores.size() != 0;
    for (Index t = begin; t < end; ++t) {
      Scalar* const score = keep_scores ? routing.scores.row(t).data() : scores.data();
      choose_experts(config_.rule, logits.row(t - begin).data(), selection_bias, num_experts(),
                     top_k(), scratch, score, routing.experts.row(t).data(),
                     routing.weights.row(t).data());
    }
  }

  RouterConfig config_;
  RouterWeights<Scalar> weights_;
};

static_assert(Router<TopKRouter<float>> && Router<TopKRouter<double>>);

}  // namespace moe::inline MOE_ABI
