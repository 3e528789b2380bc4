// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Losses on the squared coefficient of variation: importance and load.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/losses/loss_gradient.hpp"
#include "moe/losses/token_mask.hpp"

namespace moe::inline MOE_ABI::losses {

/// Which variance: over n, or over n - 1. For E experts the first is (E - 1) / E times the second.
enum class Variance {
  population,  ///< Tensor2Tensor, vmoe
  unbiased,    ///< fastmoe, Tutel
};

/// A loss of one variance in terms of the other, for E experts. Exact but for the 1e-10 of the
/// divisor, which both have.
///
/// Throws  std::invalid_argument if there are fewer than two experts.
inline double convert(double loss, Variance from, Variance to, Index num_experts) {
  moe::detail::check(num_experts > 1, "convert", "num_experts must be above 1");
  if (from == to) return loss;
  const auto n = static_cast<double>(num_experts);
  return from == Variance::unbiased ? loss * (n - 1) / n : loss * n / (n - 1);
}

/// The squared coefficient of variation, var / (mean^2 + 1e-10).
///
/// Values  0 where all values are equal, or there are fewer than two.
inline double variation(const Vector<double>& values, Variance variance = Variance::population) {
  if (values.size() < 2) return 0;
  const double mean = values.mean();
  const auto n = static_cast<double>(values.size());
  const double squares = (values.array() - mean).square().sum();
  return squares / (variance == Variance::population ? n : n - 1) / (mean * mean + 1e-10);
}

/// The gradient of `variation` with respect to the values.
///
/// Shapes  result as values.
inline Vector<double> variation_slopes(const Vector<double>& values,
                                       Variance variance = Variance::population) {
  if (values.size() < 2) return Vector<double>::Zero(values.size());
  const double mean = values.mean();
  const auto n = static_cast<double>(values.size());
  const double divisor = mean * mean + 1e-10;
  const double free = variance == Variance::population ? n : n - 1;
  const Vector<double> deviation = (values.array() - mean).matrix();
  const double of_mean = -deviation.squaredNorm() / free * 2 * mean / (divisor * divisor);
  return (2 / (free * divisor) * deviation.array() + of_mean / n).matrix();
}

/// Sums over the tokens of the experts' weights.
///
/// Shapes  result (E).
template <class Scalar>
Vector<double> expert_importance(const Routing<Scalar>& routing, TokenMask mask = {}) {
  moe::detail::check_routing("expert_importance", routing);
  detail::count_tokens("expert_importance", mask, routing.tokens());
  Vector<double> sums = Vector<double>::Zero(routing.num_experts);
  for (Index t = 0; t < routing.tokens(); ++t)
    for (Index k = 0; k < routing.top_k() && detail::counts(mask, t); ++k)
      if (routing.experts(t, k) != no_expert)
        sums[routing.experts(t, k)] += static_cast<double>(routing.weights(t, k));
  return sums;
}

/// Importance: the squared coefficient of variation of the experts' summed weights.
///
/// Values  0 at balance; 0 where no token counts. The gradient is with respect to the weights
///         (T, K), and goes on to the logits with that of the layer's output.
/// Throws  ShapeError if the mask is not T long.
/// Source  Shazeer et al. (2017), eq. 6-7, arXiv:1701.06538; Tensor2Tensor `cv_squared`; fastmoe.
/// Differs from vmoe and Tutel, which sum the softmax over all experts instead of the weights of
/// the chosen: `variation(balance_sums(routing).probabilities)`.
template <class Scalar>
Scalar importance(const Routing<Scalar>& routing, Variance variance = Variance::population,
                  TokenMask mask = {}, std::type_identity_t<LossGradient<Scalar>> gradient = {}) {
  detail::check_gradient("importance", gradient, routing.tokens(), routing.top_k());
  const Vector<double> values = expert_importance(routing, mask);  // (E)
  if (gradient.wanted()) {
    const Vector<double> slopes = variation_slopes(values, variance);  // (E)
    for (Index t = 0; t < routing.tokens(); ++t)
      for (Index k = 0; k < routing.top_k() && detail::counts(mask, t); ++k)
        if (routing.experts(t, k) != no_expert)
          gradient.sum(t, k) +=
              static_cast<Scalar>(gradient.coefficient * slopes[routing.experts(t, k)]);
  }
  return static_cast<Scalar>(variation(values, variance));
}

/// How an expert's chance to be among the K best is estimated.
enum class LoadThreshold {
  excluding,  ///< P = Phi((z - t) / sigma), t the K-th best noisy logit of the others: Shazeer
  kth,  ///< P = Phi((z - t) / sigma), t the K-th best noisy logit of all: vmoe; Tutel, where z
        ///< is the softmax of the logits
};

/// Where the load loss adds its gradient, by each of its arguments.
///
/// Shapes  logits, noisy_logits, deviation (T, E), each of which may be left out. Noisy logits take
///         part as thresholds only, and come from logits, noise and deviation themselves: a
///         NoisyTopKRouter's backward has that path.
template <class Scalar>
struct LoadGradient {
  MatrixView<Scalar> logits{};
  MatrixView<Scalar> noisy_logits{};
  MatrixView<Scalar> deviation{};
  double coefficient = 1;

