// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/conventions.hpp>
#include <moe/losses/device_balance.hpp>
#include <moe/losses/metrics.hpp>
#include <moe/routing/plan.hpp>

#include "support/routings.hpp"

namespace conventions_test {

using moe::Index;
using moe::losses::BalanceScale;
using test_support::balanced;
using test_support::known_routing;
using test_support::random_logits;
using test_support::route;
namespace losses = moe::losses;

TEST(Conventions, EachHasItsKnownValue) {
  const auto routing = known_routing<double>();
  const double half = 0.5001e-6;  // Half a unit of the sixth decimal.
  EXPECT_NEAR(losses::switch_transformer(routing), 1.66635, 10 * half);
  EXPECT_NEAR(losses::gshard_paper(routing), .104147, half);
  EXPECT_NEAR(losses::gshard_code(routing), 1.66635, 10 * half);
  EXPECT_NEAR(losses::transformers(routing), 2.471348, half);
  EXPECT_NEAR(losses::megatron(routing), 1.235674, half);
  EXPECT_NEAR(losses::megablocks(routing), 1.235674, half);
  EXPECT_NEAR(losses::deepseek_expert(routing), 1.235674, half);
  EXPECT_NEAR(losses::tutel(routing), 1.66635, 10 * half);
  EXPECT_NEAR(losses::deepspeed(routing), 1.66635, 10 * half);
  EXPECT_NEAR(losses::flaxformer(routing, 4), 2.471348, half);
  EXPECT_NEAR(losses::deepseek_sequence(routing, 4), 1.235674, half);
  EXPECT_NEAR(moe::metrics::max_violation(moe::metrics::expert_load(routing)), .5, 1e-15);
}

TEST(Conventions, EachIsAtBalanceWhatItSays) {
  for (const Index top_k : {1, 2, 3}) {
    const auto routing = balanced<double>(4, top_k);
    const auto k = static_cast<double>(top_k);
    const double eps = 1e-14;
    EXPECT_NEAR(losses::switch_transformer(routing), 1, eps);
    EXPECT_NEAR(losses::gshard_paper(routing), 1.0 / 16, eps);
    EXPECT_NEAR(losses::gshard_code(routing), 1, eps);
    EXPECT_NEAR(losses::transformers(routing), k, eps);
    EXPECT_NEAR(losses::flaxformer(routing, 4), k, eps);
    EXPECT_NEAR(losses::megatron(routing), 1, eps);
    EXPECT_NEAR(losses::megablocks(routing), 1, eps);
    EXPECT_NEAR(losses::deepspeed(routing), 1, eps);
    EXPECT_NEAR(losses::tutel(routing), 1, eps);
    EXPECT_NEAR(losses::deepseek_expert(routing), 1, eps);
    EXPECT_NEAR(losses::deepseek_sequence(routing, 4), 1, eps);
    EXPECT_NEAR(losses::device_balance(routing, 2), 1, eps);
    EXPECT_NEAR(losses::device_balance(routing, 4), 1, eps);
    EXPECT_NEAR(losses::tutel_load_importance(routing, moe::Vector<double>::Ones(4)), 0, eps);
  }
  // One expert to a device, and every token to two of them.
  EXPECT_NEAR(losses::communication_balance(balanced<double>(4, 2), 4, 2), 1, 1e-14);
}

TEST(Conventions, TutelsImportanceIsThatOfAllScores) {
  // Equal scores, but only two of four experts chosen: importance is balanced, the load is not.
  moe::Matrix<double> logits(2, 4);
  logits << 1, 1, 1, 1, 2, 2, 2, 2;
  auto routing = route<double>(logits, 1);
  routing.experts << 0, 1;
  const moe::Vector<double> even = moe::Vector<double>::Ones(4);
  EXPECT_NEAR(losses::tutel_load_importance(routing, even), 0, 1e-15);
  const moe::Vector<double> load = (moe::Vector<double>(4) << 3, 1, 0, 0).finished();
  // Mean 1, squares 4 + 0 + 1 + 1 over 3, halved.
  EXPECT_NEAR(losses::tutel_load_importance(routing, load), 1, 1e-9);

  const auto all = known_routing<double>();
  const std::vector<std::uint8_t> mask{1, 1, 0, 1};
  const auto real = test_support::without_padding(all, mask);
  EXPECT_EQ(losses::tutel_load_importance(all, load, mask),
            losses::tutel_load_importance(real, load));
  EXPECT_NE(losses::tutel_load_importance(all, load), losses::tutel_load_importance(real, load));
}

TEST(Conventions, FastmoesSwitchCountsWhatItsCapacityKept) {
  moe::Matrix<double> logits(3, 2);
  logits << 1, 0, 2, 0, 0, 1;
  const auto routing = route<double>(logits, 1);  // Experts 0, 0, 1.
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  EXPECT_NEAR(losses::fastmoe_switch(routing, plan), losses::switch_transformer(routing), 1e-15);
  moe::make_plan(routing, {.formula = moe::CapacityFormula::fixed, .fixed_rows = 1}, plan);
  ASSERT_EQ(plan.dropped.size(), 1U);
  const double p0 = routing.scores.col(0).sum();
  const double p1 = routing.scores.col(1).sum();
  EXPECT_NEAR(losses::fastmoe_switch(routing, plan), 2 * (.5 * p0 / 2 + .5 * p1 / 2), 1e-15);
  const std::vector<std::uint8_t> mask{1, 0, 1};
  EXPECT_NEAR(losses::fastmoe_switch(routing, plan, mask),
              2 * (.5 * (p0 - routing.scores(1, 0)) / 2 + .5 * (p1 - routing.scores(1, 1)) / 2),
              1e-15);
  EXPECT_THROW(losses::fastmoe_switch(known_routing<double>(), plan), std::invalid_argument);
}

TEST(Conventions, DeviceLossesByHand) {
  // Experts 0 and 1 on one device, 2 and 3 on the other.
  const auto routing = known_routing<double>();
  double device = 0;
  double communication = 0;
  for (Index d = 0; d < 2; ++d) {
    double choices = 0;
    double probability = 0;
    double sent = 0;
    for (Index t = 0; t < 4; ++t) {
      bool goes = false;
      for (Index k = 0; k < 2; ++k)
        if (routing.experts(t, k) / 2 == d) {
          choices += 1;
          goes = true;
        }
      sent += goes ? 1 : 0;
      for (Index e = 2 * d; e < 2 * d + 2; ++e) probability += routing.scores(t, e) / 4;
    }
    device += (4.0 / (2 * 4)) * choices / 2 * probability;
    communication += 2.0 / (2 * 4) * sent * probability;
  }
  EXPECT_NEAR(losses::device_balance(routing, 2), device, 1e-15 * 8);
  EXPECT_NEAR(losses::communication_balance(routing, 2, 2), communication, 1e-15 * 8);
  EXPECT_THROW(losses::device_balance(routing, 3), std::invalid_argument);
  EXPECT_THROW(losses::communication_balance(routing, 2, 3), std::invalid_argument);
}

TEST(Conventions, PaddingHasNoPartInDeviceLosses) {
  const auto logits = random_logits(9, 6, 4);
  const auto all = route<double>(logits, 2);
  const auto real = route<double>(logits.topRows(6), 2);
  const std::vector<std::uint8_t> mask{1, 1, 1, 1, 1, 1, 0, 0, 0};
  EXPECT_EQ(losses::device_balance(all, 3, mask), losses::device_balance(real, 3));
  EXPECT_EQ(losses::communication_balance(all, 3, 2, mask),
            losses::communication_balance(real, 3, 2));
  EXPECT_NE(losses::device_balance(all, 3), losses::device_balance(real, 3));
  const std::vector<const moe::Routing<double>*> layers{&all, &all};
  const std::vector<const moe::Routing<double>*> real_layers{&real, &real};
  EXPECT_EQ(losses::load_balancing_of_layers<double>(layers, BalanceScale::per_token, mask),
            losses::load_balancing_of_layers<double>(real_layers));
  const std::vector<std::uint8_t> none(9, 0);
  EXPECT_EQ(losses::device_balance(all, 3, none), 0);
  EXPECT_EQ(losses::communication_balance(all, 3, 2, none), 0);
  EXPECT_THROW(losses::device_balance(real, 3, mask), moe::ShapeError);
  EXPECT_THROW(losses::communication_balance(real, 3, 2, mask), moe::ShapeError);
}

TEST(Conventions, DeepspeedCountsAllChoicesFromThreeOn) {
  const auto routing = route<double>(random_logits(9, 6, 2), 3);
  EXPECT_EQ(losses::deepspeed(routing), losses::megatron(routing));
  EXPECT_NE(losses::deepspeed(routing), losses::tutel(routing));
}

TEST(Conventions, ConvertLeadsFromAnyToAny) {
  const auto routing = route<double>(random_logits(9, 6, 3), 2);
  for (const auto& [from, to] : {std::pair{BalanceScale::per_choice, BalanceScale::per_token},
                                 std::pair{BalanceScale::per_token, BalanceScale::unscaled},
                                 std::pair{BalanceScale::unscaled, BalanceScale::per_choice},
                                 std::pair{BalanceScale::first_choice, BalanceScale::gshard_paper},
                                 std::pair{BalanceScale::gshard_paper, BalanceScale::first_choice}})
    EXPECT_NEAR(losses::convert(losses::load_balancing(routing, from), from, to, 6, 2),
                losses::load_balancing(routing, to), 1e-14);
  EXPECT_THROW(losses::convert(1, BalanceScale::per_choice, BalanceScale::first_choice, 6, 2),
               std::invalid_argument);
  EXPECT_EQ(losses::convert(1, BalanceScale::per_choice, BalanceScale::first_choice, 6, 1), 1);
  EXPECT_THROW(losses::convert(1, BalanceScale::per_choice, BalanceScale::per_token, 0, 1),
               std::invalid_argument);
}

TEST(ChoicesByScore, LeavesOutWhatABiasDid) {
  auto routing = known_routing<double>();
  const auto expected = routing.experts;
  routing.experts.setConstant(3);
  routing.experts.col(1).setConstant(2);
  EXPECT_EQ(losses::choices_by_score(routing).experts, expected);
}

TEST(Conventions, RefuseRoutingsAndPlansThatDoNotFit) {
  auto routing = route<double>(random_logits(8, 4, 3), 1);
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  EXPECT_NO_THROW(losses::fastmoe_switch(routing, plan));
  routing.experts(3, 0) = moe::no_expert;
  routing.weights(3, 0) = 0;
  plan.dropped = {{3, 0}};
  EXPECT_THROW(losses::fastmoe_switch(routing, plan), std::invalid_argument);
  plan.dropped = {{8, 0}};
  EXPECT_THROW(losses::fastmoe_switch(routing, plan), std::invalid_argument);
  auto narrow = route<double>(random_logits(8, 4, 3), 2);
  narrow.weights.resize(8, 1);
  EXPECT_THROW(losses::flaxformer(narrow, 4), moe::ShapeError);
  auto few = route<double>(random_logits(8, 4, 3), 2);
  few.scores.resize(4, 4);
  EXPECT_THROW(losses::deepseek_sequence(few, 4), moe::ShapeError);
}

}  // namespace conventions_test
