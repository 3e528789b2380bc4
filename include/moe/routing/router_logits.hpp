// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// From tokens to logits by a LogitRule, and back.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/thread_buffer.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/linear_map.hpp"
#include "moe/routing/noise.hpp"
#include "moe/routing/router_backward.hpp"
#include "moe/routing/routing_rule.hpp"

namespace moe::inline MOE_ABI {

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

namespace detail {

/// Calls body(t, row) for every row, in parallel.
template <class Scalar, class Body>
void for_each_row(MatrixView<Scalar> m, const Body& body) {
  parallel::for_each_block(m.rows(), router_block_tokens, [&](Index begin, Index end) {
    for (Index t = begin; t < end; ++t) body(t, m.row(t));
  });
}

/// Weights and their packed maps: logits of all forms, scaling and noise.
template <class Scalar>
class RouterLogits {
 public:
  RouterLogits() = default;

  /// Throws  ShapeError if the weights do not have these sizes; std::invalid_argument if the form
  ///         needs or forbids a projection.
  RouterLogits(const char* where, Index num_experts, Index d_model, const RoutingRule& rule,
               RouterWeights<Scalar> weights)
      : logits_(rule.logits),
        jitter_(rule.jitter),
        d_model_(d_model),
        weights_(std::move(weights)) {
    check_weights(where, num_experts);
    map_ = LinearMap<Scalar>(weights_.weight);
    projection_ = LinearMap<Scalar>(weights_.projection);
    residual_ = LinearMap<Scalar>(weights_.residual);
  }

  const RouterWeights<Scalar>& weights() const noexcept { return weights_; }
  void set_selection_bias(Vector<Scalar> bias) { weights_.selection_bias = std::move(bias); }

  RouterGradients<Scalar> gradients() const {
    const auto zeros = [](const Matrix<Scalar>& m) -> Matrix<Scalar> {
      return Matrix<Scalar>::Zero(m.rows(), m.cols());
    };
    return {.weight = zeros(weights_.weight),
            .bias = Vector<Scalar>::Zero(weights_.bias.size()),
            .noise_weight = {},
            .projection = zeros(weights_.projection),
            .projection_bias = Vector<Scalar>::Zero(weights_.projection_bias.size()),
            .residual = zeros(weights_.residual)};
  }

  /// Throws  ShapeError unless the gradients have the sizes of the weights.
  void check_gradients(const char* where, const RouterGradients<Scalar>& gradients) const {
    const auto same = [&](const char* rows_name, const char* cols_name, const auto& a,
                          const auto& b) {
      check_shape(where, rows_name, cols_name, a, b.rows(), b.cols());
    };
    same("gradients.weight.rows()", "gradients.weight.cols()", gradients.weight, weights_.weight);
    check_size(where, "gradients.bias.size()", weights_.bias.size(), gradients.bias.size());
    same("gradients.projection.rows()", "gradients.projection.cols()", gradients.projection,
         weights_.projection);
    check_size(where, "gradients.projection_bias.size()", weights_.projection_bias.size(),
               gradients.projection_bias.size());
    same("gradients.residual.rows()", "gradients.residual.cols()", gradients.residual,
         weights_.residual);
  }

  /// Before scaling and noise.
  ///
  /// Shapes  x (T, D), logits (T, E).
  void find(MatrixView<const Scalar> x, const RouteInputs<Scalar>& inputs,
            const RouteOptions& options, MatrixView<Scalar> logits) const {
    const MatrixView<const Scalar> seen = project(jittered(x, inputs, options));
    map_.run(seen, logits);
    if (logits_.form == LogitForm::cosine)
      for_each_row(logits, [&](Index t, Scalar* row) { divide_by_norms(seen.row(t), row); });
    if (weights_.bias.size() != 0)
      for_each_row(logits, [&](Index /*t*/, Scalar* row) {
        for (Index e = 0; e < logits.cols(); ++e) row[e] += weights_.bias[e];
      });
    if (inputs.previous_logits.cols() != 0) residual_.run(inputs.previous_logits, logits, true);
  }

