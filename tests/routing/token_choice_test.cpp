// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/routing/presets.hpp>
#include <moe/routing/token_choice.hpp>

#include "support/reference.hpp"

namespace token_choice_test {

using moe::ExpertIndex;
using moe::Index;
using moe::RoutingRule;

template <class Scalar>
struct Chosen {
  std::vector<ExpertIndex> experts;
  std::vector<Scalar> weights;
};

template <class Scalar>
Chosen<Scalar> choose(const RoutingRule& rule, const std::vector<Scalar>& logits,
                      const std::vector<Scalar>& bias, Index k) {
  const auto n = static_cast<Index>(logits.size());
  moe::TokenChoiceScratch<Scalar> scratch(rule, n);
  std::vector<Scalar> scores(logits.size());
  Chosen<Scalar> chosen{std::vector<ExpertIndex>(static_cast<std::size_t>(k)),
                        std::vector<Scalar>(static_cast<std::size_t>(k))};
  moe::choose_experts(rule, logits.data(), bias.empty() ? nullptr : bias.data(), n, k, scratch,
                      scores.data(), chosen.experts.data(), chosen.weights.data());
  return chosen;
}

/// One row of known results: 8 experts, 2 chosen, weights to six digits.
struct Known {
  const char* name;
  RoutingRule rule;
  std::vector<double> bias;
  std::vector<ExpertIndex> experts;
  std::vector<double> weights;
};

const std::vector<double> logits{.9, -.4, 1.7, .2, -1.1, 1.6, .5, -.2};
const std::vector<double> bias{0, .3, -.2, .1, .6, -.3, 0, .2};
const std::vector<double> negative_bias{-1.5, -1.4, -.9, -1.2, -1.3, -1.6, -1.1, -1.0};
const moe::presets::BiasedSigmoid deepseek_v3{.groups = 4, .groups_kept = 2, .scale = 2.5};

const std::vector<Known> known{
    {"softmax raw", {}, {}, {2, 5}, {.311398, .281764}},
    {"softmax renormalised", moe::presets::mixtral(), {}, {2, 5}, {.524979, .475021}},
    {"softmax of the chosen", moe::presets::jetmoe(), {}, {2, 5}, {.524979, .475021}},
    {"DeepSeek-V2, best of a group",
     moe::presets::deepseek_v2({.groups = 4, .groups_kept = 2, .scale = 16}),
     {},
     {2, 5},
     {4.982366, 4.508231}},
    {"DeepSeek-V3", moe::presets::deepseek_v3(deepseek_v3), bias, {4, 0}, {.649898, 1.850102}},
    {"DeepSeek-V3, negative scores, infinite fill",
     moe::presets::deepseek_v3(deepseek_v3),
     negative_bias,
     {2, 6},
     {1.439949, 1.060051}},
    {"DeepSeek-V3, negative scores, zero fill",
     moe::presets::deepseek_v3_transformers(deepseek_v3),
     negative_bias,
     {0, 1},
     {1.597981, .902019}},
    {"square root of softplus", moe::presets::deepseek_v4(), bias, {2, 4}, {.718277, .281723}},
    {"softmax and bias, raw", moe::presets::longcat_flash(1), bias, {4, 1}, {.018936, .038133}},
    {"softmax and bias, clamped sum",
     moe::presets::ernie4_5_moe(),
     bias,
     {4, 1},
     {.331812, .668188}},
};

TEST(ChooseExperts, GivesTheKnownResults) {
  for (const Known& row : known) {
    const Chosen<double> chosen = choose(row.rule, logits, row.bias, 2);
    EXPECT_EQ(chosen.experts, row.experts) << row.name;
    for (std::size_t k = 0; k < 2; ++k)  // Half a unit of the sixth digit.
      EXPECT_NEAR(chosen.weights[k], row.weights[k], 0.5001e-6) << row.name;
  }
}

TEST(ChooseExperts, OneExpertBySigmoidOfItsLogit) {
  const Chosen<double> chosen = choose(moe::presets::llama4(), logits, {}, 1);
  EXPECT_EQ(chosen.experts, std::vector<ExpertIndex>{2});
  EXPECT_NEAR(chosen.weights[0], .845535, 0.5001e-6);
}

TEST(ChooseExperts, TheThreeFormsOfDeepSeekV2DifferInNormAndScale) {
  const moe::presets::GroupedSoftmax options{.norm_topk_prob = true, .scale = 16};
  const double sum = .311398 + .281764;
  const auto weight = [&](const RoutingRule& rule, Index k) {
    return choose(rule, logits, {}, k).weights[0];
  };
  EXPECT_NEAR(weight(moe::presets::deepseek_v2(options), 2), .311398 / sum, 2e-6);
  EXPECT_NEAR(weight(moe::presets::deepseek_v2_scaled(options), 2), 16 * .311398 / sum, 2e-5);
  EXPECT_NEAR(weight(moe::presets::deepseek_v2_transformers(options), 2), 16 * .311398, 1e-5);
  // A single choice is never renormalised, and then it is scaled.
  EXPECT_NEAR(weight(moe::presets::deepseek_v2(options), 1), 16 * .311398, 1e-5);
}

TEST(ChooseExperts, AfterDropLeavesWeightsRaw) {
  const RoutingRule rule = moe::presets::nllb_moe(false, 0.2);
  const Chosen<double> chosen = choose(rule, logits, {}, 2);
  EXPECT_NEAR(chosen.weights[0], .311398, 0.5001e-6);
  EXPECT_NEAR(choose(moe::presets::nllb_moe(true, 0.2), logits, {}, 2).weights[0], .8 * .524979,
              0.5001e-6);
}

TEST(ChooseExperts, LimitsLeaveSlotsUnused) {
  using Kind = moe::ChoiceLimitKind;
  const auto with = [](Kind kind, double value, Index minimum = 1) {
    return choose(RoutingRule{.limit = {.kind = kind, .value = value, .minimum = minimum},
                              .renormalization = {.kind = moe::Renormalization::sum}},
                  logits, {}, 4);
  };
  // Probabilities of the best four: .311398 .281764 .139920 .093791.
  using Experts = std::vector<ExpertIndex>;
  EXPECT_EQ(with(Kind::none, 0).experts, (Experts{2, 5, 0, 6}));
  EXPECT_EQ(with(Kind::top_p, .3).experts, (Experts{2, -1, -1, -1}));
  EXPECT_EQ(with(Kind::top_p, .32).experts, (Experts{2, 5, -1, -1}));
  EXPECT_EQ(with(Kind::top_p, .74).experts, (Experts{2, 5, 0, 6}));
  EXPECT_EQ(with(Kind::top_p, 2).experts, (Experts{2, 5, 0, 6}));
  EXPECT_EQ(with(Kind::threshold, .13).experts, (Experts{2, 5, 0, -1}));
  EXPECT_EQ(with(Kind::threshold, .9).experts, (Experts{2, -1, -1, -1}));
  EXPECT_EQ(with(Kind::threshold, .9, 0).experts, (Experts{-1, -1, -1, -1}));
  EXPECT_EQ(with(Kind::threshold, .9, 3).experts, (Experts{2, 5, 0, -1}));
  EXPECT_EQ(with(Kind::relative_threshold, .9).experts, (Experts{2, 5, -1, -1}));
  EXPECT_EQ(with(Kind::relative_threshold, .4).experts, (Experts{2, 5, 0, -1}));
  // Renormalisation is over those that are used.
  const Chosen<double> two = with(Kind::top_p, .32);
  EXPECT_NEAR(two.weights[0], .524979, 1e-6);
  EXPECT_NEAR(two.weights[1], .475021, 1e-6);
  EXPECT_EQ(two.weights[2], 0);
}

TEST(ChooseExperts, AWeightlessExpertGivesItsShareToTheOthers) {
  // The last expert is the zero expert of MoE++.
  std::vector<double> z = logits;
  z[7] = 5;
  const Chosen<double> chosen = choose(moe::presets::moe_plus_plus(), z, {}, 2);
  EXPECT_EQ(chosen.experts, (std::vector<ExpertIndex>{7, 2}));
  EXPECT_EQ(chosen.weights, (std::vector<double>{0, 1}));
}

template <class Scalar>
class ChooseExpertsOf : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ChooseExpertsOf, Scalars);

