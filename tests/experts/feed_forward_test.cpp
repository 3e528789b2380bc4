// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/feed_forward.hpp>
#include <moe/fwd.hpp>

#include "support/layers.hpp"
#include "support/threads.hpp"

namespace feed_forward_test {

using moe::DispatchPlan;
using moe::ExpertsConfig;
using moe::Index;
using moe::Matrix;
using test_support::random_bank;
using test_support::random_matrix;

/// A plan in which expert e has rows_of[e] rows, each a token of its own with one slot.
DispatchPlan plan_with(const std::vector<Index>& rows_of) {
  DispatchPlan plan;
  plan.num_experts = static_cast<Index>(rows_of.size());
  plan.top_k = 1;
  plan.offsets = {0};
  for (const Index rows : rows_of) {
    for (Index r = 0; r < rows; ++r) {
      plan.row_of.push_back(static_cast<std::int32_t>(plan.rows.size()));
      plan.rows.push_back({static_cast<std::int32_t>(plan.rows.size()), 0});
    }
    plan.offsets.push_back(plan.num_rows());
  }
  plan.tokens = plan.num_rows();
  return plan;
}

template <class Bank>
Matrix<typename Bank::Scalar> run(const Bank& bank, const Matrix<typename Bank::Scalar>& x,
                                  const DispatchPlan& plan) {
  using Scalar = typename Bank::Scalar;
  Matrix<Scalar> rows(plan.num_rows(), x.cols());  // (N, D)
  rows.setConstant(std::numeric_limits<Scalar>::quiet_NaN());
  moe::Scratch scratch;
  bank.forward({x, plan}, rows, scratch);
  return rows;
}

template <class Bank>
void expect_reference(const ExpertsConfig& config, const std::vector<Index>& rows_of,
                      double (*activation)(double)) {
  using Scalar = typename Bank::Scalar;
  const auto bank = random_bank<Bank>(config, 3);
  const DispatchPlan plan = plan_with(rows_of);
  const auto x = random_matrix<Scalar>(plan.tokens, config.d_model, 4);
  const Matrix<Scalar> rows = run(bank, x, plan);
  const auto experts = test_support::reference_experts(bank);
  const double roundings = test_support::roundings(config.d_model, config.d_ff);
  for (Index e = 0; e < config.num_experts; ++e) {
    for (Index r = plan.first_row(e); r < plan.first_row(e + 1); ++r) {
      const reference::Values token = reference::row_of(x, r);
      const auto& expert = experts[static_cast<std::size_t>(e)];
      const reference::Values expected = reference::run_expert(expert, activation, token);
      const reference::Values bound = reference::bound_of_expert(expert, token);
      for (Index d = 0; d < config.d_model; ++d) {
        const auto i = static_cast<std::size_t>(d);
        EXPECT_NEAR(static_cast<double>(rows(r, d)), expected[i],
                    roundings * std::numeric_limits<Scalar>::epsilon() * bound[i])
            << "expert " << e << ", row " << r << ", column " << d;
      }
    }
  }
}

template <class Bank>
void expect_reference_for_sizes(double (*activation)(double)) {
  for (const bool biases : {false, true}) {
    expect_reference<Bank>({4, 24, 40, biases}, {0, 1, 31, 5}, activation);
    expect_reference<Bank>({3, 7, 13, biases}, {32, 33, 70}, activation);
    expect_reference<Bank>({2, 1, 1, biases}, {3, 2}, activation);
    expect_reference<Bank>({1, 3, 67, biases}, {2}, activation);
  }
}

template <class Scalar>
class FeedForward : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(FeedForward, Scalars);

TYPED_TEST(FeedForward, GatedExpertsAgreeWithTheReference) {
  expect_reference_for_sizes<moe::SwiGluExperts<TypeParam>>(reference::silu);
  expect_reference_for_sizes<moe::GeGluExperts<TypeParam>>(reference::gelu);
  expect_reference_for_sizes<moe::GeGluTanhExperts<TypeParam>>(reference::gelu_tanh);
  expect_reference_for_sizes<moe::ReGluExperts<TypeParam>>(reference::relu);
}

TYPED_TEST(FeedForward, PlainExpertsAgreeWithTheReference) {
  expect_reference_for_sizes<moe::SiluExperts<TypeParam>>(reference::silu);
  expect_reference_for_sizes<moe::GeluExperts<TypeParam>>(reference::gelu);
  expect_reference_for_sizes<moe::GeluTanhExperts<TypeParam>>(reference::gelu_tanh);
  expect_reference_for_sizes<moe::ReluExperts<TypeParam>>(reference::relu);
}

TYPED_TEST(FeedForward, ARowHasTheSameBitsInAnyBatchAndForAnyThreads) {
  using Bank = moe::SwiGluExperts<TypeParam>;
  for (const ExpertsConfig& config : {ExpertsConfig{1, 24, 40, true}, ExpertsConfig{1, 7, 13},
                                      ExpertsConfig{1, 1, 1}, ExpertsConfig{1, 2, 300}}) {
    const auto bank = random_bank<Bank>(config, 5);
    const auto x = random_matrix<TypeParam>(100, config.d_model, 6);
    const Matrix<TypeParam> all = run(bank, x, plan_with({100}));
    for (const int threads : test_support::thread_counts) {
      const test_support::ScopedThreads scoped(threads);
      EXPECT_EQ(run(bank, x, plan_with({100})), all);
      for (const Index count : {1, 2, 3, 5, 31, 33}) {
        const Matrix<TypeParam> some = x.bottomRows(count);  // (T, D)
        EXPECT_EQ(run(bank, some, plan_with({count})), all.bottomRows(count))
            << config.d_model << " x " << config.d_ff << ", " << count << " rows";
      }
    }
  }
}

TYPED_TEST(FeedForward, ScalesMultiplyTheInput) {
  using Bank = moe::SwiGluExperts<TypeParam>;
  const auto bank = random_bank<Bank>({.num_experts = 2, .d_model = 6, .d_ff = 10}, 5);
  const auto x = random_matrix<TypeParam>(5, 6, 6);
  const DispatchPlan plan = plan_with({2, 3});
  const auto scales = random_matrix<TypeParam>(5, 1, 7);
  Matrix<TypeParam> rows(5, 6);  // (N, D)
  moe::Scratch scratch;
  bank.forward({x, plan, scales}, rows, scratch);
  const Matrix<TypeParam> scaled = scales.col(0).asDiagonal() * x;  // (T, D)
  EXPECT_EQ(rows, run(bank, scaled, plan));
}

TYPED_TEST(FeedForward, ARowWithNanLeavesTheOthersAlone) {
  using Bank = moe::GeluExperts<TypeParam>;
  const auto bank = random_bank<Bank>({.num_experts = 1, .d_model = 9, .d_ff = 11}, 5);
  auto x = random_matrix<TypeParam>(6, 9, 6);
  const Matrix<TypeParam> clean = run(bank, x, plan_with({6}));
  x(2, 0) = std::numeric_limits<TypeParam>::quiet_NaN();
  x(4, 8) = std::numeric_limits<TypeParam>::infinity();
  const Matrix<TypeParam> rows = run(bank, x, plan_with({6}));
  for (const Index r : {0, 1, 3, 5}) EXPECT_EQ(rows.row(r), clean.row(r));
  EXPECT_TRUE(rows.row(2).array().isNaN().all());
  EXPECT_FALSE(rows.row(4).allFinite());
}

TYPED_TEST(FeedForward, GivesBackTheExpertsThatItWasGiven) {
  using Bank = moe::SwiGluExperts<TypeParam>;
  const auto bank = random_bank<Bank>({3, 4, 6, true}, 8);
  Bank copy({3, 4, 6, true});
  for (Index e = 0; e < 3; ++e) copy.set_expert(e, bank.expert(e).weights());
  for (Index e = 0; e < 3; ++e) {
    EXPECT_EQ(copy.expert(e).gate, bank.expert(e).gate);
    EXPECT_EQ(copy.expert(e).up, bank.expert(e).up);
    EXPECT_EQ(copy.expert(e).down, bank.expert(e).down);
    EXPECT_EQ(copy.expert(e).gate_bias, bank.expert(e).gate_bias);
    EXPECT_EQ(copy.expert(e).up_bias, bank.expert(e).up_bias);
    EXPECT_EQ(copy.expert(e).down_bias, bank.expert(e).down_bias);
  }
  // Weights may come from a wider matrix.
  const auto wide = random_matrix<TypeParam>(6, 10, 9);
  const auto down = random_matrix<TypeParam>(4, 6, 10);
  Bank plain({.num_experts = 1, .d_model = 4, .d_ff = 6});
  plain.set_expert(0, {.gate = wide.leftCols(4), .up = wide.rightCols(4), .down = down});
  EXPECT_EQ(plain.expert(0).gate, wide.leftCols(4));
  EXPECT_EQ(plain.expert(0).up, wide.rightCols(4));
}

TEST(FeedForwardExperts, RandomWeightsDoNotDependOnThreads) {
  const ExpertsConfig config{.num_experts = 5, .d_model = 8, .d_ff = 12};
  std::mt19937_64 rng(1);
  const auto first = moe::SwiGluExperts<float>::random(config, rng);
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads scoped(threads);
    std::mt19937_64 again(1);
    const auto bank = moe::SwiGluExperts<float>::random(config, again);
    for (Index e = 0; e < 5; ++e) {
      EXPECT_EQ(bank.expert(e).gate, first.expert(e).gate);
      EXPECT_EQ(bank.expert(e).up, first.expert(e).up);
      EXPECT_EQ(bank.expert(e).down, first.expert(e).down);
    }
  }
  EXPECT_NE(first.expert(0).up, first.expert(1).up);
  EXPECT_NE(first.expert(0).up, first.expert(0).gate);
}

