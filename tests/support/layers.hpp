// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Random inputs, expert banks and their twins in the reference.
#pragma once

#include <cstdint>
#include <vector>

#include <moe/core/random.hpp>
#include <moe/experts/feed_forward.hpp>

#include "support/reference.hpp"

namespace test_support {

using moe::Index;
using moe::Matrix;

/// Uniform values of unit variance.
template <class Scalar>
Matrix<Scalar> random_matrix(Index rows, Index cols, std::uint64_t seed) {
  Matrix<Scalar> matrix(rows, cols);  // (rows, cols)
  moe::detail::fill_uniform(matrix.data(), matrix.size(), 1, seed);
  return matrix;
}

/// A bank of random experts, with random biases if it has biases.
template <class Bank>
Bank random_bank(const moe::ExpertsConfig& config, std::uint64_t seed) {
  using Scalar = typename Bank::Scalar;
  Bank bank(config);
  const auto weight = [&](Index rows, Index cols) {
    Matrix<Scalar> w(rows, cols);  // (rows, cols)
    moe::detail::fill_uniform(w.data(), w.size(), cols, ++seed * 7919);
    return w;
  };
  const Index gated = Bank::is_gated ? config.d_ff : 0;
  for (Index e = 0; e < config.num_experts; ++e) {
    const Matrix<Scalar> gate = weight(gated, gated == 0 ? 0 : config.d_model);  // (F, D)
    const Matrix<Scalar> up = weight(config.d_ff, config.d_model);               // (F, D)
    const Matrix<Scalar> down = weight(config.d_model, config.d_ff);             // (D, F)
    moe::ExpertWeights<Scalar> weights{.gate = gate, .up = up, .down = down};
    const Matrix<Scalar> gate_bias = weight(gated, gated == 0 ? 0 : 1);  // (F, 1)
    const Matrix<Scalar> up_bias = weight(config.d_ff, 1);               // (F, 1)
    const Matrix<Scalar> down_bias = weight(config.d_model, 1);          // (D, 1)
    if (config.biases) {
      weights.gate_bias = gate_bias;
      weights.up_bias = up_bias;
      weights.down_bias = down_bias;
    }
    bank.set_expert(e, weights);
  }
  return bank;
}

/// The same experts for the reference.
template <class Bank>
std::vector<reference::Expert> reference_experts(const Bank& bank) {
  const auto matrix = [](const auto& view) {
    return reference::MatrixD(view.template cast<double>());
  };
  const auto values = [](const auto& view) {
    reference::Values v;
    for (Index i = 0; i < view.rows(); ++i) v.push_back(static_cast<double>(view(i, 0)));
    return v;
  };
  std::vector<reference::Expert> experts;
  for (Index e = 0; e < bank.num_experts(); ++e) {
    const auto w = bank.expert(e);
    experts.push_back({matrix(w.gate), matrix(w.up), matrix(w.down), values(w.gate_bias),
                       values(w.up_bias), values(w.down_bias)});
  }
  return experts;
}

/// Roundings along the longest path of one expert, times two for the activation's own error: D
/// products and sums, F products and sums, and a few elementwise steps.
inline double roundings(Index d_model, Index d_ff) {
  return 2 * static_cast<double>(2 * d_model + 2 * d_ff + 16);
}

}  // namespace test_support