TYPED_TEST(ChooseExpertsOf, AgreesWithTheReference) {
  using moe::Renormalization;
  std::vector<RoutingRule> rules;
  for (const auto score : {moe::ScoreFunction::softmax, moe::ScoreFunction::sigmoid,
                           moe::ScoreFunction::sqrt_softplus})
    for (const auto kind : {Renormalization::none, Renormalization::sum,
                            Renormalization::clamped_sum, Renormalization::p_norm})
      for (const Index kept : {2, 4})
        rules.push_back({.score = score,
                         .groups = {.count = 4, .kept = kept},
                         .renormalization = {.kind = kind, .epsilon = 0.25, .p = 2},
                         .scale = 1.5});
  std::uint64_t position = 0;
  for (const RoutingRule& rule : rules) {
    for (const Index k : {1, 2, 5}) {
      for (int repetition = 0; repetition < 20; ++repetition) {
        std::vector<TypeParam> z;
        std::vector<TypeParam> b;
        // Steps of 1/64 leave no near ties that rounding could turn.
        for (int e = 0; e < 16; ++e) {
          z.push_back(static_cast<TypeParam>(
              std::floor(moe::detail::uniform(8, position++) * 256) / 64 - 2));
          b.push_back(static_cast<TypeParam>(
              std::floor(moe::detail::uniform(9, position++) * 64) / 64 - 0.5));
        }
        const reference::Choice expected =
            reference::choose(rule, {z.begin(), z.end()}, {b.begin(), b.end()}, k);
        const Chosen<TypeParam> chosen = choose(rule, z, b, k);
        EXPECT_EQ(std::vector<Index>(chosen.experts.begin(), chosen.experts.end()),
                  expected.experts);
        for (std::size_t i = 0; i < expected.weights.size(); ++i)
          // A few exponentials and divisions, and sums of at most 16 positive terms.
          EXPECT_NEAR(static_cast<double>(chosen.weights[i]), expected.weights[i],
                      40 * std::numeric_limits<TypeParam>::epsilon() * expected.weights[i]);
      }
    }
  }
}

