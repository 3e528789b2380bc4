// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The gradient of a rule's weights against central differences in double, with the choice held.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/core/renormalization.hpp>
#include <moe/routing/presets.hpp>
#include <moe/routing/rule_gradient.hpp>
#include <moe/routing/scores.hpp>
#include <moe/routing/token_choice.hpp>

#include "support/differences.hpp"

namespace rule_gradient_test {

using moe::ExpertIndex;
using moe::Index;
using moe::Renormalization;
using moe::RoutingRule;
using moe::ScoreFunction;
using moe::WeightSource;

constexpr Index experts = 8;

/// One token under a rule, with its choice held while the logits move.
struct Token {
  RoutingRule rule;
  Index top_k;
  std::vector<double> logits = std::vector<double>(experts);
  std::vector<double> upstream = std::vector<double>(experts);  // dL / dw of each slot
  std::vector<ExpertIndex> chosen = std::vector<ExpertIndex>(experts);
  std::vector<double> scores = std::vector<double>(experts);
  std::vector<double> weights = std::vector<double>(experts);
  std::array<bool, experts> kept{};

  Token(const RoutingRule& its_rule, Index choices, std::uint64_t seed)
      : rule(its_rule), top_k(choices) {
    kept.fill(true);
    moe::detail::fill_uniform(logits.data(), experts, 1, seed);
    moe::detail::fill_uniform(upstream.data(), experts, 1, seed + 1);
    moe::TokenChoiceScratch<double> scratch(rule, experts);
    moe::choose_experts<double>(rule, logits.data(), nullptr, experts, top_k, scratch,
                                scores.data(), chosen.data(), weights.data());
  }

  /// sum of upstream times weight, as the layer would have the weights.
  double loss() {
    moe::score_logits(rule.score, logits.data(), experts, scores.data());
    moe::weigh_experts(rule, logits.data(), scores.data(), experts, chosen.data(), top_k,
                       weights.data());
    for (Index k = 0; k < top_k; ++k)
      if (!kept[static_cast<std::size_t>(k)]) weights[static_cast<std::size_t>(k)] = 0;
    double scale = 1;
    if (rule.renormalization.after_drop) {
      moe::detail::renormalize(rule.renormalization, top_k, weights.data(), top_k);
      scale = rule.scale;
    }
    double sum = 0;
    for (std::size_t k = 0; k < static_cast<std::size_t>(top_k); ++k)
      sum += scale * weights[k] * upstream[k];
    return sum;
  }

  std::vector<double> gradient(bool all_kept) {
    loss();
    moe::RuleGradientScratch<double> scratch(top_k);
    std::vector<double> result(experts, 1.0);  // The gradient is added.
    moe::add_rule_gradient(rule, logits.data(), scores.data(), experts, chosen.data(), top_k,
                           upstream.data(), all_kept ? nullptr : kept.data(), scratch,
                           result.data());
    for (double& value : result) value -= 1;
    return result;
  }

  void expect_slopes(const std::string& what, bool all_kept = true) {
    const std::vector<double> analytic = gradient(all_kept);
    test_support::expect_slopes(what, logits.data(), analytic.data(), logits.size(),
                                [&] { return loss(); });
  }
};

std::string text_of(const RoutingRule& rule, Index top_k) {
  return "score " + std::to_string(static_cast<int>(rule.score)) + ", weights from " +
         std::to_string(static_cast<int>(rule.weights_from)) + ", renormalization " +
         std::to_string(static_cast<int>(rule.renormalization.kind)) + ", top " +
         std::to_string(top_k);
}

std::vector<RoutingRule> all_rules() {
  const moe::RenormalizationRule renormalizations[] = {
      {},
      {.kind = Renormalization::sum},
      {.kind = Renormalization::sum, .epsilon = 0.1},
      {.kind = Renormalization::sum, .at_top_1 = false},
      {.kind = Renormalization::clamped_sum, .epsilon = 1e-3},
      {.kind = Renormalization::clamped_sum, .epsilon = 50},
      {.kind = Renormalization::p_norm, .p = 1},
      {.kind = Renormalization::p_norm, .p = 2},
      {.kind = Renormalization::p_norm, .p = 3.5},
      {.kind = Renormalization::sum, .after_drop = true},
      {.kind = Renormalization::p_norm, .p = 2, .after_drop = true},
      {.kind = Renormalization::none, .after_drop = true},
  };
  std::vector<RoutingRule> rules;
  for (const ScoreFunction score : {ScoreFunction::softmax, ScoreFunction::sigmoid,
                                    ScoreFunction::sqrt_softplus, ScoreFunction::identity})
    for (const WeightSource source : {WeightSource::scores, WeightSource::softmax_of_chosen,
                                      WeightSource::sigmoid_of_chosen, WeightSource::one})
      for (const moe::RenormalizationRule& renormalization : renormalizations)
        for (const bool scales : {true, false})
          if (scales || !renormalization.after_drop)
            rules.push_back({.score = score,
                             .weights_from = source,
                             .renormalization = renormalization,
                             .scale = 2.5,
                             .scales_renormalized = scales});
  return rules;
}

TEST(RuleGradient, IsThatOfEveryRule) {
  for (const RoutingRule& rule : all_rules())
    for (const Index top_k : {1, 3, 8}) Token(rule, top_k, 17).expect_slopes(text_of(rule, top_k));
}

TEST(RuleGradient, OfChoicesThatWereDropped) {
  for (const RoutingRule& rule : all_rules()) {
    Token token(rule, 4, 3);
    token.kept[0] = token.kept[2] = false;
    token.expect_slopes(text_of(rule, 4), false);
    token.kept.fill(false);
    token.expect_slopes(text_of(rule, 4) + ", all dropped", false);
    for (const double value : token.gradient(false)) EXPECT_EQ(value, 0);
  }
}

TEST(RuleGradient, OfExpertsWithoutWeight) {
  for (RoutingRule rule : all_rules()) {
    rule.weightless_experts = 3;
    for (const Index top_k : {2, 8}) Token(rule, top_k, 29).expect_slopes(text_of(rule, top_k));
  }
}

TEST(RuleGradient, OfTokensThatUseFewerExperts) {
  for (RoutingRule rule : all_rules()) {
    if (rule.score == ScoreFunction::identity) continue;
    rule.limit = {.kind = moe::ChoiceLimitKind::relative_threshold, .value = 0.5};
    Token(rule, 6, 11).expect_slopes(text_of(rule, 6));
  }
}

TEST(RuleGradient, IsAlmostZeroForASingleRenormalizedChoice) {
  Token token({.renormalization = {.kind = Renormalization::sum}}, 1, 5);
  for (const double value : token.gradient(true)) EXPECT_NEAR(value, 0, 1e-15);
}

TEST(RuleGradient, PassesNothingThroughANaN) {
  for (const RoutingRule& rule : all_rules()) {
    Token token(rule, 3, 7);
    const auto first = static_cast<std::size_t>(token.chosen[0]);
    token.logits[first] = std::numeric_limits<double>::quiet_NaN();
    for (const double value : token.gradient(true))
      EXPECT_TRUE(std::isfinite(value)) << text_of(rule, 3);
  }
}

}  // namespace rule_gradient_test
