// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Moments of experts, and what they are good for.
#include "moe/layer/calibrate.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/moe.hpp>

#include "support/layers.hpp"
#include "support/threads.hpp"

namespace calibrate_test {

using moe::ExpertMatrices;
using moe::ExpertMoments;
using moe::Index;
using moe::Matrix;
using test_support::random_matrix;

constexpr Index d_model = 40;
constexpr Index d_ff = 72;

ExpertMatrices<float> expert_of(bool gated, bool biases) {
  ExpertMatrices<float> expert;
  if (gated) expert.gate = random_matrix<float>(d_ff, d_model, 1);
  expert.up = random_matrix<float>(d_ff, d_model, 2);
  expert.down = random_matrix<float>(d_model, d_ff, 3);
  if (!biases) return expert;
  if (gated) expert.gate_bias = random_matrix<float>(d_ff, 1, 4);
  expert.up_bias = random_matrix<float>(d_ff, 1, 5);
  expert.down_bias = random_matrix<float>(d_model, 1, 6);
  return expert;
}

template <class ActivationT>
void expect_moments(const ExpertMatrices<float>& expert, const ActivationT& activation,
                    const Matrix<float>& x) {
  const ExpertMoments moments = moe::expert_moments(expert, activation, x);
  const Matrix<double> tokens = x.cast<double>();
  const auto values = [&](const Matrix<float>& weight, const Matrix<float>& bias) {
    Matrix<double> y = tokens * weight.cast<double>().transpose();
    if (bias.size() > 0) y.rowwise() += bias.cast<double>().col(0).transpose();
    return y;
  };
  const Matrix<double> up = values(expert.up, expert.up_bias);
  Matrix<double> hidden(up.rows(), up.cols());
  if constexpr (moe::GatedActivation<ActivationT, double>) {
    const Matrix<double> gate = values(expert.gate, expert.gate_bias);
    for (Index i = 0; i < up.size(); ++i)
      hidden.data()[i] = activation(gate.data()[i], up.data()[i]);
  } else {
    for (Index i = 0; i < up.size(); ++i) hidden.data()[i] = activation(up.data()[i]);
  }
  const auto compare = [](const std::vector<float>& found, const Matrix<double>& of) {
    ASSERT_EQ(static_cast<Index>(found.size()), of.cols());
    const double mean = of.squaredNorm() / static_cast<double>(of.size());
    for (Index i = 0; i < of.cols(); ++i) {
      const double expected =
          std::max(of.col(i).squaredNorm() / static_cast<double>(of.rows()), mean / 100);
      EXPECT_NEAR(static_cast<double>(found[static_cast<std::size_t>(i)]), expected,
                  1e-5 * (expected + mean));
    }
  };
  compare(moments.up, tokens);
  compare(moments.down, hidden);
}

TEST(ExpertMoments, AreMeansOfSquares) {
  for (const Index tokens : {1, 7, 256, 300}) {  // Up to and beyond one block.
    const Matrix<float> x = random_matrix<float>(tokens, d_model, 7);
    for (const bool biases : {false, true}) {
      expect_moments(expert_of(true, biases), moe::SwiGlu{}, x);
      expect_moments(expert_of(true, biases), moe::ClampedSwiGlu{}, x);
      expect_moments(expert_of(false, biases), moe::Gelu{}, x);
    }
  }
}

TEST(ExpertMoments, WhatCalibrationNeverMetCountsALittle) {
  Matrix<float> x = random_matrix<float>(9, d_model, 7);
  x.col(3).setZero();
  const ExpertMoments moments = moe::expert_moments(expert_of(true, false), moe::SwiGlu{}, x);
  EXPECT_GT(moments.up[3], 0);
  EXPECT_LT(moments.up[3], moments.up[2]);
}

TEST(ExpertMoments, OfNothingButZerosAllCountTheSame) {
  const Matrix<float> x = Matrix<float>::Zero(3, d_model);
  const ExpertMoments moments = moe::expert_moments(expert_of(false, false), moe::Relu{}, x);
  EXPECT_EQ(moments.up, std::vector<float>(d_model, 1.0F));
  EXPECT_EQ(moments.down, std::vector<float>(d_ff, 1.0F));
}

TEST(ExpertMoments, DoNotDependOnTheNumberOfThreads) {
  const Matrix<float> x = random_matrix<float>(300, d_model, 7);
  const auto expert = expert_of(true, true);
  std::vector<float> first;
  for (const int threads : {1, 2, 3, 7}) {
    const test_support::ScopedThreads scope(threads);
    const ExpertMoments moments = moe::expert_moments(expert, moe::SwiGlu{}, x);
    if (first.empty()) first = moments.down;
    EXPECT_EQ(moments.down, first);
  }
}

TEST(ExpertMoments, LessenTheErrorOfOutputs) {
  // Inputs of very different sizes, as those of language models are.
  Matrix<float> x = random_matrix<float>(200, d_model, 7);
  for (Index d = 0; d < d_model; ++d) x.col(d) *= std::pow(2.0F, static_cast<float>(d % 7));
  const auto expert = expert_of(true, false);
  const moe::ExpertsConfig sizes{.num_experts = 1, .d_model = d_model, .d_ff = d_ff};
  moe::DispatchPlan plan;
  moe::make_full_plan(x.rows(), 1, plan);
  const auto outputs = [&](const auto& bank) {
    Matrix<float> y(x.rows(), d_model);
    moe::Scratch scratch;
    bank.forward({x, plan}, y, scratch);
    return y;
  };
  moe::SwiGluExperts<float> exact(sizes);
  exact.set_expert(0, expert.weights());
  const Matrix<float> expected = outputs(exact);
  const auto error = [&](const moe::QuantizeOptions& options) {
    const moe::WeightFormat format = moe::format_of("int4-g32");
    moe::QuantizedExperts<moe::SwiGlu> bank(sizes, {format, format});
    bank.set_product(moe::ProductKind::widened);
    bank.set_expert(0, expert.weights(), options);
    return (outputs(bank) - expected).norm() / expected.norm();
  };
  const ExpertMoments moments = moe::expert_moments(expert, moe::SwiGlu{}, x);
  EXPECT_LT(error(moments.options()), 0.95F * error({}));
}

TEST(ExpertMoments, RefuseTokensThatDoNotFit) {
  const auto expert = expert_of(true, false);
  const auto moments = [&](const Matrix<float>& x) {
    return moe::expert_moments(expert, moe::SwiGlu{}, x);
  };
  EXPECT_THROW(moments(Matrix<float>(0, d_model)), std::invalid_argument);
  EXPECT_THROW(moments(Matrix<float>::Zero(3, d_model + 1)), moe::ShapeError);
  Matrix<float> x = Matrix<float>::Zero(3, d_model);
  x(1, 1) = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(moments(x), std::invalid_argument);
  x(1, 1) = 1e30F;
  EXPECT_THROW(moments(x), std::invalid_argument);
  x(1, 1) = 0;
  for (const bool of_gate : {false, true}) {
    ExpertMatrices<float> other = expert_of(true, true);
    (of_gate ? other.gate_bias : other.up_bias).resize(d_ff - 1, 1);
    EXPECT_THROW(moe::expert_moments(other, moe::SwiGlu{}, x), moe::ShapeError);
  }
  EXPECT_THROW(moe::expert_moments(expert_of(false, false), moe::SwiGlu{}, Matrix<float>(x * 0)),
               moe::ShapeError);
}

}  // namespace calibrate_test
