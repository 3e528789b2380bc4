// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/routing/plan.hpp>

#include "support/reference.hpp"
#include "support/threads.hpp"

namespace plan_test {

using moe::Capacity;
using moe::DispatchPlan;
using moe::Index;
using moe::Routing;
using moe::TokenSlot;

/// Squares of uniform numbers, so that low experts are chosen more often. An expert may occur twice
/// in a token, as in a routing built by hand.
Routing<float> uneven_routing(Index tokens, Index num_experts, Index top_k) {
  Routing<float> routing;
  routing.resize(tokens, num_experts, top_k, {});
  for (Index i = 0; i < tokens * top_k; ++i) {
    const double u = moe::detail::uniform(21, static_cast<std::uint64_t>(i));
    routing.experts.data()[i] =
        static_cast<moe::ExpertIndex>(u * u * static_cast<double>(num_experts));
    routing.weights.data()[i] = 1;
  }
  return routing;
}

void expect_plan(const DispatchPlan& plan, const Routing<float>& routing, Index limit) {
  const reference::Groups expected = reference::group_by_expert(routing, limit);
  ASSERT_EQ(plan.tokens, routing.tokens());
  ASSERT_EQ(plan.top_k, routing.top_k());
  ASSERT_EQ(plan.num_experts, routing.num_experts);
  ASSERT_EQ(plan.offsets.size(), static_cast<std::size_t>(routing.num_experts + 1));
  EXPECT_EQ(plan.offsets.front(), 0);
  EXPECT_EQ(plan.offsets.back(), plan.num_rows());
  for (Index e = 0; e < plan.num_experts; ++e) {
    const std::vector<TokenSlot> rows(plan.rows.begin() + plan.first_row(e),
                                      plan.rows.begin() + plan.first_row(e + 1));
    EXPECT_EQ(rows, expected.rows[static_cast<std::size_t>(e)]) << "expert " << e;
  }
  EXPECT_EQ(plan.dropped, expected.dropped);

  std::vector<std::int32_t> row_of(static_cast<std::size_t>(plan.tokens * plan.top_k),
                                   DispatchPlan::no_row);
  for (std::size_t r = 0; r < plan.rows.size(); ++r)
    row_of[static_cast<std::size_t>(plan.rows[r].token * plan.top_k + plan.rows[r].slot)] =
        static_cast<std::int32_t>(r);
  EXPECT_EQ(plan.row_of, row_of);
}

TEST(MakePlan, AgreesWithTheReferenceForAnyThreads) {
  DispatchPlan plan;  // One for all: memory is reused.
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads scoped(threads);
    for (const Index tokens : {0, 1, 3, 511, 512, 513, 2000}) {
      for (const Index num_experts : {1, 5, 64}) {
        const Routing<float> routing = uneven_routing(tokens, num_experts, 2);
        moe::make_plan(routing, {}, plan);
        expect_plan(plan, routing, Capacity::unlimited);
        const Capacity capacity{.factor = 0.8};
        moe::make_plan(routing, capacity, plan);
        expect_plan(plan, routing, capacity.rows(tokens, 2, num_experts));
      }
    }
  }
}

TEST(MakePlan, DropsTheLastComers) {
  Routing<float> routing;
  routing.resize(4, 3, 2, {});
  routing.experts << 0, 1, 0, 1, 0, 2, 0, 1;
  routing.weights.setOnes();
  DispatchPlan plan;
  moe::make_plan(routing, {.factor = 0.75}, plan);  // ceil(0.75 * 8 / 3) = 2
  EXPECT_EQ(plan.offsets, (std::vector<Index>{0, 2, 4, 5}));
  EXPECT_EQ(plan.rows, (std::vector<TokenSlot>{{0, 0}, {1, 0}, {0, 1}, {1, 1}, {2, 1}}));
  EXPECT_EQ(plan.dropped, (std::vector<TokenSlot>{{2, 0}, {3, 0}, {3, 1}}));
  EXPECT_EQ(plan.row_of, (std::vector<std::int32_t>{0, 2, 1, 3, -1, 4, -1, -1}));
}

TEST(CapacityRows, FollowTheirFormula) {
  EXPECT_EQ(Capacity{}.rows(10, 2, 4), Capacity::unlimited);
  EXPECT_EQ((Capacity{.factor = 1}.rows(10, 2, 4)), 5);
  EXPECT_EQ((Capacity{.factor = 1.25}.rows(10, 2, 4)), 7);
  EXPECT_EQ((Capacity{.factor = 1, .minimum = 8}.rows(10, 2, 4)), 8);
  EXPECT_EQ((Capacity{.factor = 1}.rows(0, 2, 4)), 0);
  EXPECT_EQ((Capacity{.factor = 1e300}.rows(10, 2, 4)), Capacity::unlimited);
}

