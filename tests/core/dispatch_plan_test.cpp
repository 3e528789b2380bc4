// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <moe/core/dispatch_plan.hpp>

namespace {

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

}  // namespace
