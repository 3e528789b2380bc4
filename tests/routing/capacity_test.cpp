// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <stdexcept>

#include <gtest/gtest.h>

#include <moe/routing/capacity.hpp>

namespace capacity_test {

using moe::Capacity;
using moe::CapacityFormula;
using moe::Index;

Index rows(CapacityFormula formula, double factor, Index tokens, Index top_k, Index experts) {
  return Capacity{.factor = factor, .formula = formula}.rows(tokens, top_k, experts);
}

TEST(Capacity, EveryFormulaRoundsAsItsSource) {
  // T = 10, K = 2, E = 4, factor 1.25: T / E = 2.5, and K more of choices.
  EXPECT_EQ(rows(CapacityFormula::choices_ceil, 1.25, 10, 2, 4), 7);  // ceil(6.25)
  EXPECT_EQ(rows(CapacityFormula::megablocks, 1.25, 10, 2, 4), 6);    // floor(6.25)
  EXPECT_EQ(rows(CapacityFormula::tokens_floor, 1.25, 10, 2, 4), 3);  // floor(3.125)
  EXPECT_EQ(rows(CapacityFormula::tokens_round, 1.25, 10, 2, 4), 3);  // round(3.125)
  EXPECT_EQ(rows(CapacityFormula::tokens_ceil, 1.25, 10, 2, 4), 4);   // ceil(3.125)
  EXPECT_EQ(rows(CapacityFormula::deepspeed, 1.25, 10, 2, 4), 7);     // ceil(2.5 * 2.5)
  EXPECT_EQ(rows(CapacityFormula::megatron, 1.25, 10, 2, 4), 7);      // ceil(5 * 1.25)
  EXPECT_EQ(rows(CapacityFormula::tutel, 1.25, 10, 2, 4), 6);         // 2 floor(1.25 * 3)
  EXPECT_EQ(rows(CapacityFormula::tutel, -1.25, 10, 2, 4), 6);
  EXPECT_EQ(rows(CapacityFormula::fastmoe, 1.25, 10, 2, 4), 6);      // floor(13 * 2 / 4)
  EXPECT_EQ(rows(CapacityFormula::token_share, 0.25, 10, 2, 4), 3);  // ceil(2.5)
  EXPECT_EQ((Capacity{.formula = CapacityFormula::fixed, .fixed_rows = 5}.rows(10, 2, 4)), 5);
}

TEST(Capacity, HalvesRoundToEven) {
  EXPECT_EQ(rows(CapacityFormula::tokens_round, 1, 10, 1, 4), 2);      // 2.5
  EXPECT_EQ(rows(CapacityFormula::tokens_round, 1, 14, 1, 4), 4);      // 3.5
  EXPECT_EQ(rows(CapacityFormula::choices_round, 1, 5, 2, 4), 2);      // 2.5
  EXPECT_EQ(rows(CapacityFormula::choices_round, 1, 7, 2, 4), 4);      // 3.5
  EXPECT_EQ(rows(CapacityFormula::choices_round, 1.25, 10, 2, 4), 6);  // 6.25
}

TEST(Capacity, SinglePrecisionIsPartOfDeepSpeedsFormula) {
  // 5 * 1.2 is 6 in single precision; the float nearest 1.2 lies above it.
  EXPECT_EQ(rows(CapacityFormula::deepspeed, 1.2, 20, 1, 4), 6);
  // 0.7f lies below 0.7, 30 * 0.7f rounds to 21.
  EXPECT_EQ(rows(CapacityFormula::deepspeed, 0.7, 120, 1, 4), 21);
}

TEST(Capacity, MinimumAndMultiple) {
  const Capacity lingvo{
      .factor = 1, .minimum = 4, .multiple = 4, .formula = CapacityFormula::tokens_floor};
  EXPECT_EQ(lingvo.rows(8, 2, 4), 4);
  EXPECT_EQ(lingvo.rows(20, 2, 4), 8);
  EXPECT_EQ(lingvo.rows(16, 2, 4), 4);
}

TEST(Capacity, NoLimit) {
  EXPECT_EQ(Capacity{}.rows(10, 2, 4), Capacity::unlimited);
  EXPECT_TRUE(Capacity{}.is_unlimited());
  EXPECT_EQ(rows(CapacityFormula::megablocks, 0.1, 3, 1, 4), Capacity::unlimited);
  EXPECT_EQ(rows(CapacityFormula::choices_ceil, 1e300, 3, 1, 4), Capacity::unlimited);
}

TEST(Capacity, RefusesWhatMakesNoSense) {
  const auto check = [](const Capacity& capacity) { moe::detail::check_capacity("f", capacity); };
  EXPECT_NO_THROW(check({.factor = -1, .formula = CapacityFormula::tutel}));
  EXPECT_THROW(check({.factor = -1}), std::invalid_argument);
  EXPECT_THROW(check({.factor = 1, .multiple = 0}), std::invalid_argument);
  EXPECT_THROW(check({.formula = CapacityFormula::fixed, .fixed_rows = -1}), std::invalid_argument);
  EXPECT_THROW(check({.factor = 1, .group_tokens = -1}), std::invalid_argument);
  const Index most = std::numeric_limits<Index>::max();
  EXPECT_THROW(check({.factor = 1, .minimum = most}), std::invalid_argument);
  EXPECT_THROW(check({.factor = 1, .multiple = most}), std::invalid_argument);
  constexpr Index large = Index{1} << 61;
  EXPECT_EQ((Capacity{.factor = 1, .minimum = large, .multiple = large - 1}.rows(3, 1, 2)),
            2 * (large - 1))
      << "no sum beyond the range of Index";
}

}  // namespace capacity_test
