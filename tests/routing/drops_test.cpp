// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/routing/drops.hpp>
#include <moe/routing/plan.hpp>

#include "support/routings.hpp"

namespace drops_test {

using moe::Capacity;
using moe::CapacityFormula;
using moe::DispatchPlan;
using moe::DropOrder;
using moe::Index;
using moe::Routing;
using moe::SlotStart;
using moe::TokenSlot;
using test_support::random_logits;

Capacity limit_of(Index rows, DropOrder order, Index group = 0) {
  return {
      .formula = CapacityFormula::fixed, .fixed_rows = rows, .order = order, .group_tokens = group};
}

Routing<double> some_routing(Index tokens = 40, Index experts = 6, Index top_k = 3) {
  moe::Matrix<double> logits = random_logits(tokens, experts, 3);
  logits.col(1).array() += 1;  // A favourite, which overflows.
  Routing<double> routing = test_support::route<double>(logits, top_k);
  // Choices need not be used.
  routing.experts(5, 2) = moe::no_expert;
  routing.weights(5, 2) = 0;
  return routing;
}

/// The drops, by walking through all choices in the order in which they claim places.
std::vector<TokenSlot> naive_drops(const Routing<double>& routing, const Capacity& capacity,
                                   const moe::Matrix<double>& priority) {
  struct Choice {
    TokenSlot at;
    std::vector<double> key;  // Smallest first.
  };
  std::vector<Choice> choices;
  for (Index t = 0; t < routing.tokens(); ++t) {
    for (Index k = 0; k < routing.top_k(); ++k) {
      if (routing.experts(t, k) == moe::no_expert) continue;
      const auto token = static_cast<double>(t);
      const auto slot = static_cast<double>(k);
      Choice choice{{static_cast<std::int32_t>(t), static_cast<std::int32_t>(k)}, {}};
      switch (capacity.order) {
        case DropOrder::token_major:
          choice.key = {token, slot};
          break;
        case DropOrder::slot_major:
          choice.key = {slot, token};
          break;
        case DropOrder::batch_priority:
          choice.key = {slot, -routing.scores.row(t).maxCoeff(), token};
          break;
        case DropOrder::by_weight:
          choice.key = {-routing.weights(t, k), token};
          break;
        case DropOrder::random:
          choice.key = {-priority(t, routing.experts(t, k)), token};
          break;
      }
      choices.push_back(choice);
    }
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return a.key < b.key; });
  const Index group = capacity.group_tokens > 0 ? capacity.group_tokens : routing.tokens();
  moe::Matrix<Index> taken =
      moe::Matrix<Index>::Zero(routing.tokens() / group + 1, routing.num_experts);
  std::vector<TokenSlot> dropped;
  for (const Choice& choice : choices) {
    const Index expert = routing.experts(choice.at.token, choice.at.slot);
    if (taken(choice.at.token / group, expert)++ >= capacity.fixed_rows)
      dropped.push_back(choice.at);
  }
  std::sort(dropped.begin(), dropped.end(), [](TokenSlot a, TokenSlot b) {
    return a.token != b.token ? a.token < b.token : a.slot < b.slot;
  });
  return dropped;
}

constexpr DropOrder orders[] = {DropOrder::token_major, DropOrder::slot_major,
                                DropOrder::batch_priority, DropOrder::by_weight, DropOrder::random};

TEST(Drops, EveryOrderListsItsDropsExactly) {
  const Routing<double> routing = some_routing();
  moe::Matrix<double> priority(40, 6);
  moe::detail::fill_uniform(priority.data(), priority.size(), 1, 9);
  std::vector<std::vector<TokenSlot>> seen;
  for (const DropOrder order : orders) {
    for (const Index group : {0, 10, 16}) {
      for (const Index limit : {0, 1, 3, 9, 40}) {
        const Capacity capacity = limit_of(limit, order, group);
        DispatchPlan plan;
        moe::make_plan(routing, capacity, plan, priority);
        EXPECT_EQ(plan.dropped, naive_drops(routing, capacity, priority));
        EXPECT_EQ(plan.num_rows() + static_cast<Index>(plan.dropped.size()), 119);
        // Rows of an expert stay in order of the tokens whatever the order of the drops.
        for (Index e = 0; e < 6; ++e)
          for (Index r = plan.first_row(e) + 1; r < plan.first_row(e + 1); ++r)
            EXPECT_LT(plan.rows[static_cast<std::size_t>(r - 1)].token,
                      plan.rows[static_cast<std::size_t>(r)].token);
        if (group == 0 && limit == 9) seen.push_back(plan.dropped);
      }
    }
  }
  for (std::size_t a = 0; a < seen.size(); ++a)
    for (std::size_t b = 0; b < a; ++b) EXPECT_NE(seen[a], seen[b]) << "the orders must differ";
}