  bool wanted() const noexcept {
    return logits.data() != nullptr || noisy_logits.data() != nullptr ||
           deviation.data() != nullptr;
  }
};

namespace detail {

/// Calls use(token, expert, threshold's expert, z) with z = (logit - threshold) / deviation.
///
/// Throws  as smooth_load.
template <class Logits, class Scalar, class Use>
void for_each_load(const char* where, const Logits& logits, MatrixView<const Scalar> noisy_logits,
                   MatrixView<const Scalar> deviation, Index top_k, LoadThreshold threshold,
                   TokenMask mask, Use&& use) {
  const Index experts = logits.cols();
  moe::detail::check(top_k > 0 && top_k <= experts, where, "top_k must be from 1 to num_experts");
  for (const MatrixView<const Scalar>* m : {&noisy_logits, &deviation}) {
    moe::detail::check_size(where, "rows", logits.rows(), m->rows());
    moe::detail::check_size(where, "cols", experts, m->cols());
  }
  count_tokens(where, mask, logits.rows());
  if (top_k == experts) return;
  std::vector<Index> order(static_cast<std::size_t>(experts));
  for (Index t = 0; t < logits.rows(); ++t) {
    if (!counts(mask, t)) continue;
    const Scalar* const noisy = noisy_logits.row(t);
    for (Index e = 0; e < experts; ++e) order[static_cast<std::size_t>(e)] = e;
    std::partial_sort(order.begin(), order.begin() + top_k + 1, order.end(), [&](Index a, Index b) {
      return noisy[a] != noisy[b] ? noisy[a] > noisy[b] : a < b;
    });
    const Index kth = order[static_cast<std::size_t>(top_k - 1)];
    const Index next = order[static_cast<std::size_t>(top_k)];
    for (Index e = 0; e < experts; ++e) {
      const bool is_in = noisy[e] > noisy[next];
      const Index least = threshold == LoadThreshold::excluding && is_in ? next : kth;
      use(t, e, least,
          static_cast<double>(logits(t, e) - noisy[least]) / static_cast<double>(deviation(t, e)));
    }
  }
}

}  // namespace detail

/// Smooth load: for each expert, the sum over the tokens of the probability that it would be chosen
/// if its own noise were drawn anew.
///
/// Shapes  logits (without noise), noisy_logits, deviation (T, E), as NoisyTopKRouter gives them;
///         result (E).
/// Values  T K / E each at balance. With K = E every expert has all tokens.
/// Throws  ShapeError if sizes disagree; std::invalid_argument unless 0 < K <= E.
/// Source  Shazeer et al. (2017), eq. 8-10, arXiv:1701.06538; kth: Riquelme et al. (2021),
///         arXiv:2106.05974.
template <class Logits, class Scalar = typename Logits::Scalar>
Vector<double> smooth_load(const Logits& logits,
                           std::type_identity_t<MatrixView<const Scalar>> noisy_logits,
                           std::type_identity_t<MatrixView<const Scalar>> deviation, Index top_k,
                           LoadThreshold threshold = LoadThreshold::excluding,
                           TokenMask mask = {}) {
  constexpr const char* where = "smooth_load";
  const Index experts = logits.cols();
  Vector<double> load = Vector<double>::Zero(experts);
  detail::for_each_load<Logits, Scalar>(where, logits, noisy_logits, deviation, top_k, threshold,
                                        mask, [&](Index, Index e, Index, double z) {
                                          load[e] += std::erfc(-z * 0.70710678118654752440) / 2;
                                        });
  if (top_k == experts)
    load.setConstant(static_cast<double>(detail::count_tokens(where, mask, logits.rows())));
  return load;
}

/// From the gradient with respect to each expert's smooth load to those with respect to its
/// arguments. With K = E there are none.
///
/// Shapes  slopes (E), dL / d load[e].
/// Throws  as smooth_load; ShapeError if a size of the gradient disagrees; std::invalid_argument if
///         its coefficient is not finite.
template <class Logits, class Scalar = typename Logits::Scalar>
void add_load_gradient(const Logits& logits,
                       std::type_identity_t<MatrixView<const Scalar>> noisy_logits,
                       std::type_identity_t<MatrixView<const Scalar>> deviation, Index top_k,
                       const Vector<double>& slopes, const LoadGradient<Scalar>& gradient,
                       LoadThreshold threshold = LoadThreshold::excluding, TokenMask mask = {}) {
  constexpr const char* where = "add_load_gradient";
  if (!gradient.wanted()) return;
  detail::check_coefficient(where, gradient.coefficient);
  moe::detail::check_size(where, "slopes.size()", logits.cols(), slopes.size());
  for (const MatrixView<Scalar>* m :
       {&gradient.logits, &gradient.noisy_logits, &gradient.deviation}) {
    if (m->data() == nullptr) continue;
    moe::detail::check_size(where, "gradient rows", logits.rows(), m->rows());
    moe::detail::check_size(where, "gradient cols", logits.cols(), m->cols());
  }
  detail::for_each_load<Logits, Scalar>(
      where, logits, noisy_logits, deviation, top_k, threshold, mask,
      [&](Index t, Index e, Index least, double z) {
        const double density = 0.39894228040143267794 * std::exp(-z * z / 2);
        const double slope =
            gradient.coefficient * slopes[e] * density / static_cast<double>(deviation(t, e));
        const auto add = [](MatrixView<Scalar> to, Index row, Index col, double value) {
          if (to.data() != nullptr) to(row, col) += static_cast<Scalar>(value);
        };
        add(gradient.logits, t, e, slope);
        add(gradient.noisy_logits, t, least, -slope);
        add(gradient.deviation, t, e, -slope * z);
      });
}

/// The load loss: the variation of `smooth_load`.
///
/// Values  0 at balance. See `variation` and `smooth_load`, whose arguments these are.
/// Source  Shazeer et al. (2017), eq. 11, arXiv:1701.06538. Tutel's loss is the mean of this and of
///         importance.
template <class Logits, class Scalar = typename Logits::Scalar>
double load(const Logits& logits, std::type_identity_t<MatrixView<const Scalar>> noisy_logits,
            std::type_identity_t<MatrixView<const Scalar>> deviation, Index top_k,
            Variance variance = Variance::population,
            LoadThreshold threshold = LoadThreshold::excluding, TokenMask mask = {},
            const LoadGradient<Scalar>& gradient = {}) {
  const Vector<double> values =
      smooth_load(logits, noisy_logits, deviation, top_k, threshold, mask);  // (E)
  add_load_gradient(logits, noisy_logits, deviation, top_k, variation_slopes(values, variance),
                    gradient, threshold, mask);
  return variation(values, variance);
}

}  // namespace moe::inline MOE_ABI::losses
