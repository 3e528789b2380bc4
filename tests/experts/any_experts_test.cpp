// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <moe/experts/any_experts.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/fwd.hpp>
#include <moe/routing/plan.hpp>

#include "support/layers.hpp"

namespace any_experts_test {

using moe::Matrix;
using test_support::random_matrix;
using Bank = moe::ReluExperts<float>;

TEST(AnyExperts, DoWhatTheHeldOnesDo) {
  const Bank bank = test_support::random_bank<Bank>({.num_experts = 3,
                                                     .d_model = 6,
                                                     .d_ff = 4,
                                                     .biases = true,
                                                     .down_bias = moe::DownBias::unweighted},
                                                    1);
  const moe::AnyExperts<float> any(bank);
  EXPECT_EQ(any.d_model(), 6);
  EXPECT_EQ(any.num_experts(), 3);
  const auto x = random_matrix<float>(4, 6, 2);
  moe::DispatchPlan plan;
  moe::make_full_plan(4, 3, plan);
  Matrix<float> expected(12, 6);
  Matrix<float> rows(12, 6);
  moe::Scratch scratch;
  bank.forward({x, plan, {}}, expected, scratch);
  any.forward({x, plan, {}}, rows, scratch);
  EXPECT_EQ(rows, expected);
  moe::Routing<float> routing;
  routing.resize(4, 3, 3, {});
  routing.experts = Matrix<moe::ExpertIndex>::Zero(4, 3);
  Matrix<float> a = Matrix<float>::Zero(4, 6);
  Matrix<float> b = Matrix<float>::Zero(4, 6);
  moe::detail::add_unweighted(bank, routing, plan, 0, a);
  moe::detail::add_unweighted(any, routing, plan, 0, b);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, (Matrix<float>::Zero(4, 6)));
  ASSERT_NE(any.target<Bank>(), nullptr);
  EXPECT_EQ(any.target<moe::SwiGluExperts<float>>(), nullptr);
}

}  // namespace any_experts_test