TEST(Drops, ASecondChoiceThatStartsAfterTheKeptOnesMeetsTheSameFate) {
  const Routing<double> routing = some_routing();
  for (const DropOrder order : {DropOrder::slot_major, DropOrder::batch_priority}) {
    for (const Index limit : {1, 3, 9}) {
      Capacity capacity = limit_of(limit, order);
      DispatchPlan undropped;
      moe::make_plan(routing, capacity, undropped);
      const auto places = moe::choice_places(routing, capacity);
      capacity.slot_start = SlotStart::kept;
      DispatchPlan kept;
      moe::make_plan(routing, capacity, kept);
      EXPECT_EQ(undropped.dropped, kept.dropped);
      const auto other = moe::choice_places(routing, capacity);
      EXPECT_NE(places, other) << "places of dropped choices differ";
      for (std::size_t i = 0; i < places.size(); ++i) {
        if (places[i] < limit) {
          EXPECT_EQ(places[i], other[i]);
        }
      }
    }
  }
}

TEST(Drops, RandomSelectionDependsOnItsSeedOnly) {
  const Routing<double> routing = some_routing();
  Capacity capacity = limit_of(3, DropOrder::random);
  DispatchPlan first;
  DispatchPlan again;
  DispatchPlan other;
  moe::make_plan(routing, capacity, first);
  moe::make_plan(routing, capacity, again);
  capacity.seed = 1;
  moe::make_plan(routing, capacity, other);
  EXPECT_EQ(first.dropped, again.dropped);
  EXPECT_NE(first.dropped, other.dropped);
}

TEST(Drops, BatchPriorityNeedsScores) {
  Routing<double> routing = some_routing();
  routing.scores.resize(0, 0);
  DispatchPlan plan;
  EXPECT_THROW(moe::make_plan(routing, limit_of(1, DropOrder::batch_priority), plan),
               std::invalid_argument);
  EXPECT_THROW(moe::make_plan(routing, limit_of(1, DropOrder::random), plan,
                              moe::Matrix<double>::Zero(40, 5).eval()),
               moe::ShapeError);
}

TEST(FinalWeights, AreZeroWhereDroppedAndRenormalisedWhereAsked) {
  Routing<double> routing;
  routing.resize(3, 2, 2, {});
  routing.experts << 0, 1, 0, 1, 0, 1;
  routing.weights << .6, .2, .5, .3, .7, .1;
  DispatchPlan plan;
  moe::make_plan(routing, limit_of(2, DropOrder::slot_major), plan);
  moe::GrowingMatrix<double> weights;
  moe::final_weights(routing, plan, weights);
  EXPECT_EQ(weights, (moe::Matrix<double>(3, 2) << .6, .2, .5, .3, 0, 0).finished());

  moe::make_plan(routing, limit_of(1, DropOrder::slot_major), plan);
  routing.renormalization = {.kind = moe::Renormalization::sum, .after_drop = true};
  routing.scale_after_drop = 2;
  moe::final_weights(routing, plan, weights);
  EXPECT_NEAR(weights(0, 0), 2 * .6 / .8, 1e-15);
  EXPECT_NEAR(weights(0, 1), 2 * .2 / .8, 1e-15);
  EXPECT_EQ(weights.bottomRows(2), (moe::Matrix<double>::Zero(2, 2)));
  // One survivor of two gets all.
  routing.experts.row(1) << 1, 0;
  moe::make_plan(routing, limit_of(1, DropOrder::slot_major), plan);
  moe::final_weights(routing, plan, weights);
  EXPECT_EQ(weights.row(0), (moe::Matrix<double>(1, 2) << 2, 0).finished());
}

TEST(Reroute, GoesToTheNextBestExpertWithRoom) {
  Routing<double> routing;
  routing.resize(4, 3, 1, {});
  routing.scores << .6, .3, .1,  //
      .5, .1, .4,                //
      .7, .2, .1,                //
      .9, .06, .04;
  for (Index t = 0; t < 4; ++t) {
    routing.experts(t, 0) = 0;
    routing.weights(t, 0) = 2 * routing.scores(t, 0);
  }
  const Capacity capacity = limit_of(1, DropOrder::token_major);
  DispatchPlan plan;
  moe::make_plan(routing, capacity, plan);
  EXPECT_EQ(moe::reroute_dropped(plan, capacity, routing), 2);
  EXPECT_EQ(routing.experts.col(0), (Eigen::Matrix<moe::ExpertIndex, 4, 1>(0, 2, 1, 0)));
  EXPECT_NEAR(routing.weights(1, 0), 2 * .4, 1e-15) << "the weight keeps its ratio to the score";
  EXPECT_NEAR(routing.weights(2, 0), 2 * .2, 1e-15);
  moe::make_plan(routing, capacity, plan);
  EXPECT_EQ(plan.dropped, (std::vector<TokenSlot>{{3, 0}})) << "no expert had room for the last";
}

