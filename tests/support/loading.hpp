// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What tests of loaders compare.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/quantized_loader.hpp>
#include <moe/moe.hpp>

#include "support/layers.hpp"

namespace test_support {

using moe::Index;
using moe::Matrix;
using moe::io::CheckpointLayer;

/// Two layers of the same bits: by outputs, on the same tokens. With `rounded`, of the same values
/// but for rounding.
inline void expect_same(CheckpointLayer<float> a, CheckpointLayer<float> b, bool rounded = false) {
  const Matrix<float> x = random_matrix<float>(21, a.d_model(), 9);
  Matrix<float> y(21, a.d_model());
  Matrix<float> z(21, a.d_model());
  a.forward(x, y);
  b.forward(x, z);
  EXPECT_TRUE(y.allFinite());
  EXPECT_GT(y.norm(), 0);
  if (rounded) {
    EXPECT_LT((y - z).norm(), 1e-6 * y.norm());
  } else {
    EXPECT_EQ(y, z);
  }
}

/// The bank that a layer has, of quantised SwiGLU experts.
inline const moe::QuantizedExperts<moe::SwiGlu>& quantized(const CheckpointLayer<float>& layer) {
  const auto* const bank = layer.experts().target<moe::QuantizedExperts<moe::SwiGlu>>();
  EXPECT_NE(bank, nullptr);
  return *bank;
}

/// A bank has these weights.
template <class Bank>
void expect_weights(const Bank& bank, const std::vector<moe::ExpertMatrices<float>>& expected) {
  ASSERT_EQ(static_cast<std::size_t>(bank.num_experts()), expected.size());
  for (Index e = 0; e < bank.num_experts(); ++e) {
    const moe::ExpertMatrices<float> its = bank.expert(e);
    const moe::ExpertMatrices<float>& exact = expected[static_cast<std::size_t>(e)];
    EXPECT_EQ(its.gate, exact.gate);
    EXPECT_EQ(its.up, exact.up);
    EXPECT_EQ(its.down, exact.down);
  }
}

/// The error of a checkpoint whose bytes were changed, if there is one.
inline std::optional<moe::FormatError> format_error(const std::function<void()>& load) {
  try {
    load();
  } catch (const moe::FormatError& error) {
    return error;
  }
  return std::nullopt;
}

/// Its text, or nothing.
inline std::string refusal(const std::function<void()>& load) {
  const auto error = format_error(load);
  return error ? error->what() : "";
}

/// The bank has the experts that its formats, moments and exact weights give.
inline void expect_calibrated(const CheckpointLayer<float>& layer,
                              const moe::io::QuantizedLoading& loading,
                              const std::vector<moe::ExpertMatrices<float>>& exact) {
  const auto& bank = quantized(layer);
  moe::QuantizedExperts<moe::SwiGlu> expected(bank.config(), *loading.format);
  bool differs = false;
  for (Index e = 0; e < bank.num_experts(); ++e) {
    const auto& expert = exact[static_cast<std::size_t>(e)];
    const auto moments = moe::expert_moments(expert, moe::SwiGlu{}, loading.calibration);
    expected.set_expert(e, expert.weights());
    differs = differs || bank.expert(e).down != expected.expert(e).down;
    expected.set_expert(e, expert.weights(), moments.options(loading.search));
    EXPECT_EQ(bank.expert(e).gate, expected.expert(e).gate);
    EXPECT_EQ(bank.expert(e).up, expected.expert(e).up);
    EXPECT_EQ(bank.expert(e).down, expected.expert(e).down);
  }
  EXPECT_TRUE(differs) << "calibration changes nothing";
}

inline moe::io::QuantizedLoading calibrated_with(const Matrix<float>& x) {
  const auto format = moe::format_of("int4-g32");
  return {.format = moe::ExpertFormat{format, format}, .calibration = x};
}

}  // namespace test_support
