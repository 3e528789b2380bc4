// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Routings of given logits, without a router.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include <moe/core/random.hpp>
#include <moe/core/routing.hpp>

#include "support/reference.hpp"

namespace test_support {

using moe::Index;
using moe::Routing;
using moe::ScoreFunction;

/// The routing of logits (T, E): the K best and their scores as weights.
template <class Scalar>
Routing<Scalar> route(const moe::Matrix<double>& logits, Index top_k,
                      ScoreFunction function = ScoreFunction::softmax) {
  Routing<Scalar> routing;
  routing.resize(logits.rows(), logits.cols(), top_k, {});
  routing.score_function = function;
  routing.logits = logits.cast<Scalar>();
  for (Index t = 0; t < logits.rows(); ++t) {
    const reference::Values z = reference::row_of(routing.logits, t);
    const reference::Values scores = reference::scores(function, z);
    const std::vector<Index> chosen = reference::top_k(z, top_k);
    for (Index e = 0; e < logits.cols(); ++e)
      routing.scores(t, e) = static_cast<Scalar>(scores[static_cast<std::size_t>(e)]);
    for (Index k = 0; k < top_k; ++k) {
      const Index expert = chosen[static_cast<std::size_t>(k)];
      routing.experts(t, k) = static_cast<moe::ExpertIndex>(expert);
      routing.weights(t, k) = routing.scores(t, expert);
    }
  }
  return routing;
}

inline moe::Matrix<double> random_logits(Index tokens, Index num_experts, std::uint64_t seed) {
  moe::Matrix<double> logits(tokens, num_experts);
  moe::detail::fill_uniform(logits.data(), logits.size(), 1, seed);
  return logits;
}

/// Every token chooses K neighbours, one further than the token before, with equal scores.
template <class Scalar>
Routing<Scalar> balanced(Index num_experts, Index top_k) {
  Routing<Scalar> routing;
  routing.resize(2 * num_experts, num_experts, top_k, {});
  for (Index t = 0; t < routing.tokens(); ++t)
    for (Index k = 0; k < top_k; ++k)
      routing.experts(t, k) = static_cast<moe::ExpertIndex>((t + k) % num_experts);
  routing.weights.setConstant(1 / static_cast<Scalar>(top_k));
  routing.scores.setConstant(1 / static_cast<Scalar>(num_experts));
  routing.logits.setZero();
  return routing;
}

/// The tokens for which `mask` is not 0.
template <class Scalar>
Routing<Scalar> without_padding(const Routing<Scalar>& routing,
                                const std::vector<std::uint8_t>& mask) {
  std::vector<Index> kept;
  for (Index t = 0; t < routing.tokens(); ++t)
    if (mask[static_cast<std::size_t>(t)] != 0) kept.push_back(t);
  Routing<Scalar> part = routing;
  part.resize(static_cast<Index>(kept.size()), routing.num_experts, routing.top_k(), {});
  for (Index i = 0; i < part.tokens(); ++i) {
    const Index t = kept[static_cast<std::size_t>(i)];
    part.experts.row(i) = routing.experts.row(t);
    part.weights.row(i) = routing.weights.row(t);
    part.logits.row(i) = routing.logits.row(t);
    part.scores.row(i) = routing.scores.row(t);
  }
  return part;
}

/// Four tokens, four experts, two choices: loads 3, 3, 2, 0.
template <class Scalar>
Routing<Scalar> known_routing() {
  moe::Matrix<double> logits(4, 4);
  logits << 2, 1, 0, -1, 1.5, .5, 0, 0, 2, 0, 1, 0, 0, 1, 2, .5;
  return route<Scalar>(logits, 2);
}

}  // namespace test_support
