// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include <moe/core/dispatch_plan.hpp>

namespace dispatch_plan_test {

TEST(DispatchPlan, CountsTheRowsOfItsExperts) {
  moe::DispatchPlan plan;
  plan.num_experts = 3;
  plan.offsets = {0, 2, 2, 5};
  plan.rows = {{0, 0}, {1, 1}, {0, 1}, {1, 0}, {2, 0}};
  EXPECT_EQ(plan.num_rows(), 5);
  EXPECT_EQ(plan.first_row(0), 0);
  EXPECT_EQ(plan.first_row(2), 2);
  EXPECT_EQ(plan.rows_of(0), 2);
  EXPECT_EQ(plan.rows_of(1), 0);
  EXPECT_EQ(plan.rows_of(2), 3);
}

TEST(DispatchPlan, IsEmptyAtFirst) {
  EXPECT_EQ(moe::DispatchPlan().num_rows(), 0);
  EXPECT_TRUE(moe::DispatchPlan().dropped.empty());
}

moe::DispatchPlan good_plan() {
  moe::DispatchPlan plan;
  plan.tokens = 2;
  plan.top_k = 2;
  plan.num_experts = 2;
  plan.offsets = {0, 1, 3};
  plan.rows = {{0, 1}, {0, 0}, {1, 1}};
  plan.row_of = {1, 0, moe::DispatchPlan::no_row, 2};
  return plan;
}

TEST(CheckPlan, RefusesWhatLeadsOutside) {
  EXPECT_NO_THROW(moe::detail::check_plan("f", good_plan()));
  const auto after = [](auto change) {
    moe::DispatchPlan plan = good_plan();
    change(plan);
    std::string message;
    try {
      moe::detail::check_plan("f", plan);
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    return message;
  };
  EXPECT_EQ(after([](auto& p) { p.tokens = -1; }), "f: a size of the plan is negative");
  EXPECT_EQ(after([](auto& p) { p.num_experts = -1; }), "f: a size of the plan is negative");
  EXPECT_EQ(after([](auto& p) { p.offsets.pop_back(); }),
            "f: plan.offsets.size() - 1: expected 2, got 1");
  EXPECT_EQ(after([](auto& p) { p.row_of.pop_back(); }),
            "f: plan.row_of.size(): expected 4, got 3");
  EXPECT_EQ(after([](auto& p) { p.offsets[0] = -5; }),
            "f: plan.offsets.front(): expected 0, got -5");
  EXPECT_EQ(after([](auto& p) { p.offsets[2] = 50; }),
            "f: plan.offsets.back(): expected 3, got 50");
  EXPECT_EQ(after([](auto& p) { p.offsets[1] = 50; }), "f: plan.offsets must not decrease");
  const std::string bad_row = "f: plan.rows names a token or slot that is out of range";
  EXPECT_EQ(after([](auto& p) { p.rows[1].token = 2; }), bad_row);
  EXPECT_EQ(after([](auto& p) { p.rows[1].token = -1; }), bad_row);
  EXPECT_EQ(after([](auto& p) { p.rows[2].slot = 2; }), bad_row);
  const std::string bad_row_of = "f: plan.row_of names a row that is out of range";
  EXPECT_EQ(after([](auto& p) { p.row_of[0] = 3; }), bad_row_of);
  EXPECT_EQ(after([](auto& p) { p.row_of[0] = -7; }), bad_row_of);
  const std::string disagree = "f: plan.rows and plan.row_of disagree";
  EXPECT_EQ(after([](auto& p) { p.rows[1] = p.rows[0]; }), disagree);
  EXPECT_EQ(after([](auto& p) { p.row_of[0] = moe::DispatchPlan::no_row; }), disagree);
  EXPECT_EQ(after([](auto& p) { p.row_of[2] = 2; }), disagree);
  EXPECT_EQ(after([](auto& p) {  // More rows than slots.
              p.offsets = {0, 30, 60};
              p.rows.assign(60, {0, 0});
            }),
            disagree);
  EXPECT_EQ(after([](auto& p) { p.first_expert = -1; }), "f: a size of the plan is negative");
  EXPECT_NE(after([](auto& p) { p.num_experts = std::numeric_limits<moe::Index>::max(); }), "");
  EXPECT_NE(after([](auto& p) { p.tokens = p.top_k = moe::Index{1} << 62; }), "");
  EXPECT_NE(after([](auto& p) { p = {}; }), "");
}

}  // namespace dispatch_plan_test