template <class Action>
std::string complaint(const Action& action) {
  try {
    action();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(FeedForwardExperts, RefusesWhatDoesNotFit) {
  using Bank = moe::SwiGluExperts<float>;
  EXPECT_EQ(complaint([] { Bank({.num_experts = 0, .d_model = 4, .d_ff = 6}); }),
            "FeedForwardExperts: num_experts must be positive");
  EXPECT_EQ(complaint([] { Bank({.num_experts = 2, .d_model = 0, .d_ff = 6}); }),
            "FeedForwardExperts: d_model must be positive");
  EXPECT_EQ(complaint([] { Bank({.num_experts = 2, .d_model = 4, .d_ff = -6}); }),
            "FeedForwardExperts: d_ff must be positive");

  constexpr Index huge = Index{1} << 32;
  EXPECT_EQ(complaint([] { Bank({.num_experts = huge, .d_model = huge, .d_ff = huge}); }),
            "FeedForwardExperts: the sizes are too large");
  Bank bank({.num_experts = 2, .d_model = 4, .d_ff = 6});
  const auto wide = random_matrix<float>(6, 4, 1);
  const auto tall = random_matrix<float>(4, 6, 2);
  const auto bias = random_matrix<float>(6, 1, 3);
  const auto set = [&](Index e, const moe::ExpertWeights<float>& weights) {
    return complaint([&] { bank.set_expert(e, weights); });
  };
  EXPECT_EQ(set(1, {.gate = wide, .up = wide, .down = tall}), "");
  EXPECT_EQ(set(2, {.gate = wide, .up = wide, .down = tall}),
            "FeedForwardExperts::set_expert: expert is out of range");
  EXPECT_EQ(set(0, {.gate = wide, .up = tall, .down = tall}),
            "FeedForwardExperts::set_expert: up: expected (6, 4), got (4, 6)");
  EXPECT_EQ(set(0, {.up = wide, .down = tall}),
            "FeedForwardExperts::set_expert: gate: expected (6, 4), got (0, 0)");
  EXPECT_EQ(set(0, {.gate = wide, .up = wide, .down = tall, .up_bias = bias}),
            "FeedForwardExperts::set_expert: up_bias: expected (0, 0), got (6, 1)");
  EXPECT_EQ(complaint([&] { (void)bank.expert(-1); }),
            "FeedForwardExperts::expert: expert is out of range");
}

TEST(FeedForwardExperts, RefusesAPlanInputOrOutputThatDoesNotFit) {
  const auto bank =
      random_bank<moe::ReluExperts<float>>({.num_experts = 2, .d_model = 4, .d_ff = 6}, 1);
  const DispatchPlan plan = plan_with({1, 2});
  const auto forward = [&](Index tokens, Index width, Index rows, const DispatchPlan& given) {
    const auto x = random_matrix<float>(tokens, width, 2);
    Matrix<float> out(rows, 4);  // (N, D)
    moe::Scratch scratch;
    return complaint([&] { bank.forward({x, given}, out, scratch); });
  };
  EXPECT_EQ(forward(3, 4, 3, plan), "");
  EXPECT_EQ(forward(3, 5, 3, plan),
            "FeedForwardExperts::forward: input.x.cols(): expected 4, got 5");
  EXPECT_EQ(forward(2, 4, 3, plan),
            "FeedForwardExperts::forward: input.x.rows(): expected 3, got 2");
  EXPECT_EQ(forward(3, 4, 2, plan), "FeedForwardExperts::forward: rows.rows(): expected 3, got 2");
  DispatchPlan outside = plan;
  outside.rows[0].token = 1'000'000;
  EXPECT_NE(forward(3, 4, 3, outside), "");
  Matrix<float> both(3, 4);  // (T, D) and (N, D)
  moe::Scratch scratch;
  EXPECT_EQ(complaint([&] {
              bank.forward({both, plan}, both, scratch);
            }),
            "FeedForwardExperts::forward: rows overlaps the input");
  EXPECT_EQ(forward(3, 4, 3, plan_with({1, 1, 1})),
            "FeedForwardExperts::forward: input.plan.num_experts: expected 2, got 3");
}

}  // namespace feed_forward_test
