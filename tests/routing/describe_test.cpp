// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <string>

#include <gtest/gtest.h>

#include <moe/routing/describe.hpp>
#include <moe/routing/presets.hpp>

namespace describe_test {

namespace presets = moe::presets;
using moe::describe;

TEST(Describe, TellsTheFormsOfDeepSeekV2Apart) {
  const presets::GroupedSoftmax plain{.groups = 8, .groups_kept = 3, .scale = 16};
  const presets::GroupedSoftmax norm{
      .groups = 8, .groups_kept = 3, .norm_topk_prob = true, .scale = 16};
  const std::string groups =
      "softmax; K best in 3 of 8 groups (by their best), others count as 0; ";
  EXPECT_EQ(describe(presets::deepseek_v2(plain)), groups + "as they are; times 16");
  EXPECT_EQ(describe(presets::deepseek_v2(norm)),
            groups + "divided by sum + 1e-20 for K > 1, else times 16");
  EXPECT_EQ(describe(presets::deepseek_v2_scaled(norm)),
            groups + "divided by sum + 1e-20 for K > 1; times 16");
  EXPECT_EQ(describe(presets::deepseek_v2_transformers(norm)), groups + "as they are; times 16");
}

TEST(Describe, IsReadableForEverySwitch) {
  EXPECT_EQ(describe({}), "softmax; K best; as they are");
  EXPECT_EQ(describe({.weightless_experts = 1}), "softmax; K best; as they are, 0 for the last 1");
  EXPECT_EQ(
      describe({.weightless_experts = 2, .renormalization = {.kind = moe::Renormalization::sum}}),
      "softmax; K best; 0 for the last 2, then divided by their sum");
  EXPECT_EQ(describe({.score = moe::ScoreFunction::identity,
                      .weights_from = moe::WeightSource::sigmoid_of_chosen,
                      .renormalization = {.kind = moe::Renormalization::p_norm, .p = 2}}),
            "logits; K best; sigmoid of the chosen, divided by their 2-norm");
  EXPECT_EQ(
      describe({.limit = {.kind = moe::ChoiceLimitKind::threshold, .value = .5, .minimum = 2}}),
      "softmax; K best, those above 0.5, at least 2; as they are");
}

}  // namespace describe_test