TEST(MakePlan, RefusesBadRoutingsAndCapacities) {
  DispatchPlan plan;
  Routing<float> routing = uneven_routing(3, 4, 2);
  EXPECT_THROW(moe::make_plan(routing, {.factor = -1}, plan), std::invalid_argument);
  EXPECT_THROW(moe::make_plan(routing, {.factor = std::nan("")}, plan), std::invalid_argument);
  EXPECT_THROW(moe::make_plan(routing, {.factor = 1, .minimum = -1}, plan), std::invalid_argument);
  routing.experts(1, 1) = 4;
  EXPECT_THROW(moe::make_plan(routing, {}, plan), std::invalid_argument);
  routing.experts(1, 1) = -2;
  EXPECT_THROW(moe::make_plan(routing, {}, plan), std::invalid_argument);
  routing.experts(1, 1) = 0;
  routing.weights(2, 0) = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(moe::make_plan(routing, {}, plan), std::invalid_argument);
  routing.weights.resize(2, 2);
  EXPECT_THROW(moe::make_plan(routing, {}, plan), moe::ShapeError);
  routing = {};
  EXPECT_THROW(moe::make_plan(routing, {}, plan), std::invalid_argument);
  routing.resize(3, 4, 0, {});
  EXPECT_THROW(moe::make_plan(routing, {}, plan), std::invalid_argument);
}

TEST(MakeFullPlan, SendsEveryTokenToEveryExpert) {
  DispatchPlan plan;
  moe::make_full_plan(3, 2, plan);
  EXPECT_EQ(plan.offsets, (std::vector<Index>{0, 3, 6}));
  EXPECT_EQ(plan.rows, (std::vector<TokenSlot>{{0, 0}, {1, 0}, {2, 0}, {0, 1}, {1, 1}, {2, 1}}));
  EXPECT_EQ(plan.row_of, (std::vector<std::int32_t>{0, 3, 1, 4, 2, 5}));
  EXPECT_THROW(moe::make_full_plan(2, 0, plan), std::invalid_argument);
  moe::make_full_plan(0, 2, plan);
  EXPECT_EQ(plan.num_rows(), 0);
}

TEST(RestrictPlan, PartsMakeUpTheWhole) {
  const Routing<float> routing = uneven_routing(300, 7, 2);
  DispatchPlan plan;
  moe::make_plan(routing, {.factor = 0.9}, plan);
  std::vector<TokenSlot> rows;
  std::vector<Index> owners(plan.row_of.size(), 0);
  const std::vector<Index> cuts{0, 2, 2, 5, 7};
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
    const DispatchPlan part = moe::restrict_plan(plan, cuts[i], cuts[i + 1]);
    EXPECT_EQ(part.first_expert, cuts[i]);
    EXPECT_EQ(part.num_experts, cuts[i + 1] - cuts[i]);
    EXPECT_EQ(part.tokens, plan.tokens);
    EXPECT_EQ(part.top_k, plan.top_k);
    for (Index e = 0; e < part.num_experts; ++e)
      EXPECT_EQ(part.rows_of(e), plan.rows_of(cuts[i] + e));
    for (std::size_t s = 0; s < part.row_of.size(); ++s) {
      if (part.row_of[s] == DispatchPlan::no_row) continue;
      ++owners[s];
      EXPECT_EQ(part.row_of[s], plan.row_of[s] - plan.first_row(cuts[i]));
    }
    rows.insert(rows.end(), part.rows.begin(), part.rows.end());
  }
  EXPECT_EQ(rows, plan.rows);
  for (std::size_t s = 0; s < owners.size(); ++s)
    EXPECT_EQ(owners[s], plan.row_of[s] == DispatchPlan::no_row ? 0 : 1);

  const DispatchPlan nested = moe::restrict_plan(moe::restrict_plan(plan, 2, 7), 1, 3);
  EXPECT_EQ(nested.first_expert, 3);
  EXPECT_EQ(nested.rows, moe::restrict_plan(plan, 3, 5).rows);
}

TEST(RestrictPlan, RefusesWhatIsNoRange) {
  DispatchPlan plan;
  moe::make_full_plan(2, 3, plan);
  EXPECT_THROW(moe::restrict_plan(plan, -1, 2), std::invalid_argument);
  EXPECT_THROW(moe::restrict_plan(plan, 2, 1), std::invalid_argument);
  EXPECT_THROW(moe::restrict_plan(plan, 0, 4), std::invalid_argument);
}

// T K / E first would round, and the ceiling would turn that into another row: 1.75 * 116 / 7 = 29.
TEST(CapacityRows, AreExactWhereTheFormulaIsAWholeNumber) {
  for (const Index sixteenths : {8, 12, 16, 17, 18, 20, 24, 28, 32, 48}) {
    const Capacity capacity{.factor = static_cast<double>(sixteenths) / 16};
    for (Index choices = 1; choices < 600; ++choices) {
      for (Index num_experts = 1; num_experts < 70; ++num_experts) {
        const Index divisor = 16 * num_experts;
        const Index exact = (sixteenths * choices + divisor - 1) / divisor;
        ASSERT_EQ(capacity.rows(choices, 1, num_experts), exact)
            << capacity.factor << " * " << choices << " / " << num_experts;
      }
    }
  }
}

}  // namespace plan_test
