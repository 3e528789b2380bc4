// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/feed_forward.hpp>
#include <moe/experts/zero_cost_experts.hpp>
#include <moe/fwd.hpp>
#include <moe/routing/plan.hpp>

#include "support/layers.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using moe::ZeroCostKind;
using test_support::random_matrix;
using Bank = moe::SwiGluExperts<double>;

TEST(ZeroCostExperts, RunBesideABank) {
  const Bank bank = test_support::random_bank<Bank>({.num_experts = 2, .d_model = 6, .d_ff = 4}, 1);
  const auto mix = random_matrix<double>(2, 6, 2);
  const moe::Vector<double> value = random_matrix<double>(6, 1, 3).col(0);
  const moe::ZeroCostExperts<Bank> experts(
      bank, {{ZeroCostKind::constant, mix, value}, {ZeroCostKind::identity}, {ZeroCostKind::zero}});
  EXPECT_EQ(experts.num_experts(), 5);
  const auto x = random_matrix<double>(50, 6, 4);
  moe::DispatchPlan plan;
  moe::make_full_plan(50, 5, plan);
  Matrix<double> rows(250, 6);
  moe::Scratch scratch;
  experts.forward({x, plan, {}, 2}, rows, scratch);  // Inputs times 2.

  moe::DispatchPlan part;
  moe::make_full_plan(50, 2, part);
  Matrix<double> expected(100, 6);
  bank.forward({x, part, {}, 2}, expected, scratch);
  EXPECT_EQ(rows.topRows(100), expected);
  for (Index t = 0; t < 50; ++t) {
    const moe::Vector<double> in = 2 * x.row(t).transpose();
    const double a = std::exp(mix.row(0).dot(in));
    const double b = std::exp(mix.row(1).dot(in));
    const moe::Vector<double> constant = (a * in + b * value) / (a + b);
    EXPECT_TRUE(rows.row(100 + t).transpose().isApprox(constant, 1e-12));
    EXPECT_EQ(rows.row(150 + t), in.transpose());
    EXPECT_EQ(rows.row(200 + t), (Matrix<double>::Zero(1, 6)));
  }
}

TEST(ZeroCostExperts, RefusePartsThatDoNotFit) {
  const Bank bank({.num_experts = 2, .d_model = 6, .d_ff = 4});
  const auto with = [&](moe::ZeroCostExpert<double> other) {
    return moe::ZeroCostExperts<Bank>(bank, {std::move(other)});
  };
  EXPECT_THROW(with({ZeroCostKind::constant}), moe::ShapeError);
  EXPECT_THROW(with({ZeroCostKind::identity, Matrix<double>(2, 6)}), moe::ShapeError);
  EXPECT_THROW(with({ZeroCostKind::constant, Matrix<double>(2, 6), moe::Vector<double>(5)}),
               moe::ShapeError);
}

}  // namespace
