// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routing/scores.hpp>

#include "support/reference.hpp"

namespace scores_test {

using moe::ScoreFunction;

template <class Scalar>
class Scores : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Scores, Scalars);

constexpr ScoreFunction functions[] = {ScoreFunction::softmax, ScoreFunction::sigmoid,
                                       ScoreFunction::sqrt_softplus, ScoreFunction::identity};

TYPED_TEST(Scores, FollowTheirFormulas) {
  std::vector<TypeParam> logits;
  for (int i = -40; i <= 40; ++i) logits.push_back(static_cast<TypeParam>(i) / 4);
  const reference::Values exact(logits.begin(), logits.end());
  for (const ScoreFunction function : functions) {
    std::vector<TypeParam> actual(logits.size());
    moe::score_logits(function, logits.data(), static_cast<moe::Index>(logits.size()),
                      actual.data());
    const reference::Values expected = reference::scores(function, exact);
    for (std::size_t i = 0; i < actual.size(); ++i) {
      // The argument of the exponential is rounded to half a unit of at most 20, which the
      // exponential turns into a relative error; a few roundings and the sum of n come on top.
      const double relative = (20 + 8) * std::numeric_limits<TypeParam>::epsilon();
      EXPECT_NEAR(static_cast<double>(actual[i]), expected[i], relative * std::fabs(expected[i]));
    }
  }
}

TYPED_TEST(Scores, MayOverwriteTheLogits) {
  for (const ScoreFunction function : functions) {
    const std::vector<TypeParam> logits{1, -2, TypeParam(0.5)};
    std::vector<TypeParam> apart(3);
    moe::score_logits(function, logits.data(), 3, apart.data());
    std::vector<TypeParam> in_place = logits;
    moe::score_logits(function, in_place.data(), 3, in_place.data());
    EXPECT_EQ(in_place, apart);
  }
}

TYPED_TEST(Scores, ExtremeLogitsDoNotOverflow) {
  const TypeParam large = std::numeric_limits<TypeParam>::max();
  const TypeParam infinity = std::numeric_limits<TypeParam>::infinity();
  EXPECT_EQ(moe::sigmoid(large), 1);
  EXPECT_EQ(moe::sigmoid(-large), 0);
  EXPECT_EQ(moe::sigmoid(infinity), 1);
  EXPECT_EQ(moe::sigmoid(-infinity), 0);
  EXPECT_EQ(moe::softplus(large), large);
  EXPECT_EQ(moe::softplus(-large), 0);
  std::vector<TypeParam> score(2);
  const std::vector<TypeParam> logits{large, -large};
  moe::softmax(logits.data(), 2, score.data());
  EXPECT_EQ(score, (std::vector<TypeParam>{1, 0}));
}

TYPED_TEST(Scores, NanScoresZeroAndDisturbsNobody) {
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  const std::vector<TypeParam> with{1, nan, 2};
  const std::vector<TypeParam> without{1, 2};
  for (const ScoreFunction function : functions) {
    std::vector<TypeParam> a(3);
    std::vector<TypeParam> b(2);
    moe::score_logits(function, with.data(), 3, a.data());
    moe::score_logits(function, without.data(), 2, b.data());
    EXPECT_EQ(a, (std::vector<TypeParam>{b[0], 0, b[1]}));
  }
}

TYPED_TEST(Scores, InfinitiesShareASoftmax) {
  const TypeParam infinity = std::numeric_limits<TypeParam>::infinity();
  const auto softmax = [](std::vector<TypeParam> z) {
    moe::softmax(z.data(), static_cast<moe::Index>(z.size()), z.data());
    return z;
  };
  using V = std::vector<TypeParam>;
  EXPECT_EQ(softmax({infinity, 3, infinity}), (V{TypeParam(0.5), 0, TypeParam(0.5)}));
  EXPECT_EQ(softmax({-infinity, 3, -infinity}), (V{0, 1, 0}));
  EXPECT_EQ(softmax({-infinity, -infinity}), (V{0, 0}));
  EXPECT_EQ(softmax({}), V{});
}

}  // namespace scores_test
