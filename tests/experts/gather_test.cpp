// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/gather.hpp>
#include <moe/routing/plan.hpp>

#include "support/layers.hpp"

namespace gather_test {

using moe::Index;
using moe::Matrix;

TEST(GatherRows, CopiesATokenForEachRowTimesItsScale) {
  moe::Routing<double> routing;
  routing.resize(3, 2, 2, {});
  routing.experts << 0, 1, 1, 0, 1, 1;
  routing.weights << 1, 2, 3, 4, 5, 6;
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  const auto wide = test_support::random_matrix<double>(3, 9, 1);
  const moe::MatrixView<const double> x = wide.middleCols(2, 5);
  Matrix<double> rows(4, 5);  // (count, D)
  moe::detail::gather_rows<double>({x, plan}, 2, rows);
  Matrix<double> scaled(4, 5);  // (count, D)
  moe::detail::gather_rows<double>({x, plan, routing.weights}, 2, scaled);
  Matrix<double> doubled(4, 5);  // (count, D)
  moe::detail::gather_rows<double>({x, plan, {}, 2}, 2, doubled);
  for (Index r = 0; r < 4; ++r) {
    const moe::TokenSlot choice = plan.rows[static_cast<std::size_t>(r + 2)];
    EXPECT_EQ(rows.row(r), x.map().row(choice.token));
    EXPECT_EQ(doubled.row(r), 2 * rows.row(r));
    EXPECT_EQ(scaled.row(r), routing.weights(choice.token, choice.slot) * rows.row(r));
  }
}

}  // namespace gather_test
