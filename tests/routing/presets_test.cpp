// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routing/presets.hpp>
#include <moe/routing/token_choice.hpp>

namespace presets_test {

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

TEST(Presets, DeepSeekV2ScoresAGroupByItsBestAndV3ByTheSumOfTwo) {
  namespace presets = moe::presets;
  // The best expert is in the first group, the two best together are the second.
  const double logits[] = {3, -9, 2.8, 2.7};
  const auto first_of = [&](const moe::RoutingRule& rule) {
    moe::TokenChoiceScratch<double> scratch(rule, 4);
    double scores[4];
    moe::ExpertIndex expert = moe::no_expert;
    double weight = 0;
    moe::choose_experts<double>(rule, logits, nullptr, 4, 1, scratch, scores, &expert, &weight);
    return expert;
  };
  const presets::GroupedSoftmax softmax{.groups = 2, .groups_kept = 1};
  EXPECT_EQ(first_of(presets::deepseek_v2(softmax)), 0);
  EXPECT_EQ(first_of(presets::deepseek_v2_scaled(softmax)), 0);
  EXPECT_EQ(first_of(presets::deepseek_v2_transformers(softmax)), 0);
  const presets::BiasedSigmoid sigmoid{.groups = 2, .groups_kept = 1};
  EXPECT_EQ(first_of(presets::deepseek_v3(sigmoid)), 2);
  EXPECT_EQ(first_of(presets::deepseek_v3_transformers(sigmoid)), 2);
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

/// Experts and weights of one token by its logits.
struct Choice {
  std::vector<moe::ExpertIndex> experts;
  std::vector<double> weights;
};

Choice choose(const moe::RoutingRule& rule, const std::vector<double>& logits, moe::Index top_k,
              const std::vector<double>& bias = {}) {
  const auto num_experts = static_cast<moe::Index>(logits.size());
  moe::TokenChoiceScratch<double> scratch;
  scratch.resize(rule, num_experts);
  std::vector<double> scores(logits.size());
  Choice choice{std::vector<moe::ExpertIndex>(static_cast<std::size_t>(top_k)),
                std::vector<double>(static_cast<std::size_t>(top_k))};
  moe::choose_experts(rule, logits.data(), bias.empty() ? nullptr : bias.data(), num_experts, top_k,
                      scratch, scores.data(), choice.experts.data(), choice.weights.data());
  return choice;
}

/// Softmax gives 1/10, 4/10, 3/10, 2/10.
const std::vector<double> tenths{std::log(1.0), std::log(4.0), std::log(3.0), std::log(2.0)};
/// Sigmoid gives 1/4, 3/4, 1/2, 1/5.
const std::vector<double> quarters{std::log(1.0 / 3), std::log(3.0), 0, std::log(.25)};

void expect_choice(const Choice& choice, const std::vector<moe::ExpertIndex>& experts,
                   const std::vector<double>& weights) {
  EXPECT_EQ(choice.experts, experts);
  for (std::size_t k = 0; k < weights.size(); ++k)
    EXPECT_NEAR(choice.weights[k], weights[k], 1e-15);
}

TEST(Presets, GrokStMoeAndVMoeKeepTheProbabilities) {
  namespace presets = moe::presets;
  for (const moe::RoutingRule& rule : {presets::grok_1(), presets::st_moe(), presets::v_moe()})
    expect_choice(choose(rule, tenths, 2), {1, 2}, {.4, .3});
}

TEST(Presets, GShardAndGlamDivideByTheSum) {
  for (const moe::RoutingRule& rule : {moe::presets::gshard(), moe::presets::glam()})
    expect_choice(choose(rule, tenths, 2), {1, 2}, {.4 / (.7 + 1e-9), .3 / (.7 + 1e-9)});
}

TEST(Presets, KimiScalesAndMiniMaxDoesNot) {
  const std::vector<double> bias{1, 0, 0, 0};  // Chooses, but does not weigh.
  expect_choice(choose(moe::presets::minimax_m2(), quarters, 2, bias), {0, 1}, {.25, .75});
  expect_choice(choose(moe::presets::kimi_k2(), quarters, 2, bias), {0, 1},
                {2.827 * .25, 2.827 * .75});
}

}  // namespace presets_test
