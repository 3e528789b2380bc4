// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routing/hash_router.hpp>
#include <moe/routing/presets.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/layers.hpp"

namespace hash_router_test {

using moe::ExpertIndex;
using moe::Index;
using moe::Matrix;
using moe::Routing;
using test_support::random_matrix;

TEST(HashRouter, LooksTheExpertUp) {
  const Matrix<ExpertIndex> table = (Matrix<ExpertIndex>(3, 2) << 0, 3, 2, 1, 3, 2).finished();
  const moe::HashRouter<float> router(6, 4, table);
  const std::vector<std::int32_t> ids{2, 0, 2, 1};
  Routing<float> routing;
  router.route(random_matrix<float>(4, 6, 1), {.token_ids = ids}, routing);
  for (Index t = 0; t < 4; ++t)
    EXPECT_EQ(routing.experts.row(t), table.row(ids[static_cast<std::size_t>(t)]));
  EXPECT_EQ(routing.weights, Matrix<float>::Constant(4, 2, .5F));
  EXPECT_EQ(routing.scores.size(), 0);
}

TEST(HashRouter, CanWeighByScores) {
  const auto weight = random_matrix<double>(4, 6, 2);
  const Matrix<ExpertIndex> table = (Matrix<ExpertIndex>(2, 2) << 0, 3, 2, 1).finished();
  const moe::HashRouter<double> router(weight, moe::presets::deepseek_v4(1.5), table);
  const auto x = random_matrix<double>(3, 6, 3);
  const std::vector<std::int32_t> ids{1, 0, 1};
  Routing<double> routing;
  router.route(x, {.token_ids = ids}, routing);
  for (Index t = 0; t < 3; ++t) {
    double sum = 0;
    for (Index k = 0; k < 2; ++k) sum += routing.scores(t, routing.experts(t, k));
    for (Index k = 0; k < 2; ++k)
      EXPECT_NEAR(routing.weights(t, k), 1.5 * routing.scores(t, routing.experts(t, k)) / sum,
                  1e-15);
  }
  Routing<double> full;
  moe::TopKRouter<double>(
      {.d_model = 6, .num_experts = 4, .top_k = 2, .rule = moe::presets::deepseek_v4(1.5)},
      {.weight = weight})
      .route(x, {}, full);
  EXPECT_EQ(routing.scores, full.scores);
}

TEST(HashTable, RandomRowsHoldDistinctExperts) {
  std::mt19937_64 rng(1);
  const auto table = moe::random_hash_table(200, 7, 3, rng);
  std::vector<int> load(7, 0);
  for (Index v = 0; v < 200; ++v) {
    std::set<ExpertIndex> row;
    for (Index k = 0; k < 3; ++k) {
      row.insert(table(v, k));
      ++load[static_cast<std::size_t>(table(v, k))];
    }
    EXPECT_EQ(row.size(), 3U);
    EXPECT_GE(*row.begin(), 0);
    EXPECT_LT(*row.rbegin(), 7);
  }
  EXPECT_GT(*std::min_element(load.begin(), load.end()), 50);  // 85.7 expected, deviation 7
}

TEST(HashTable, BalancedByCounts) {
  const std::vector<Index> counts{8, 1, 1, 7, 2, 1};
  const auto table = moe::balanced_hash_table(counts, 2);
  EXPECT_NE(table(0, 0), table(3, 0));
  std::vector<Index> load(2, 0);
  for (Index v = 0; v < 6; ++v)
    load[static_cast<std::size_t>(table(v, 0))] += counts[static_cast<std::size_t>(v)];
  EXPECT_EQ(load, (std::vector<Index>{10, 10}));
}

TEST(HashRouter, RefusesWhatCannotWork) {
  Matrix<ExpertIndex> table = (Matrix<ExpertIndex>(2, 1) << 0, 4).finished();
  EXPECT_THROW(moe::HashRouter<float>(6, 4, table), std::invalid_argument);
  table(1, 0) = 3;
  const moe::HashRouter<float> router(6, 4, table);
  Routing<float> routing;
  const auto x = random_matrix<float>(2, 6, 1);
  EXPECT_THROW(router.route(x, {}, routing), moe::ShapeError);
  const std::vector<std::int32_t> ids{0, 2};
  EXPECT_THROW(router.route(x, {.token_ids = ids}, routing), std::invalid_argument);
  std::mt19937_64 rng(1);
  EXPECT_THROW(moe::random_hash_table(5, 2, 3, rng), std::invalid_argument);
  // A rule of what a table has no place for.
  const auto weight = random_matrix<float>(4, 6, 2);
  EXPECT_NO_THROW(moe::HashRouter<float>(weight, {}, table));
  for (const moe::RoutingRule& rule :
       {moe::RoutingRule{.logits = {.form = moe::LogitForm::cosine}},
        moe::RoutingRule{.logits = {.standard_deviation = 1}},
        moe::RoutingRule{.logits = {.noise = 1}},
        moe::RoutingRule{.limit = {.kind = moe::ChoiceLimitKind::top_p, .value = .5}},
        moe::RoutingRule{.jitter = {.target = moe::JitterTarget::router_input, .epsilon = .1}}})
    EXPECT_THROW(moe::HashRouter<float>(weight, rule, table), std::invalid_argument);
}

TEST(HashRouter, LeavesItToTheDropToRenormaliseWhereTheRuleSaysSo) {
  const moe::RoutingRule rule{
      .renormalization = {.kind = moe::Renormalization::sum, .after_drop = true}, .scale = 3};
  const moe::HashRouter<double> router(random_matrix<double>(4, 6, 1), rule,
                                       (moe::Matrix<moe::ExpertIndex>(1, 2) << 0, 2).finished());
  Routing<double> routing;
  const std::vector<std::int32_t> ids{0};
  router.route(random_matrix<double>(1, 6, 2), {.token_ids = ids}, routing);
  EXPECT_TRUE(routing.renormalization.after_drop);
  EXPECT_EQ(routing.scale_after_drop, 3);
}

TEST(HashRouter, RefusesAnExpertTwiceInARowAndNegativeCounts) {
  moe::Matrix<moe::ExpertIndex> table(2, 2);
  table << 0, 1, 2, 2;
  EXPECT_THROW(moe::HashRouter<double>(4, 3, table), std::invalid_argument);
  table << 0, 1, 0, 1;
  EXPECT_NO_THROW(moe::HashRouter<double>(4, 3, table));
  const std::vector<moe::Index> counts{3, -1};
  EXPECT_THROW(moe::balanced_hash_table(counts, 2), std::invalid_argument);
}

}  // namespace hash_router_test
