// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include <moe/layer/dispatch.hpp>
#include <moe/routing/plan.hpp>

#include "support/layers.hpp"
#include "support/threads.hpp"

namespace dispatch_test {

using moe::Index;
using moe::Matrix;
using moe::MatrixView;
using test_support::random_matrix;

moe::Routing<float> random_routing(Index tokens, Index num_experts, Index top_k) {
  moe::Routing<float> routing;
  routing.resize(tokens, num_experts, top_k, {});
  for (Index i = 0; i < tokens * top_k; ++i)
    routing.experts.data()[i] = static_cast<moe::ExpertIndex>(
        moe::detail::uniform(3, static_cast<std::uint64_t>(i)) * static_cast<double>(num_experts));
  routing.weights = random_matrix<float>(tokens, top_k, 4);
  return routing;
}

TEST(Dispatch, GathersByPlan) {
  const moe::Routing<float> routing = random_routing(90, 5, 2);
  moe::DispatchPlan plan;
  moe::make_plan(routing, {.factor = 0.9}, plan);
  const auto wide = random_matrix<float>(90, 12, 1);
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads scoped(threads);
    Matrix<float> out = Matrix<float>::Zero(plan.num_rows(), 9);  // (N, D) within
    moe::dispatch<float>(wide.middleCols(3, 7), plan, out.rightCols(7));
    for (Index r = 0; r < plan.num_rows(); ++r)
      EXPECT_EQ(out.row(r).tail(7),
                wide.row(plan.rows[static_cast<std::size_t>(r)].token).segment(3, 7));
    EXPECT_EQ(out.leftCols(2).cwiseAbs().sum(), 0);
  }
}

TEST(Combine, SumsInTheOrderOfTheSlots) {
  const moe::Routing<float> routing = random_routing(90, 5, 3);
  moe::DispatchPlan plan;
  moe::make_plan(routing, {.factor = 0.7}, plan);
  ASSERT_FALSE(plan.dropped.empty());
  const auto rows = random_matrix<float>(plan.num_rows(), 7, 2);
  for (const bool weighted : {true, false}) {
    Matrix<float> expected = Matrix<float>::Zero(90, 7);  // (T, D)
    for (Index t = 0; t < 90; ++t) {
      for (Index k = 0; k < 3; ++k) {
        const Index row = plan.row_of[static_cast<std::size_t>(t * 3 + k)];
        if (row < 0) continue;
        const float weight = weighted ? routing.weights(t, k) : 1;
        for (Index d = 0; d < 7; ++d) expected(t, d) += weight * rows(row, d);
      }
    }
    const MatrixView<const float> weights =
        weighted ? MatrixView<const float>(routing.weights) : MatrixView<const float>();
    Matrix<float> first;
    for (const int threads : test_support::thread_counts) {
      const test_support::ScopedThreads scoped(threads);
      Matrix<float> y(90, 7);  // (T, D)
      y.setConstant(std::numeric_limits<float>::quiet_NaN());
      moe::combine<float>(rows, plan, weights, y);
      if (first.size() == 0) first = y;
      EXPECT_EQ(y, first);
    }
    // At most one rounding apart in each of three steps, where the compiler contracts one loop
    // only.
    const float tolerance = 3 * std::numeric_limits<float>::epsilon() * 3 * 3;  // |w| |row| <= 3
    EXPECT_LE((first - expected).cwiseAbs().maxCoeff(), tolerance);
  }
}

TEST(Combine, AddsTheFirstSlotFirstWhateverItsExpert) {
  moe::Routing<float> routing;
  routing.resize(2, 3, 3, {});
  routing.experts << 2, 0, 1, 1, 2, 0;
  routing.weights.setOnes();
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  Matrix<float> rows(6, 5);  // (N, D)
  // 1 is lost, unless it comes after the two that cancel.
  const float in_order[] = {1e8F, -1e8F, 1};
  for (Index k = 0; k < 3; ++k) {
    rows.row(plan.row_of[static_cast<std::size_t>(k)]).setConstant(in_order[k]);
    rows.row(plan.row_of[static_cast<std::size_t>(3 + k)]).setConstant(in_order[2 - k]);
  }
  for (const bool weighted : {true, false}) {
    Matrix<float> y(2, 5);  // (T, D)
    moe::combine<float>(
        rows, plan, weighted ? MatrixView<const float>(routing.weights) : MatrixView<const float>(),
        y);
    EXPECT_EQ(y.row(0), Matrix<float>::Ones(1, 5));
    EXPECT_EQ(y.row(1), Matrix<float>::Zero(1, 5));
  }
}