  /// Whether scores are made of other logits than `find` gave.
  bool changes(const RouteOptions& options) const noexcept {
    return logits_.standard_deviation > 0 || (options.training && logits_.noise > 0);
  }

  /// Logits of token t after scaling and noise: `logits` itself, or `memory`.
  ///
  /// Shapes  logits, memory (E).
  const Scalar* change(const Scalar* logits, const RouteInputs<Scalar>& inputs,
                       const RouteOptions& options, Index t, Scalar* memory) const {
    if (!changes(options)) return logits;
    const Index experts = weights_.weight.rows();
    const bool draws = options.training && logits_.noise > 0;
    if (draws)
      noise_row(inputs.noise, Noise::normal, stream_seed(options.seed, NoiseStream::logits), t,
                experts, memory);
    const Scalar factor = scale_of(logits);
    for (Index e = 0; e < experts; ++e) {  // In one rounding, so that a backward has the same bits.
      const Scalar scaled = factor * logits[e];
      memory[e] = draws ? std::fma(static_cast<Scalar>(logits_.noise), memory[e], scaled) : scaled;
    }
    return memory;
  }

  /// The reverse of `change`: adds to the gradient with respect to its argument.
  ///
  /// Shapes  logits, d_changed, d_logits (E).
  void add_change_gradient(const Scalar* logits, const Scalar* d_changed, Scalar* d_logits) const {
    const Index experts = weights_.weight.rows();
    if (!(logits_.standard_deviation > 0)) {
      for (Index e = 0; e < experts; ++e) d_logits[e] += d_changed[e];
      return;
    }
    const Scalar factor = scale_of(logits);
    const Deviation of = deviation_of(logits);
    Scalar product = 0;
    for (Index e = 0; e < experts; ++e) product += logits[e] * d_changed[e];
    // The factor's own slope in z_e is -(z_e - mean) / ((n - 1) deviation^2) times itself.
    const Scalar moves =
        of.deviation > 0
            ? product * factor / (of.deviation * of.deviation * static_cast<Scalar>(experts - 1))
            : Scalar(0);
    for (Index e = 0; e < experts; ++e)
      d_logits[e] += factor * d_changed[e] - moves * (logits[e] - of.mean);
  }

  /// The reverse of `find`, from call.d_logits.
  void backward(const RouterBackward<Scalar>& call, RouterGradients<Scalar>& gradients) const {
    const MatrixView<const Scalar> d_logits = call.d_logits;
    const MatrixView<const Scalar> given = jittered(call.x, call.inputs, call.options);
    Matrix<Scalar> factors;  // (T, D), what jitter multiplies by
    if (given.data() != call.x.data()) {
      factors.setOnes(given.rows(), d_model_);
      jitter<Scalar>(factors, jitter_.epsilon, call.options.seed, factors, call.inputs.jitter);
    }
    if (!call.frozen) add_bias_gradient(d_logits, gradients.bias);
    if (call.inputs.previous_logits.cols() != 0) {
      if (!call.frozen)
        add_transposed_product(d_logits, call.inputs.previous_logits, gradients.residual);
      if (!call.d_previous_logits.empty())
        add_product(d_logits, weights_.residual, {}, call.d_previous_logits);
    }
    if (logits_.form == LogitForm::linear) {
      if (!call.frozen) add_transposed_product(d_logits, given, gradients.weight);
      return add_product<Scalar>(d_logits, weights_.weight, factors, call.dx);
    }
    const MatrixView<const Scalar> seen = project(given);
    Matrix<Scalar> d_seen = Matrix<Scalar>::Zero(seen.rows(), seen.cols());  // (T, P)
    add_map_gradients(d_logits, seen, call.frozen, gradients.weight, d_seen);
    if (projection_.empty()) {
      for (Index t = 0; t < d_seen.rows(); ++t)
        for (Index d = 0; d < d_seen.cols(); ++d)
          call.dx(t, d) += (factors.size() != 0 ? factors(t, d) : Scalar(1)) * d_seen(t, d);
      return;
    }
    if (logits_.form == LogitForm::two_layer)
      for (Index t = 0; t < d_seen.rows(); ++t)
        for (Index p = 0; p < d_seen.cols(); ++p) d_seen(t, p) *= 1 - seen(t, p) * seen(t, p);
    if (!call.frozen) {
      add_transposed_product<Scalar>(d_seen, given, gradients.projection);
      add_bias_gradient<Scalar>(d_seen, gradients.projection_bias);
    }
    add_product<Scalar>(d_seen, weights_.projection, factors, call.dx);
  }

