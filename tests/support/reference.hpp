// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A naive implementation of everything in double precision: plain loops, full sorts, no code of the
// library beside its value types.
//
//   logits, scores          of a linear router
//   choose                  experts and weights of one token by a RoutingRule
//   group_by_expert         the rows of a plan, and the drops of a capacity
//   Expert, run_expert      one feed-forward expert on one token
//   mixture                 the whole block
//   bound_of_mixture        sum |a||b| of the block, from which tolerances are derived
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include <moe/core/dispatch_plan.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/routing/routing_rule.hpp>

namespace reference {

using moe::Index;
using Values = std::vector<double>;
using MatrixD = moe::Matrix<double>;

template <class Derived>
Values row_of(const Eigen::DenseBase<Derived>& matrix, Index row) {
  Values values;
  for (Index c = 0; c < matrix.cols(); ++c)
    values.push_back(static_cast<double>(matrix.derived()(row, c)));
  return values;
}

/// w x + bias, for w [out, in]; an empty bias is none.
inline Values linear(const MatrixD& w, const Values& x, const Values& bias = {}) {
  Values y;
  for (Index o = 0; o < w.rows(); ++o) {
    double sum = 0;
    for (Index i = 0; i < w.cols(); ++i) sum += w(o, i) * x[static_cast<std::size_t>(i)];
    y.push_back(sum + (bias.empty() ? 0 : bias[static_cast<std::size_t>(o)]));
  }
  return y;
}

/// Finite logits only: what NaN and infinity mean is tested by examples.
inline Values scores(moe::ScoreFunction function, const Values& logits) {
  Values s;
  double sum = 0;
  for (const double z : logits) sum += std::exp(z);
  for (const double z : logits) {
    switch (function) {
      case moe::ScoreFunction::softmax:
        s.push_back(std::exp(z) / sum);
        break;
      case moe::ScoreFunction::sigmoid:
        s.push_back(1 / (1 + std::exp(-z)));
        break;
      case moe::ScoreFunction::sqrt_softplus:
        s.push_back(std::sqrt(std::log1p(std::exp(z))));
        break;
      case moe::ScoreFunction::identity:
        s.push_back(z);
        break;
    }
  }
  return s;
}

/// The indices of the k largest keys, in descending order, the lower index first among equals.
inline std::vector<Index> top_k(const Values& key, Index k) {
  std::vector<Index> order(key.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
    return key[static_cast<std::size_t>(a)] > key[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(k));
  return order;
}

inline Values mask_groups(const moe::GroupRule& rule, Values key) {
  if (rule.kept >= rule.count) return key;
  const std::size_t size = key.size() / static_cast<std::size_t>(rule.count);
  Values group_score;
  for (std::size_t begin = 0; begin < key.size(); begin += size) {
    Values group(key.begin() + static_cast<Index>(begin),
                 key.begin() + static_cast<Index>(begin + size));
    std::sort(group.begin(), group.end(), std::greater<>());
    const Index best = rule.score == moe::GroupScore::maximum ? 1 : rule.top;
    group_score.push_back(std::accumulate(group.begin(), group.begin() + best, 0.0));
  }
  const std::vector<Index> kept = top_k(group_score, rule.kept);
  for (std::size_t i = 0; i < key.size(); ++i)
    if (std::find(kept.begin(), kept.end(), static_cast<Index>(i / size)) == kept.end())
      key[i] = rule.fill == moe::GroupFill::zero ? 0 : -std::numeric_limits<double>::infinity();
  return key;
}

struct Choice {
  std::vector<Index> experts;  // (K)
  Values weights;              // (K)
};

/// `bias` serves selection only and may be empty.
inline Choice choose(const moe::RoutingRule& rule, const Values& logits, const Values& bias,
                     Index k) {
  const Values s = scores(rule.score, logits);
  Values key = s;
  for (std::size_t e = 0; e < bias.size(); ++e) key[e] += bias[e];
  Choice choice{top_k(mask_groups(rule.groups, key), k), {}};
  Values chosen_logits;
  for (const Index e : choice.experts) {
    const double z = logits[static_cast<std::size_t>(e)];
    chosen_logits.push_back(z);
    choice.weights.push_back(rule.weights_from == moe::WeightSource::one ? 1
                             : rule.weights_from == moe::WeightSource::sigmoid_of_chosen
                                 ? 1 / (1 + std::exp(-z))
                                 : s[static_cast<std::size_t>(e)]);
  }
  if (rule.weights_from == moe::WeightSource::softmax_of_chosen)
    choice.weights = scores(moe::ScoreFunction::softmax, chosen_logits);

  const moe::RenormalizationRule& norm = rule.renormalization;
  double sum = 0;
  double power_sum = 0;
  for (const double w : choice.weights) {
    sum += w;
    power_sum += std::pow(std::fabs(w), norm.p);
  }
  double divisor = 1;
  if (norm.kind == moe::Renormalization::sum) divisor = sum + norm.epsilon;
  if (norm.kind == moe::Renormalization::clamped_sum) divisor = std::max(sum, norm.epsilon);
  if (norm.kind == moe::Renormalization::p_norm) divisor = std::pow(power_sum, 1 / norm.p);
  if (k == 1 && !norm.at_top_1) divisor = 1;
  for (double& w : choice.weights) w = w / divisor * rule.scale;
  return choice;
}

struct Groups {
  std::vector<std::vector<moe::TokenSlot>> rows;  // (E) lists
  std::vector<moe::TokenSlot> dropped;
};

/// Choices by expert in order of token, then slot; beyond `limit` of an expert they are dropped.
template <class Scalar>
Groups group_by_expert(const moe::Routing<Scalar>& routing, Index limit) {
  Groups groups;
  groups.rows.resize(static_cast<std::size_t>(routing.num_experts));
  for (Index t = 0; t < routing.tokens(); ++t) {
    for (Index k = 0; k < routing.top_k(); ++k) {
      auto& rows = groups.rows[static_cast<std::size_t>(routing.experts(t, k))];
      const moe::TokenSlot choice{static_cast<std::int32_t>(t), static_cast<std::int32_t>(k)};
      if (static_cast<Index>(rows.size()) < limit)
        rows.push_back(choice);
      else
        groups.dropped.push_back(choice);
    }
  }
  return groups;
}

/// One expert; a plain one has an empty gate. Biases may be empty.
struct Expert {
  MatrixD gate;      // (F, D)
  MatrixD up;        // (F, D)
  MatrixD down;      // (D, F)
  Values gate_bias;  // (F)
  Values up_bias;    // (F)
  Values down_bias;  // (D)
};

/// The activation of a plain expert, or of the gate.
using Activation = std::function<double(double)>;

inline double relu(double z) {
  return std::max(z, 0.0);
}
inline double silu(double z) {
  return z / (1 + std::exp(-z));
}
inline double gelu(double z) {
  return z * (1 + std::erf(z / std::sqrt(2.0))) / 2;
}
inline double gelu_tanh(double z) {
  const double pi = std::acos(-1.0);
  return z / 2 * (1 + std::tanh(std::sqrt(2 / pi) * (z + 0.044715 * z * z * z)));
}

inline Values run_expert(const Expert& expert, const Activation& activation, const Values& x) {
  Values hidden = linear(expert.up, x, expert.up_bias);
  if (expert.gate.size() != 0) {
    const Values gate = linear(expert.gate, x, expert.gate_bias);
    for (std::size_t f = 0; f < hidden.size(); ++f) hidden[f] *= activation(gate[f]);
  } else {
    for (double& h : hidden) h = activation(h);
  }
  return linear(expert.down, hidden, expert.down_bias);
}

/// The same with absolute values everywhere: no intermediate sum of the expert is larger, so
/// rounding errors are a small multiple of epsilon times the number of terms times this.
inline Values bound_of_expert(const Expert& expert, const Values& x) {
  const auto absolute = [](Values v) {
    for (double& a : v) a = std::fabs(a);
    return v;
  };
  const auto absolutes = [](const MatrixD& m) { return MatrixD(m.cwiseAbs()); };
  const Expert bound{absolutes(expert.gate),   absolutes(expert.up),
                     absolutes(expert.down),   absolute(expert.gate_bias),
                     absolute(expert.up_bias), absolute(expert.down_bias)};
  // |activation(z)| <= |z| for all of them; and the slope, which carries an error on, is
  // below 1.13.
  return run_expert(
      bound, [](double z) { return 1.13 * z; }, absolute(x));
}

/// y[t] = sum over kept slots of weight * expert(x), plus the shared experts.
template <class Scalar>
MatrixD mixture(const MatrixD& x, const moe::Routing<Scalar>& routing,
                const std::vector<Expert>& experts, const Activation& activation,
                const std::vector<Expert>& shared = {},
                Index limit = std::numeric_limits<Index>::max()) {
  MatrixD y = MatrixD::Zero(x.rows(), x.cols());  // (T, D)
  const bool on_input = routing.weight_target == moe::WeightTarget::input;
  const auto add = [&](Index t, double weight, const Values& row) {
    for (Index d = 0; d < y.cols(); ++d) y(t, d) += weight * row[static_cast<std::size_t>(d)];
  };
  const Groups groups = group_by_expert(routing, limit);
  for (std::size_t e = 0; e < experts.size(); ++e) {
    for (const moe::TokenSlot choice : groups.rows[e]) {
      const auto weight = static_cast<double>(routing.weights(choice.token, choice.slot));
      Values token = row_of(x, choice.token);
      if (on_input)
        for (double& v : token) v *= weight;
      add(choice.token, on_input ? 1 : weight, run_expert(experts[e], activation, token));
    }
  }
  for (const Expert& expert : shared)
    for (Index t = 0; t < x.rows(); ++t) add(t, 1, run_expert(expert, activation, row_of(x, t)));
  return y;
}

/// The largest sum of absolute values behind any output of `mixture`.
template <class Scalar>
double bound_of_mixture(const MatrixD& x, const moe::Routing<Scalar>& routing,
                        const std::vector<Expert>& experts,
                        const std::vector<Expert>& shared = {}) {
  double largest = 0;
  for (Index t = 0; t < x.rows(); ++t) {
    Values sums(static_cast<std::size_t>(x.cols()), 0.0);
    const auto add = [&](const Expert& expert, double weight) {
      const Values bound = bound_of_expert(expert, row_of(x, t));
      // A weight on the input passes a gated expert twice.
      const double factor = std::max(std::fabs(weight), weight * weight);
      for (std::size_t d = 0; d < sums.size(); ++d) sums[d] += factor * bound[d];
    };
    for (Index k = 0; k < routing.top_k(); ++k)
      add(experts[static_cast<std::size_t>(routing.experts(t, k))],
          static_cast<double>(routing.weights(t, k)));
    for (const Expert& expert : shared) add(expert, 1);
    largest = std::max(largest, *std::max_element(sums.begin(), sums.end()));
  }
  return largest;
}

}  // namespace reference