TYPED_TEST(ChooseExpertsOf, NanNeverWinsAndWeighsNothing) {
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  const TypeParam infinity = std::numeric_limits<TypeParam>::infinity();
  for (const Known& row : known) {
    const auto all = choose<TypeParam>(row.rule, std::vector<TypeParam>(8, nan), {}, 2);
    EXPECT_EQ(all.experts, (std::vector<ExpertIndex>{0, 1})) << row.name;
    EXPECT_EQ(all.weights, (std::vector<TypeParam>{0, 0})) << row.name;
  }
  const auto some = choose<TypeParam>({}, {nan, -infinity, nan, -5}, {}, 3);
  EXPECT_EQ(some.experts, (std::vector<ExpertIndex>{3, 1, 0}));
  EXPECT_EQ(some.weights, (std::vector<TypeParam>{1, 0, 0}));
  const auto biased = choose<TypeParam>(moe::presets::deepseek_v3(), {nan, -1, -2}, {100, 0, 0}, 2);
  EXPECT_EQ(biased.experts, (std::vector<ExpertIndex>{1, 2}));
}

TYPED_TEST(ChooseExpertsOf, NanWinsAgainstWhatCannotBeChosenOnly) {
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  RoutingRule rule = moe::presets::deepseek_v3({.groups = 2, .groups_kept = 1});
  rule.groups.score = moe::GroupScore::maximum;
  using Experts = std::vector<ExpertIndex>;
  for (const auto& [z, experts] :
       {std::pair{std::vector<TypeParam>{-1, -2, 5, nan}, Experts{2, 3}},
        std::pair{std::vector<TypeParam>{5, nan, -1, -2}, Experts{0, 1}}}) {
    const auto chosen = choose<TypeParam>(rule, z, {}, 2);
    EXPECT_EQ(chosen.experts, experts);
    EXPECT_EQ(chosen.weights, (std::vector<TypeParam>{1, 0}));
  }
  rule.groups.fill = moe::GroupFill::zero;
  EXPECT_EQ(choose<TypeParam>(rule, {-1, -2, 5, nan}, {}, 2).experts, (Experts{2, 0}));
}

TYPED_TEST(ChooseExpertsOf, InfiniteLogitsGiveFiniteWeights) {
  const TypeParam infinity = std::numeric_limits<TypeParam>::infinity();
  for (const Known& row : known) {
    for (const auto& z :
         {std::vector<TypeParam>{infinity, 1, 2, infinity, 0, 0, 0, 0},
          std::vector<TypeParam>(8, -infinity), std::vector<TypeParam>(8, infinity)}) {
      for (const TypeParam weight : choose<TypeParam>(row.rule, z, {}, 2).weights)
        EXPECT_TRUE(std::isfinite(weight)) << row.name;
    }
  }
  const auto shared = choose<TypeParam>(moe::presets::mixtral(), {infinity, 1, infinity}, {}, 2);
  EXPECT_EQ(shared.experts, (std::vector<ExpertIndex>{0, 2}));
  EXPECT_EQ(shared.weights, (std::vector<TypeParam>{TypeParam(0.5), TypeParam(0.5)}));
}

