// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include <gtest/gtest.h>

#include <moe/fwd.hpp>
#include <moe/layer/shared_experts.hpp>

#include "support/layers.hpp"
#include "support/threads.hpp"

namespace shared_experts_test {

using moe::Index;
using moe::Matrix;

using Bank = moe::SwiGluExperts<double>;

TEST(SharedExperts, AddEveryExpertOfEveryToken) {
  const auto bank = test_support::random_bank<Bank>({.num_experts = 2, .d_model = 6, .d_ff = 9}, 1);
  const auto experts = test_support::reference_experts(bank);
  const moe::SharedExperts shared(bank);
  const auto x = test_support::random_matrix<double>(40, 6, 2);
  const auto before = test_support::random_matrix<double>(40, 6, 3);
  Matrix<double> first;
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads scoped(threads);
    moe::Workspace<double> workspace;
    Matrix<double> y = before;  // (T, D)
    shared.run(x, workspace);
    EXPECT_EQ(y, before);
    shared.add(workspace, y);
    if (first.size() == 0) first = y;
    EXPECT_EQ(y, first);
  }
  for (Index t = 0; t < 40; ++t) {
    const reference::Values token = reference::row_of(x, t);
    for (Index d = 0; d < 6; ++d) {
      const auto i = static_cast<std::size_t>(d);
      double expected = before(t, d);
      double bound = std::fabs(expected);
      for (const reference::Expert& expert : experts) {
        expected += reference::run_expert(expert, reference::silu, token)[i];
        bound += reference::bound_of_expert(expert, token)[i];
      }
      EXPECT_NEAR(first(t, d), expected,
                  test_support::roundings(6, 9) * std::numeric_limits<double>::epsilon() * bound);
    }
  }
}

TEST(SharedExperts, RefuseAnOutputOfOtherSizes) {
  const moe::SharedExperts shared(
      test_support::random_bank<Bank>({.num_experts = 2, .d_model = 6, .d_ff = 9}, 1));
  moe::Workspace<double> workspace;
  const auto x = test_support::random_matrix<double>(4, 6, 2);
  Matrix<double> y = Matrix<double>::Zero(5, 6);  // (T, D)
  shared.run(x, workspace);
  EXPECT_THROW(shared.add(workspace, y), moe::ShapeError);
  EXPECT_THROW(shared.add(workspace, y.topLeftCorner(4, 5)), moe::ShapeError);
  EXPECT_NO_THROW(shared.add(workspace, y.topRows(4)));
}

TEST(SharedExperts, RefuseAnInputOfAnotherWidth) {
  const moe::SharedExperts gated(
      test_support::random_bank<Bank>({.num_experts = 2, .d_model = 6, .d_ff = 9}, 1),
      test_support::random_matrix<double>(2, 6, 3));
  moe::Workspace<double> workspace;
  EXPECT_THROW(gated.run(test_support::random_matrix<double>(4, 5, 2), workspace), moe::ShapeError);
  EXPECT_NO_THROW(gated.run(test_support::random_matrix<double>(4, 6, 2), workspace));
}

TEST(SharedExperts, WithoutABankAddNothing) {
  const moe::SharedExperts<Bank> none;
  EXPECT_FALSE(none.bank().has_value());
  moe::Workspace<double> workspace;
  const auto x = test_support::random_matrix<double>(3, 6, 2);
  Matrix<double> y = x;  // (T, D)
  none.run(x, workspace);
  none.add(workspace, y);
  EXPECT_EQ(y, x);
}

}  // namespace shared_experts_test
