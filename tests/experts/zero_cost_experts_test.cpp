// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/feed_forward.hpp>
#include <moe/experts/zero_cost_experts.hpp>
#include <moe/fwd.hpp>
#include <moe/layer/sparse_moe.hpp>
#include <moe/routing/plan.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/differences.hpp"
#include "support/layers.hpp"

namespace zero_cost_experts_test {

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

/// A block of two experts and three zero-cost ones against central differences.
void expect_gradients(moe::WeightTarget target, moe::TapePolicy policy) {
  using Zero = moe::ZeroCostExperts<Bank>;
  Zero bank(test_support::random_bank<Bank>({.num_experts = 2, .d_model = 6, .d_ff = 4}, 1),
            {{ZeroCostKind::constant, random_matrix<double>(2, 6, 2),
              random_matrix<double>(6, 1, 3).col(0)},
             {ZeroCostKind::identity},
             {ZeroCostKind::zero}});
  Matrix<double> weight = random_matrix<double>(5, 6, 5);
  const auto make = [&] {
    return moe::SparseMoe(
        moe::TopKRouter<double>(
            {.d_model = 6, .num_experts = 5, .top_k = 3, .rule = {.weight_target = target}},
            {.weight = weight}),
        bank, moe::SharedExperts<Zero>());
  };
  Matrix<double> x = random_matrix<double>(20, 6, 4);
  const auto dy = random_matrix<double>(20, 6, 6);
  Matrix<double> y(20, 6);
  Matrix<double> dx(20, 6);
  moe::Tape<double> tape{.policy = policy};
  auto layer = make();
  layer.forward(x, y, tape);
  auto gradients = layer.gradients();
  layer.backward(x, tape, dy, dx, gradients);
  const auto loss = [&] {
    make().forward(x, y);
    return (y.array() * dy.array()).sum();
  };
  const auto check = [&](const char* what, double* values, const double* slopes, Index size) {
    test_support::expect_some_slopes(what, values, slopes, static_cast<std::size_t>(size), loss);
  };
  check("x", x.data(), dx.data(), x.size());
  check("router", weight.data(), gradients.router.weight.data(), weight.size());
  for (std::size_t i = 0; i < 2; ++i)
    check("experts", bank.bank().values()[i].data(), gradients.experts.bank.values()[i].data(),
          static_cast<Index>(bank.bank().values()[i].size()));
  check("mix", bank.others()[0].mix.data(), gradients.experts.others[0].mix.data(), 12);
  check("value", bank.others()[0].value.data(), gradients.experts.others[0].value.data(), 6);
}

TEST(ZeroCostExperts, HaveTheGradientsThatDifferencesHave) {
  for (const moe::WeightTarget target : {moe::WeightTarget::output, moe::WeightTarget::input})
    for (const moe::TapePolicy policy :
         {moe::TapePolicy::keep_preactivations, moe::TapePolicy::recompute})
      expect_gradients(target, policy);
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

}  // namespace zero_cost_experts_test