TEST(Combine, IsTheInverseOfDispatchForOneSlotOfWeightOne) {
  const moe::Routing<float> routing = random_routing(50, 4, 1);
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  const auto x = random_matrix<float>(50, 6, 1);
  Matrix<float> rows(plan.num_rows(), 6);  // (N, D)
  moe::dispatch<float>(x, plan, rows);
  Matrix<float> y(50, 6);  // (T, D)
  moe::combine<float>(rows, plan, {}, y);
  EXPECT_EQ(y, x);
}

TEST(Combine, PartsOfARestrictedPlanAddUp) {
  const moe::Routing<double> routing = [] {
    moe::Routing<double> r;
    r.resize(30, 4, 1, {});
    for (Index t = 0; t < 30; ++t) r.experts(t, 0) = static_cast<moe::ExpertIndex>(t * 7 % 4);
    r.weights.setConstant(0.5);
    return r;
  }();
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  const auto rows = random_matrix<double>(30, 5, 2);
  Matrix<double> whole(30, 5);  // (T, D)
  moe::combine<double>(rows, plan, routing.weights, whole);
  Matrix<double> sum = Matrix<double>::Zero(30, 5);  // (T, D)
  for (const Index first : {0, 1, 3}) {
    const Index last = first == 0 ? 1 : first == 1 ? 3 : 4;
    const moe::DispatchPlan part = moe::restrict_plan(plan, first, last);
    Matrix<double> y(30, 5);  // (T, D)
    moe::combine<double>(rows.middleRows(plan.first_row(first), part.num_rows()), part,
                         routing.weights, y);
    sum += y;
  }
  EXPECT_EQ(sum, whole);
}

TEST(DispatchAndCombine, TakeNoTokens) {
  const moe::Routing<float> routing = random_routing(0, 3, 2);
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  Matrix<float> none(0, 4);  // (T, D)
  EXPECT_NO_THROW(moe::dispatch<float>(none, plan, none));
  EXPECT_NO_THROW(moe::combine<float>(none, plan, routing.weights, none));
}

TEST(DispatchAndCombine, RefuseWhatDoesNotFit) {
  const moe::Routing<float> routing = random_routing(6, 3, 2);
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  Matrix<float> x(6, 4);      // (T, D)
  Matrix<float> rows(12, 4);  // (N, D)
  Matrix<float> y(6, 4);      // (T, D)
  EXPECT_THROW(moe::dispatch<float>(x.topRows(5), plan, rows), moe::ShapeError);
  EXPECT_THROW(moe::dispatch<float>(x, plan, rows.topRows(11)), moe::ShapeError);
  EXPECT_THROW(moe::dispatch<float>(x, plan, rows.leftCols(3)), moe::ShapeError);
  EXPECT_THROW(moe::dispatch<float>(rows.topRows(6), plan, rows), std::invalid_argument);
  EXPECT_THROW(moe::combine<float>(rows.topRows(11), plan, routing.weights, y), moe::ShapeError);
  EXPECT_THROW(moe::combine<float>(rows, plan, routing.weights, y.topRows(5)), moe::ShapeError);
  EXPECT_THROW(moe::combine<float>(rows, plan, routing.weights, y.leftCols(3)), moe::ShapeError);
  EXPECT_THROW(moe::combine<float>(rows, plan, routing.weights.topRows(5), y), moe::ShapeError);
  EXPECT_THROW(moe::combine<float>(rows, plan, routing.weights, rows.topRows(6)),
               std::invalid_argument);
  EXPECT_THROW(moe::combine<float>(rows, plan, y.leftCols(2), y), std::invalid_argument);
  EXPECT_THROW(moe::dispatch<float>(x, moe::DispatchPlan{}, rows), moe::ShapeError);
  moe::DispatchPlan outside = plan;
  outside.rows[0].token = 1'000'000;
  EXPECT_THROW(moe::dispatch<float>(x, outside, rows), std::invalid_argument);
  outside = plan;
  outside.row_of[0] = 1'000'000;
  EXPECT_THROW(moe::combine<float>(rows, outside, routing.weights, y), std::invalid_argument);
}

}  // namespace dispatch_test
