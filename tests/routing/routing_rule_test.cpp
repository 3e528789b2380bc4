// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include <moe/routing/routing_rule.hpp>

namespace routing_rule_test {

/// The complaint about a rule for 8 experts, 3 chosen; empty for none.
std::string complaint(const moe::RoutingRule& rule) {
  try {
    moe::detail::check_rule("f", rule, 8, 3);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(RoutingRule, ThatMakesSenseIsAccepted) {
  EXPECT_EQ(complaint({}), "");
  EXPECT_EQ(complaint({.groups = {.count = 4, .kept = 2}}), "");
  // Groups that decide nothing need not be summable.
  EXPECT_EQ(complaint({.groups = {.count = 8, .kept = 8}}), "");
  // Masked experts may be chosen where they count as zero.
  EXPECT_EQ(complaint({.groups = {.count = 4, .kept = 1, .fill = moe::GroupFill::zero}}), "");
}

TEST(RoutingRule, ThatCannotWorkIsRefusedByName) {
  EXPECT_EQ(complaint({.logits = {.temperature = 2}}),
            "f: logits.temperature belongs to cosine logits");
  EXPECT_EQ(complaint({.jitter = {.epsilon = .1}}), "f: jitter.epsilon needs a target");
  EXPECT_EQ(complaint({.groups = {.count = 0}}), "f: groups.count must be positive");
  EXPECT_EQ(complaint({.groups = {.count = 4, .kept = 0}}),
            "f: groups.kept must be from 1 to groups.count");
  EXPECT_EQ(complaint({.groups = {.count = 4, .kept = 5}}),
            "f: groups.kept must be from 1 to groups.count");
  EXPECT_EQ(complaint({.groups = {.count = 3, .kept = 3}}),
            "f: num_experts must be a multiple of groups.count");
  EXPECT_EQ(complaint({.groups = {.count = 8, .kept = 4}}),
            "f: groups.top must be from 1 to the size of a group");
  EXPECT_EQ(complaint({.groups = {.count = 4, .kept = 1}}),
            "f: the kept groups hold fewer than top_k experts");
  EXPECT_EQ(complaint({.renormalization = {.epsilon = -1}}),
            "f: renormalization.epsilon must be finite and not negative");
  EXPECT_EQ(complaint({.renormalization = {.epsilon = std::nan("")}}),
            "f: renormalization.epsilon must be finite and not negative");
  EXPECT_EQ(complaint({.renormalization = {.p = 0}}),
            "f: renormalization.p must be finite and positive");
  EXPECT_EQ(complaint({.renormalization = {.p = std::numeric_limits<double>::infinity()}}),
            "f: renormalization.p must be finite and positive");
  EXPECT_EQ(complaint({.scale = std::numeric_limits<double>::infinity()}),
            "f: scale must be finite");
}

}  // namespace routing_rule_test