 private:
  void check_weights(const char* where, Index num_experts) const {
    const bool projects = weights_.projection.size() != 0;
    const Index width = projects ? weights_.projection.rows() : d_model_;
    check(projects || logits_.form != LogitForm::two_layer, where,
          "logits of two layers need a projection");
    check(!projects || logits_.form != LogitForm::linear, where,
          "linear logits have no projection");
    check_size(where, "weight.rows()", num_experts, weights_.weight.rows());
    check_size(where, "weight.cols()", width, weights_.weight.cols());
    if (projects) check_size(where, "projection.cols()", d_model_, weights_.projection.cols());
    if (weights_.projection_bias.size() != 0)
      check_size(where, "projection_bias.size()", projects ? width : 0,
                 weights_.projection_bias.size());
    if (weights_.bias.size() != 0)
      check_size(where, "bias.size()", num_experts, weights_.bias.size());
    if (weights_.selection_bias.size() != 0)
      check_size(where, "selection_bias.size()", num_experts, weights_.selection_bias.size());
    if (weights_.residual.size() != 0)
      check_size(where, "residual.rows()", num_experts, weights_.residual.rows());
  }

  template <class Tag>
  static MatrixView<Scalar> buffer(Index rows, Index cols) {
    return {thread_buffer<Tag, Scalar>(static_cast<std::size_t>(rows * cols)), rows, cols};
  }

  /// x, or this thread's memory with x jittered.
  MatrixView<const Scalar> jittered(MatrixView<const Scalar> x, const RouteInputs<Scalar>& inputs,
                                    const RouteOptions& options) const {
    if (!options.training || jitter_.target != JitterTarget::router_input || jitter_.epsilon == 0)
      return x;
    struct Jittered;
    const MatrixView<Scalar> result = buffer<Jittered>(x.rows(), d_model_);
    const std::uint64_t seed = stream_seed(options.seed, NoiseStream::jitter);
    const auto epsilon = static_cast<Scalar>(jitter_.epsilon);
    for_each_row(result, [&](Index t, Scalar* row) {
      noise_row(inputs.jitter, Noise::uniform, seed, t, d_model_, row);
      for (Index d = 0; d < d_model_; ++d) row[d] = x(t, d) * (1 - epsilon + 2 * epsilon * row[d]);
    });
    return result;
  }

  /// x, or this thread's memory with what the projection makes of it.
  MatrixView<const Scalar> project(MatrixView<const Scalar> x) const {
    if (projection_.empty()) return x;
    struct Projected;
    const MatrixView<Scalar> result = buffer<Projected>(x.rows(), projection_.outputs());
    projection_.run(x, result);
    for_each_row(result, [&](Index /*t*/, Scalar* row) {
      for (Index p = 0; p < result.cols(); ++p) {
        if (weights_.projection_bias.size() != 0) row[p] += weights_.projection_bias[p];
        if (logits_.form == LogitForm::two_layer) row[p] = std::tanh(row[p]);
      }
    });
    return result;
  }