TEST(Reroute, NeverGivesATokenTheSameExpertTwiceOrOverfillsOne) {
  for (const Index group : {0, 10}) {
    Routing<double> routing = some_routing();
    const Capacity capacity = limit_of(group == 0 ? 20 : 5, DropOrder::slot_major, group);
    DispatchPlan plan;
    moe::make_plan(routing, capacity, plan);
    const auto dropped = static_cast<Index>(plan.dropped.size());
    ASSERT_GT(dropped, 0);
    const Index moved = moe::reroute_dropped(plan, capacity, routing);
    EXPECT_GT(moved, 0);
    moe::make_plan(routing, capacity, plan);
    EXPECT_EQ(static_cast<Index>(plan.dropped.size()), dropped - moved);
    for (Index t = 0; t < routing.tokens(); ++t)
      for (Index a = 0; a < 3; ++a)
        for (Index b = 0; b < a; ++b) EXPECT_NE(routing.experts(t, a), routing.experts(t, b));
  }
}

TEST(Reroute, OfLogitsKeepsTheSumOfTheWeights) {
  Routing<double> routing;
  routing.resize(2, 3, 2, {});
  routing.score_function = moe::ScoreFunction::identity;
  routing.scores << 2, 1, -1,  //
      2, 1, -1;
  const double sum = std::exp(2.0) + std::exp(1.0);
  for (Index t = 0; t < 2; ++t) {
    routing.experts.row(t) << 0, 1;
    routing.weights.row(t) << std::exp(2.0) / sum, std::exp(1.0) / sum;
  }
  Capacity capacity = limit_of(1, DropOrder::token_major);
  DispatchPlan plan;
  moe::make_plan(routing, capacity, plan);
  // Token 1 lost both of its experts; the third, whose logit is negative, takes one.
  EXPECT_EQ(moe::reroute_dropped(plan, capacity, routing), 1);
  EXPECT_EQ(routing.experts(1, 0), 2);
  EXPECT_EQ(routing.experts(1, 1), 1);
  EXPECT_NEAR(routing.weights(1, 0), std::exp(-1.0) / (std::exp(-1.0) + std::exp(1.0)), 1e-15);
  EXPECT_NEAR(routing.weights.row(1).sum(), 1, 1e-15);
}

TEST(Reroute, RefusesPlansThatAreNotTheRoutings) {
  const Capacity capacity = limit_of(2, DropOrder::token_major);
  Routing<double> routing = some_routing();
  DispatchPlan plan;
  moe::make_plan(routing, capacity, plan);
  ASSERT_FALSE(plan.dropped.empty());
  const auto expect_refused = [&](auto change, const char* text) {
    Routing<double> changed = routing;
    DispatchPlan of_it = plan;
    change(changed, of_it);
    try {
      moe::reroute_dropped(of_it, capacity, changed);
      ADD_FAILURE() << text;
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  };
  expect_refused([](auto& r, auto&) { r = some_routing(39); }, "plan.tokens");
  expect_refused([](auto& r, auto&) { r.num_experts = 5; }, "routing.logits.cols()");
  expect_refused([](auto& r, auto&) { r.weights.resize(40, 2); }, "routing.weights.cols()");
  expect_refused([](auto&, auto& p) { p.dropped[0].token = 40; }, "plan.dropped names a token");
  expect_refused([](auto&, auto& p) { p.dropped[0].slot = -1; }, "plan.dropped names a token");
  expect_refused([](auto&, auto& p) { p.dropped[0] = {5, 2}; }, "plan.dropped names a slot");
  expect_refused(
      [](auto&, auto& p) {
        p.num_experts = 7;
        p.offsets.push_back(p.offsets.back());
      },
      "plan.num_experts: expected 6, got 7");
  expect_refused([](auto& r, auto&) { r.scores.resize(0, 0); }, "without scores");
}

TEST(FinalWeights, RefuseOtherSizes) {
  const Routing<double> routing = some_routing();
  DispatchPlan plan;
  moe::make_plan(routing, limit_of(2, DropOrder::token_major), plan);
  moe::Matrix<double> weights;
  Routing<double> narrow = routing;
  narrow.weights.resize(40, 2);
  EXPECT_THROW(moe::final_weights(narrow, plan, weights), moe::ShapeError);
  DispatchPlan cut = plan;
  cut.row_of.pop_back();
  EXPECT_THROW(moe::final_weights(routing, cut, weights), moe::ShapeError);
  EXPECT_NO_THROW(moe::final_weights(routing, plan, weights));
}

}  // namespace drops_test
