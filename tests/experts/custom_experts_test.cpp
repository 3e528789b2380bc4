// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/custom_experts.hpp>
#include <moe/routing/plan.hpp>

#include "support/layers.hpp"
#include "support/threads.hpp"

namespace custom_experts_test {

using moe::Index;
using moe::Matrix;
using moe::MatrixView;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Adds its number; counts its calls; can be told to fail. Can be moved, not copied.
struct AddingExpert {
  using Scalar = float;
  float number = 0;
  bool fails = false;
  Index width = 3;
  std::unique_ptr<std::atomic<int>> calls = std::make_unique<std::atomic<int>>(0);
  std::unique_ptr<std::atomic<Index>> rows = std::make_unique<std::atomic<Index>>(0);

  Index d_model() const { return width; }
  void forward(MatrixView<const float> x, MatrixView<float> y) const {
    if (fails) throw Failure("this expert fails");
    ++*calls;
    *rows += x.rows();
    y.map() = x.map().array() + number;
  }
};

std::vector<AddingExpert> adding_experts(Index count) {
  std::vector<AddingExpert> experts(static_cast<std::size_t>(count));
  for (std::size_t e = 0; e < experts.size(); ++e) experts[e].number = static_cast<float>(e + 1);
  return experts;
}

moe::DispatchPlan skewed_plan() {
  moe::Routing<float> routing;
  routing.resize(40, 4, 2, {});
  routing.weights.setOnes();
  for (Index t = 0; t < 40; ++t) {
    routing.experts(t, 0) = t < 35 ? 1 : 0;
    routing.experts(t, 1) = 3;
  }
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  return plan;
}

TEST(CustomExperts, EachRunsOnceOnAllOfItsRows) {
  const moe::DispatchPlan plan = skewed_plan();
  const auto x = test_support::random_matrix<float>(40, 3, 1);
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads scoped(threads);
    const moe::CustomExperts bank(adding_experts(4));
    Matrix<float> rows(plan.num_rows(), 3);  // (N, D)
    moe::Scratch scratch;
    bank.forward({x, plan}, rows, scratch);
    for (Index e = 0; e < 4; ++e) {
      EXPECT_EQ(*bank.expert(e).calls, plan.rows_of(e) > 0 ? 1 : 0);
      EXPECT_EQ(*bank.expert(e).rows, plan.rows_of(e));
      for (Index r = plan.first_row(e); r < plan.first_row(e + 1); ++r)
        for (Index d = 0; d < 3; ++d)
          EXPECT_EQ(rows(r, d),
                    x(plan.rows[static_cast<std::size_t>(r)].token, d) + static_cast<float>(e + 1));
    }
  }
}

TEST(CustomExperts, WhatAnExpertThrowsReachesTheCaller) {
  const moe::DispatchPlan plan = skewed_plan();
  const auto x = test_support::random_matrix<float>(40, 3, 1);
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads scoped(threads);
    moe::CustomExperts bank(adding_experts(4));
    bank.expert(3).fails = true;
    Matrix<float> rows(plan.num_rows(), 3);  // (N, D)
    moe::Scratch scratch;
    EXPECT_THROW(bank.forward({x, plan}, rows, scratch), Failure);
    bank.expert(3).fails = false;
    EXPECT_NO_THROW(bank.forward({x, plan}, rows, scratch));
  }
}

TEST(CustomExperts, RefusesNoneAndDifferentWidths) {
  EXPECT_THROW(moe::CustomExperts(std::vector<AddingExpert>{}), std::invalid_argument);
  std::vector<AddingExpert> experts = adding_experts(2);
  experts[1].width = 4;
  EXPECT_THROW(moe::CustomExperts(std::move(experts)), moe::ShapeError);
}

TEST(CustomExperts, RefusesAPlanOfOtherExperts) {
  const moe::CustomExperts bank(adding_experts(3));
  const moe::DispatchPlan plan = skewed_plan();
  const auto x = test_support::random_matrix<float>(40, 3, 1);
  Matrix<float> rows(plan.num_rows(), 3);  // (N, D)
  moe::Scratch scratch;
  EXPECT_THROW(bank.forward({x, plan}, rows, scratch), moe::ShapeError);
}

}  // namespace custom_experts_test
