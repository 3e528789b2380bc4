// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routing/expert_choice_router.hpp>

#include "support/layers.hpp"
#include "support/threads.hpp"

namespace expert_choice_router_test {

using moe::CapacityFormula;
using moe::Index;
using moe::Matrix;
using moe::Routing;
using test_support::random_matrix;

moe::ExpertChoiceRouter<double> router_of(moe::Capacity capacity) {
  return {{.d_model = 6, .num_experts = 5, .capacity = capacity}, random_matrix<double>(5, 6, 1)};
}

TEST(ExpertChoice, EveryExpertTakesItsBestTokensOfAGroup) {
  const auto x = random_matrix<double>(23, 6, 2);
  for (const Index group : {0, 10}) {
    const auto router =
        router_of({.factor = 1.5, .formula = CapacityFormula::tokens_ceil, .group_tokens = group});
    Routing<double> routing;
    router.route(x, {}, routing);
    const Index size = group == 0 ? 23 : group;
    const Index taken = router.tokens_per_expert(size);
    EXPECT_EQ(taken, group == 0 ? 7 : 3);
    for (Index begin = 0; begin < 23; begin += size) {
      const Index end = std::min<Index>(begin + size, 23);
      for (Index e = 0; e < 5; ++e) {
        std::vector<Index> order;
        for (Index t = begin; t < end; ++t) order.push_back(t);
        std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
          return routing.scores(a, e) > routing.scores(b, e);
        });
        order.resize(std::min(order.size(), static_cast<std::size_t>(taken)));
        for (Index t = begin; t < end; ++t) {
          const bool expected = std::find(order.begin(), order.end(), t) != order.end();
          bool found = false;
          for (Index k = 0; k < routing.top_k(); ++k) {
            if (routing.experts(t, k) != e) continue;
            found = true;
            EXPECT_EQ(routing.weights(t, k), routing.scores(t, e));
          }
          EXPECT_EQ(found, expected) << t << " " << e;
        }
      }
    }
    // Slots in order of falling weight, unused ones last.
    for (Index t = 0; t < 23; ++t)
      for (Index k = 1; k < routing.top_k(); ++k)
        EXPECT_GE(routing.weights(t, k - 1), routing.weights(t, k));
  }
}

TEST(ExpertChoice, TiesGoToTheEarlierToken) {
  const Matrix<double> x = Matrix<double>::Ones(4, 6);
  Routing<double> routing;
  router_of({.factor = 2.5, .formula = CapacityFormula::tokens_floor}).route(x, {}, routing);
  for (Index t = 0; t < 4; ++t)
    for (Index k = 0; k < routing.top_k(); ++k)
      EXPECT_EQ(routing.experts(t, k) != moe::no_expert, t < 2);
}

TEST(ExpertChoice, TakesFewTokensOrNone) {
  Routing<double> routing;
  const auto all = router_of({.factor = 100, .formula = CapacityFormula::tokens_ceil});
  all.route(random_matrix<double>(3, 6, 2), {}, routing);
  EXPECT_EQ(routing.top_k(), 5);
  EXPECT_TRUE((routing.experts.array() != moe::no_expert).all());
  all.route(Matrix<double>(0, 6), {}, routing);
  EXPECT_EQ(routing.tokens(), 0);
  const auto none = router_of({.factor = .1, .formula = CapacityFormula::tokens_floor});
  none.route(random_matrix<double>(3, 6, 2), {}, routing);
  EXPECT_TRUE((routing.experts.array() == moe::no_expert).all());
}

TEST(ExpertChoice, IsTheSameForAnyThreads) {
  const auto x = random_matrix<double>(70, 6, 2);
  const auto router = router_of({.factor = 2, .formula = CapacityFormula::tokens_ceil});
  Routing<double> expected;
  {
    const test_support::ScopedThreads one(1);
    router.route(x, {}, expected);
  }
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads several(threads);
    Routing<double> routing;
    router.route(x, {}, routing);
    EXPECT_EQ(routing.experts, expected.experts);
    EXPECT_EQ(routing.weights, expected.weights);
  }
}

TEST(ExpertChoice, RefusesWhatCannotWork) {
  EXPECT_THROW(router_of({}), std::invalid_argument);
  EXPECT_THROW(router_of({.factor = -1}), std::invalid_argument);
  Routing<double> routing;
  EXPECT_THROW(router_of({.factor = 1}).route(Matrix<double>(2, 5), {}, routing), moe::ShapeError);
}

}  // namespace expert_choice_router_test