  /// The reverse of the last map, cosine or not: weight (E, P) and d_seen (T, P) are added to.
  void add_map_gradients(MatrixView<const Scalar> d_logits, MatrixView<const Scalar> seen,
                         bool frozen, Matrix<Scalar>& weight, Matrix<Scalar>& d_seen) const {
    if (logits_.form != LogitForm::cosine) {
      if (!frozen) add_transposed_product(d_logits, seen, weight);
      return add_product<Scalar>(d_logits, weights_.weight, {}, d_seen);
    }
    // z = s w / (|s| |w| temperature): along s, and along w, it does not move.
    Matrix<Scalar> scaled = d_logits.map();  // (T, E)
    for (Index t = 0; t < scaled.rows(); ++t) divide_by_norms(seen.row(t), row_data(scaled, t));
    add_product<Scalar>(scaled, weights_.weight, {}, d_seen);
    for (Index t = 0; t < seen.rows(); ++t)
      remove_part_along(seen.row(t), seen.cols(), row_data(d_seen, t));
    if (frozen) return;
    Matrix<Scalar> d_weight = Matrix<Scalar>::Zero(weight.rows(), weight.cols());
    add_transposed_product<Scalar>(scaled, seen, d_weight);
    for (Index e = 0; e < weight.rows(); ++e)
      remove_part_along(row_data(weights_.weight, e), weight.cols(), row_data(d_weight, e));
    weight += d_weight;
  }

  static constexpr Scalar least_norm = Scalar(1e-12);

  static Scalar squared_norm(const Scalar* v, Index n) {
    Scalar sum = 0;
    for (Index i = 0; i < n; ++i) sum += v[i] * v[i];
    return sum;
  }

  /// Not where the norm counts as the least one.
  static void remove_part_along(const Scalar* direction, Index n, Scalar* gradient) {
    const Scalar squares = squared_norm(direction, n);
    if (!(std::sqrt(squares) > least_norm)) return;
    Scalar product = 0;
    for (Index i = 0; i < n; ++i) product += direction[i] * gradient[i];
    for (Index i = 0; i < n; ++i) gradient[i] -= direction[i] * (product / squares);
  }

  /// Norms below 1e-12 count as 1e-12.
  void divide_by_norms(const Scalar* token, Scalar* logits) const {
    const auto norm = [](const Scalar* v, Index n) {
      return std::fmax(std::sqrt(squared_norm(v, n)), least_norm);
    };
    const Scalar of_token = norm(token, map_.inner()) * static_cast<Scalar>(logits_.temperature);
    for (Index e = 0; e < map_.outputs(); ++e)
      logits[e] /= of_token * norm(row_data(weights_.weight, e), map_.inner());
  }

  struct Deviation {
    Scalar mean;
    Scalar deviation;  // by n - 1
  };
  Deviation deviation_of(const Scalar* logits) const {
    const Index experts = weights_.weight.rows();
    Scalar mean = 0;
    Scalar squares = 0;
    for (Index e = 0; e < experts; ++e) mean += logits[e];
    mean /= static_cast<Scalar>(experts);
    for (Index e = 0; e < experts; ++e) {
      const Scalar distance = logits[e] - mean;
      squares += distance * distance;
    }
    return {mean, std::sqrt(squares / static_cast<Scalar>(experts - 1))};
  }

  /// What brings logits to the rule's deviation, if it has one. Equal logits stay as they are.
  Scalar scale_of(const Scalar* logits) const {
    if (!(logits_.standard_deviation > 0)) return 1;
    const Scalar deviation = deviation_of(logits).deviation;
    return deviation > 0 ? static_cast<Scalar>(logits_.standard_deviation) / deviation : Scalar(1);
  }

  LogitRule logits_{};
  JitterRule jitter_{};
  Index d_model_ = 0;
  RouterWeights<Scalar> weights_{};  // as given; the maps below have them packed
  LinearMap<Scalar> map_{};          // weight
  LinearMap<Scalar> projection_{};   // empty without
  LinearMap<Scalar> residual_{};     // empty without
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI
