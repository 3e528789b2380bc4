// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routing/modality_router.hpp>
#include <moe/routing/presets.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/layers.hpp"

namespace modality_router_test {

using moe::Index;
using moe::Routing;
using test_support::random_matrix;
using Inner = moe::TopKRouter<double>;
using Router = moe::ModalityRouter<Inner>;

Inner inner(Index experts, Index top_k, std::uint64_t seed) {
  return {{.d_model = 6, .num_experts = experts, .top_k = top_k},
          {.weight = random_matrix<double>(experts, 6, seed)}};
}

TEST(ModalityRouter, EachTypeHasItsExperts) {
  const Router router(7, {{inner(4, 2, 1), 0}, {inner(3, 1, 2), 4}});
  EXPECT_EQ(router.top_k(), 2);
  const auto x = random_matrix<double>(6, 6, 3);
  const std::vector<std::int32_t> types{0, 1, 1, 0, 0, 1};
  Routing<double> routing;
  router.route(x, {.token_types = types}, routing);
  Routing<double> text;
  Routing<double> image;
  inner(4, 2, 1).route(x, {}, text);
  inner(3, 1, 2).route(x, {}, image);
  moe::detail::check_routing("f", routing);
  for (Index t = 0; t < 6; ++t) {
    if (types[static_cast<std::size_t>(t)] == 0) {
      EXPECT_EQ(routing.experts.row(t), text.experts.row(t));
      EXPECT_EQ(routing.weights.row(t), text.weights.row(t));
      EXPECT_EQ(routing.scores.row(t).tail(3).sum(), 0);
    } else {
      EXPECT_EQ(routing.experts(t, 0), image.experts(t, 0) + 4);
      EXPECT_EQ(routing.weights(t, 0), image.weights(t, 0));
      EXPECT_EQ(routing.experts(t, 1), moe::no_expert);
      EXPECT_EQ(routing.logits.row(t).tail(3), image.logits.row(t));
      EXPECT_LT(routing.logits(t, 0), -1e300);
    }
  }
}

TEST(ModalityRouter, RefusesWhatCannotWork) {
  EXPECT_THROW(Router(3, {}), std::invalid_argument);
  EXPECT_THROW(Router(6, {{inner(4, 2, 1), 3}}), std::invalid_argument);
  const Router router(4, {{inner(4, 2, 1), 0}});
  Routing<double> routing;
  const auto x = random_matrix<double>(2, 6, 3);
  EXPECT_THROW(router.route(x, {}, routing), moe::ShapeError);
  const std::vector<std::int32_t> types{0, 1};
  EXPECT_THROW(router.route(x, {.token_types = types}, routing), std::invalid_argument);
  const Inner other({.d_model = 6, .num_experts = 4, .top_k = 2, .rule = moe::presets::llama4()},
                    {.weight = random_matrix<double>(4, 6, 1)});
  const Router mixed(4, {{inner(4, 2, 1), 0}, {other, 0}});
  EXPECT_THROW(mixed.route(x, {.token_types = types}, routing), std::invalid_argument);
}

TEST(ModalityRouter, ExpertsOfOthersAreNoLogits) {
  const auto of_logits = [](Index experts, std::uint64_t seed) {
    return Inner({.d_model = 6, .num_experts = experts, .top_k = 1, .rule = moe::presets::jetmoe()},
                 {.weight = random_matrix<double>(experts, 6, seed)});
  };
  const Router router(5, {{of_logits(3, 1), 0}, {of_logits(2, 2), 3}});
  const std::vector<std::int32_t> types{0, 1};
  Routing<double> routing;
  router.route(random_matrix<double>(2, 6, 3), {.token_types = types}, routing);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(routing.scores(0, 3), -infinity);
  EXPECT_EQ(routing.scores(0, 4), -infinity);
  EXPECT_EQ(routing.scores(1, 0), -infinity);
  EXPECT_TRUE(std::isfinite(routing.scores(0, 0)) && std::isfinite(routing.scores(1, 3)));
}

TEST(ModalityRouter, JittersTheTokensOfTheRoutersThatDo) {
  const Inner jittered(
      {.d_model = 6, .num_experts = 3, .top_k = 1, .rule = moe::presets::mixtral(.1)},
      {.weight = random_matrix<double>(3, 6, 2)});
  const Router router(7, {{inner(4, 1, 1), 0}, {jittered, 4}});
  const auto x = random_matrix<double>(4, 6, 3);
  const std::vector<std::int32_t> types{0, 1, 1, 0};
  moe::GrowingMatrix<double> buffer;
  moe::GrowingMatrix<double> own;
  const moe::RouteOptions options{.training = true, .seed = 5, .token_types = types};
  const auto seen = router.hidden_states(x, options, buffer);
  const auto expected = jittered.hidden_states(x, options, own);
  for (Index t = 0; t < 4; ++t) {
    const bool is_jittered = types[static_cast<std::size_t>(t)] == 1;
    const moe::MatrixView<const double> as_seen = is_jittered ? expected : x;
    EXPECT_EQ(seen.map().row(t), as_seen.map().row(t));
  }
  EXPECT_EQ(router.hidden_states(x, {.token_types = types}, buffer).data(), x.data());
  EXPECT_THROW(router.hidden_states(x, {.training = true}, buffer), moe::ShapeError);
}

}  // namespace modality_router_test