TYPED_TEST(ChooseExpertsOf, ASingleChoiceIsRenormalisedOnlyWhereTheRuleSays) {
  const std::vector<TypeParam> z{0, 0};
  RoutingRule rule = moe::presets::mixtral();
  EXPECT_EQ(choose(rule, z, {}, 1).weights[0], 1);
  rule.renormalization.at_top_1 = false;
  EXPECT_EQ(choose(rule, z, {}, 1).weights[0], TypeParam(0.5));
}

TYPED_TEST(ChooseExpertsOf, EveryWeightSourceAndGroupRuleAgreesWithTheReference) {
  using moe::WeightSource;
  std::uint64_t position = 0;
  for (const auto source : {WeightSource::scores, WeightSource::softmax_of_chosen,
                            WeightSource::sigmoid_of_chosen, WeightSource::one}) {
    for (const auto function : {moe::ScoreFunction::sigmoid, moe::ScoreFunction::identity}) {
      for (const auto group_score : {moe::GroupScore::maximum, moe::GroupScore::top_sum}) {
        for (const auto fill : {moe::GroupFill::negative_infinity, moe::GroupFill::zero}) {
          const RoutingRule rule{
              .score = function,
              .groups = {.count = 4, .kept = 3, .score = group_score, .top = 3, .fill = fill},
              .weights_from = source,
              .scale = 2};
          for (int repetition = 0; repetition < 20; ++repetition) {
            std::vector<TypeParam> z;
            std::vector<TypeParam> b;
            for (int e = 0; e < 16; ++e) {  // In steps of 1/64, as above.
              z.push_back(static_cast<TypeParam>(
                  std::floor(moe::detail::uniform(15, position++) * 256) / 64 - 2));
              b.push_back(static_cast<TypeParam>(
                  std::floor(moe::detail::uniform(16, position++) * 64) / 64 - 1));
            }
            const reference::Choice expected =
                reference::choose(rule, {z.begin(), z.end()}, {b.begin(), b.end()}, 6);
            const Chosen<TypeParam> chosen = choose(rule, z, b, 6);
            EXPECT_EQ(std::vector<Index>(chosen.experts.begin(), chosen.experts.end()),
                      expected.experts);
            for (std::size_t i = 0; i < expected.weights.size(); ++i)
              // An exponential of at most 4 and a sum of 6 positive terms, as above.
              EXPECT_NEAR(
                  static_cast<double>(chosen.weights[i]), expected.weights[i],
                  40 * std::numeric_limits<TypeParam>::epsilon() * std::fabs(expected.weights[i]));
          }
        }
      }
    }
  }
}

TYPED_TEST(ChooseExpertsOf, ADivisorOfZeroLeavesWeightsOfZero) {
  using moe::Renormalization;
  for (const auto kind :
       {Renormalization::sum, Renormalization::clamped_sum, Renormalization::p_norm}) {
    const RoutingRule rule{.score = moe::ScoreFunction::identity,
                           .renormalization = {.kind = kind}};
    const auto chosen = choose<TypeParam>(rule, {0, 0, -1}, {}, 2);
    EXPECT_EQ(chosen.experts, (std::vector<ExpertIndex>{0, 1}));
    EXPECT_EQ(chosen.weights, (std::vector<TypeParam>{0, 0}));
  }
}

TEST(GroupScore, OfTheKnownLogits) {
  // Four groups of two: the best probability, and the sum of the two biased sigmoids.
  const double best[] = {.139920, .311398, .281764, .093791};
  const double sums[] = {1.412262, 1.295369, 1.381758, 1.272625};
  std::vector<double> score(8);
  moe::score_logits(moe::ScoreFunction::softmax, logits.data(), 8, score.data());
  const moe::GroupRule maximum{.count = 4, .kept = 2, .score = moe::GroupScore::maximum};
  for (Index g = 0; g < 4; ++g)
    EXPECT_NEAR(moe::detail::group_score(maximum, score.data() + 2 * g, 2), best[g], 0.5001e-6);
  moe::score_logits(moe::ScoreFunction::sigmoid, logits.data(), 8, score.data());
  for (std::size_t e = 0; e < 8; ++e) score[e] += bias[e];
  const moe::GroupRule top_sum{.count = 4, .kept = 2, .score = moe::GroupScore::top_sum, .top = 2};
  for (Index g = 0; g < 4; ++g)
    EXPECT_NEAR(moe::detail::group_score(top_sum, score.data() + 2 * g, 2), sums[g], 0.5001e-6);
}

}  // namespace token_choice_test
