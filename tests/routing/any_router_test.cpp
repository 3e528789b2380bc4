// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <moe/routing/any_router.hpp>
#include <moe/routing/base_router.hpp>
#include <moe/routing/presets.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/layers.hpp"

namespace any_router_test {

using moe::Matrix;
using test_support::random_matrix;
using Router = moe::TopKRouter<float>;

TEST(AnyRouter, DoesWhatTheHeldOneDoes) {
  const Router held({.d_model = 6, .num_experts = 5, .top_k = 2, .rule = moe::presets::mixtral(.5)},
                    {.weight = random_matrix<float>(5, 6, 1)});
  const moe::AnyRouter<float> any(held);
  const moe::AnyRouter<float> copy = any;
  EXPECT_EQ(copy.d_model(), 6);
  EXPECT_EQ(copy.num_experts(), 5);
  EXPECT_EQ(copy.top_k(), 2);
  const auto x = random_matrix<float>(9, 6, 2);
  moe::Routing<float> expected;
  moe::Routing<float> routing;
  held.route(x, {}, expected);
  copy.route(x, {}, routing);
  EXPECT_EQ(routing.experts, expected.experts);
  EXPECT_EQ(routing.weights, expected.weights);
  moe::GrowingMatrix<float> buffer;
  EXPECT_EQ(copy.hidden_states(x, {}, buffer).data(), x.data());
  const auto jittered = copy.hidden_states(x, {.training = true}, buffer);
  EXPECT_EQ(jittered.data(), buffer.data());
  ASSERT_NE(copy.target<Router>(), nullptr);
  EXPECT_EQ(copy.target<Router>()->weights().weight, held.weights().weight);
  EXPECT_EQ(copy.target<moe::BaseRouter<float>>(), nullptr);
}

TEST(AnyRouter, LeavesTokensAloneWhereTheHeldOneHasNoJitter) {
  const moe::AnyRouter<float> any(moe::BaseRouter<float>(random_matrix<float>(5, 6, 1)));
  const auto x = random_matrix<float>(3, 6, 2);
  moe::GrowingMatrix<float> buffer;
  EXPECT_EQ(any.hidden_states(x, {.training = true}, buffer).data(), x.data());
}

}  // namespace any_router_test
