// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <moe/routing/presets.hpp>

namespace {

using moe::Renormalization;

TEST(Presets, DifferWhereTheFamiliesDiffer) {
  namespace presets = moe::presets;
  EXPECT_EQ(presets::mixtral().score, moe::ScoreFunction::softmax);
  EXPECT_EQ(presets::mixtral().renormalization.kind, Renormalization::sum);
  EXPECT_EQ(presets::mixtral().renormalization.epsilon, 0);
  EXPECT_EQ(presets::qwen3_moe().renormalization.kind, Renormalization::sum);
  EXPECT_EQ(presets::qwen3_moe(false).renormalization.kind, Renormalization::none);
  EXPECT_EQ(presets::olmoe().renormalization.kind, Renormalization::none);
  EXPECT_EQ(presets::olmoe(true).renormalization.kind, Renormalization::sum);

  const presets::BiasedSigmoid options{.groups = 8, .groups_kept = 4, .scale = 2.5};
  const moe::RoutingRule own = presets::deepseek_v3(options);
  EXPECT_EQ(own.score, moe::ScoreFunction::sigmoid);
  EXPECT_EQ(own.groups.fill, moe::GroupFill::negative_infinity);
  EXPECT_EQ(own.renormalization.epsilon, 0);
  EXPECT_EQ(own.scale, 2.5);
  EXPECT_EQ(own.groups.count, 8);
  EXPECT_EQ(own.groups.kept, 4);
  EXPECT_EQ(own.groups.top, 2);
  for (const moe::RoutingRule& rule :
       {presets::deepseek_v3_transformers(options), presets::glm4_moe(options)}) {
    EXPECT_EQ(rule.groups.fill, moe::GroupFill::zero);
    EXPECT_EQ(rule.renormalization.epsilon, 1e-20);
    EXPECT_EQ(rule.scale, 2.5);
  }
  EXPECT_EQ(presets::deepseek_v3({.norm_topk_prob = false}).renormalization.kind,
            Renormalization::none);
}

TEST(Presets, PassTheCheckOfTheirPublishedSizes) {
  namespace presets = moe::presets;
  EXPECT_NO_THROW(moe::detail::check_rule("f", presets::mixtral(), 8, 2));
  EXPECT_NO_THROW(moe::detail::check_rule("f", presets::qwen3_moe(), 128, 8));
  EXPECT_NO_THROW(moe::detail::check_rule("f", presets::olmoe(), 64, 8));
  EXPECT_NO_THROW(moe::detail::check_rule("f", presets::glm4_moe({.scale = 2.5}), 160, 8));
  EXPECT_NO_THROW(moe::detail::check_rule(
      "f", presets::deepseek_v3({.groups = 8, .groups_kept = 4, .scale = 2.5}), 256, 8));
}

}  // namespace
