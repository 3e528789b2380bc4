// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routing/auction.hpp>

#include "support/layers.hpp"

namespace auction_test {

using moe::ExpertIndex;
using moe::Index;
using moe::Matrix;
using test_support::random_matrix;

/// The best total, by successive shortest augmenting paths over all places: the Hungarian method.
double optimum(const Matrix<double>& score) {
  const Index tokens = score.rows();
  const Index per_expert = (tokens + score.cols() - 1) / score.cols();
  const Index places = score.cols() * per_expert;
  const double infinity = std::numeric_limits<double>::infinity();
  const auto at = [](Index i) { return static_cast<std::size_t>(i); };
  // 1-based potentials and matching, costs are negative scores.
  std::vector<double> u(at(tokens + 1), 0);
  std::vector<double> v(at(places + 1), 0);
  std::vector<Index> match(at(places + 1), 0);
  for (Index i = 1; i <= tokens; ++i) {
    std::vector<double> least(at(places + 1), infinity);
    std::vector<bool> used(at(places + 1), false);
    std::vector<Index> way(at(places + 1), 0);
    match[0] = i;
    Index j0 = 0;
    do {
      used[at(j0)] = true;
      const Index i0 = match[at(j0)];
      double delta = infinity;
      Index j1 = 0;
      for (Index j = 1; j <= places; ++j) {
        if (used[at(j)]) continue;
        const double cost = -score(i0 - 1, (j - 1) / per_expert) - u[at(i0)] - v[at(j)];
        if (cost < least[at(j)]) {
          least[at(j)] = cost;
          way[at(j)] = j0;
        }
        if (least[at(j)] < delta) {
          delta = least[at(j)];
          j1 = j;
        }
      }
      for (Index j = 0; j <= places; ++j) {
        if (used[at(j)]) {
          u[at(match[at(j)])] += delta;
          v[at(j)] -= delta;
        } else {
          least[at(j)] -= delta;
        }
      }
      j0 = j1;
    } while (match[at(j0)] != 0);
    do {
      const Index j1 = way[at(j0)];
      match[at(j0)] = match[at(j1)];
      j0 = j1;
    } while (j0 != 0);
  }
  double total = 0;
  for (Index j = 1; j <= places; ++j)
    if (match[at(j)] != 0) total += score(match[at(j)] - 1, (j - 1) / per_expert);
  return total;
}

double total_of(const Matrix<double>& score, const std::vector<ExpertIndex>& chosen) {
  double total = 0;
  for (Index t = 0; t < score.rows(); ++t) total += score(t, chosen[static_cast<std::size_t>(t)]);
  return total;
}

TEST(Auction, IsBalancedAndWithinItsBoundOfTheOptimum) {
  for (const Index experts : {1, 2, 4, 8, 16}) {
    for (const Index tokens : {1, 2, 7, 16, 33, 64}) {
      const auto score = random_matrix<double>(tokens, experts,
                                               static_cast<std::uint64_t>(100 * tokens + experts));
      const double best = optimum(score);
      for (const double epsilon : {0.0, 0.5, 0.01, 1e-4}) {
        const auto chosen = moe::balanced_assignment<double>(score, epsilon);
        std::vector<Index> load(static_cast<std::size_t>(experts), 0);
        for (const ExpertIndex e : chosen) {
          ASSERT_GE(e, 0);
          ASSERT_LT(e, experts);
          ++load[static_cast<std::size_t>(e)];
        }
        EXPECT_LE(*std::max_element(load.begin(), load.end()), (tokens + experts - 1) / experts);
        const double range = score.maxCoeff() - score.minCoeff();
        const double step = epsilon > 0 ? epsilon : std::max(range / 50, 1e-4);
        EXPECT_GE(total_of(score, chosen),
                  best - static_cast<double>(tokens) * step - 1e-12 * (1 + std::abs(best)))
            << tokens << " tokens, " << experts << " experts, epsilon " << epsilon;
      }
    }
  }
}

TEST(Auction, FindsTheOptimumWhereEpsilonIsSmall) {
  // Everyone likes expert 0 best; who loses least by giving way must.
  const Matrix<double> score = (Matrix<double>(4, 2) << 9, 1, 8, 7, 7, 1, 6, 5.5).finished();
  EXPECT_EQ(moe::balanced_assignment<double>(score, 1e-3), (std::vector<ExpertIndex>{0, 1, 0, 1}));
}

TEST(Auction, TakesScoresThatAreEqualOrNotFinite) {
  const Matrix<double> equal = Matrix<double>::Constant(6, 3, 2);
  const auto chosen = moe::balanced_assignment<double>(equal);
  std::vector<Index> load(3, 0);
  for (const ExpertIndex e : chosen) ++load[static_cast<std::size_t>(e)];
  EXPECT_EQ(load, (std::vector<Index>{2, 2, 2}));
  Matrix<double> broken = equal;
  broken(0, 0) = std::numeric_limits<double>::quiet_NaN();
  broken(1, 1) = std::numeric_limits<double>::infinity();
  broken.row(2).setConstant(-std::numeric_limits<double>::infinity());
  EXPECT_EQ(moe::balanced_assignment<double>(broken).size(), 6U);
  EXPECT_TRUE(moe::balanced_assignment<double>(Matrix<double>(0, 3)).empty());
}

TEST(Auction, EndsForHugeScoresThatAreEqual) {
  const Matrix<double> equal = Matrix<double>::Constant(4, 2, 1e30);
  const auto chosen = moe::balanced_assignment<double>(equal);
  EXPECT_EQ(std::count(chosen.begin(), chosen.end(), 0), 2);
}

TEST(Auction, RefusesWhatCannotWork) {
  EXPECT_THROW(moe::balanced_assignment<double>(Matrix<double>(2, 0)), std::invalid_argument);
  EXPECT_THROW(moe::balanced_assignment<double>(Matrix<double>::Zero(2, 2).eval(), -1),
               std::invalid_argument);
}

}  // namespace auction_test
