// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/routing/selection.hpp>

#include "support/levels.hpp"
#include "support/reference.hpp"

namespace selection_test {

using moe::ExpertIndex;
using moe::Index;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double lowest = std::numeric_limits<double>::lowest();

std::vector<ExpertIndex> select(const std::vector<double>& key, Index k) {
  std::vector<ExpertIndex> chosen(static_cast<std::size_t>(k));
  moe::select_top_k(key.data(), static_cast<Index>(key.size()), k, chosen.data());
  return chosen;
}

TEST(SelectTopK, IsAFullStableSortCutOff) {
  std::uint64_t position = 0;
  for (const Index n : {1, 2, 5, 8, 33, 128, 257}) {
    for (Index k = 0; k <= std::min<Index>(n, 40); ++k) {
      std::vector<double> key;
      // Few distinct values, so that ties abound.
      for (Index i = 0; i < n; ++i)
        key.push_back(std::floor(moe::detail::uniform(5, position++) * 7));
      const std::vector<Index> expected = reference::top_k(key, k);
      EXPECT_EQ(select(key, k), std::vector<ExpertIndex>(expected.begin(), expected.end()))
          << n << " choose " << k;
    }
  }
}

TEST(SelectTopK, OfThousandsOfExperts) {
  std::uint64_t position = 0;
  for (const Index n : {2048, 4095, 4096}) {
    for (const double distinct : {7.0, 1e9}) {
      std::vector<double> key;
      for (Index i = 0; i < n; ++i)
        key.push_back(std::floor(moe::detail::uniform(6, position++) * distinct));
      for (const Index k : {1, 2, 8, 16}) {
        const std::vector<Index> expected = reference::top_k(key, k);
        EXPECT_EQ(select(key, k), std::vector<ExpertIndex>(expected.begin(), expected.end()))
            << n << " choose " << k;
      }
    }
  }
}

class SelectTopKLevels : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(SelectTopKLevels);

TEST_P(SelectTopKLevels, OfThousandsOfExpertsInFloat) {
  std::uint64_t position = 0;
  for (const Index n : {1, 9, 31, 300, 2048, 4093, 4096}) {
    for (const double distinct : {7.0, 1e6}) {
      std::vector<double> key;
      for (Index i = 0; i < n; ++i)
        key.push_back(std::floor(moe::detail::uniform(6, position++) * distinct));
      const std::vector<float> narrow(key.begin(), key.end());
      for (const Index k : {1, 2, 8, 16}) {
        if (k > n) continue;
        std::vector<ExpertIndex> chosen(static_cast<std::size_t>(k));
        moe::select_top_k(narrow.data(), n, k, chosen.data());
        const std::vector<Index> expected = reference::top_k(key, k);
        EXPECT_EQ(chosen, std::vector<ExpertIndex>(expected.begin(), expected.end()))
            << n << " choose " << k;
      }
    }
  }
}

TEST(SelectTopK, EqualKeysGoToTheLowerIndex) {
  EXPECT_EQ(select({1, 1, 1, 1}, 2), (std::vector<ExpertIndex>{0, 1}));
  EXPECT_EQ(select({0, 2, 1, 2, 2}, 3), (std::vector<ExpertIndex>{1, 3, 4}));
  EXPECT_EQ(select({-0.0, 0.0}, 1), (std::vector<ExpertIndex>{0}));
}

TEST(SelectTopK, OrdersInfinities) {
  EXPECT_EQ(select({-infinity, 0, infinity, lowest}, 4), (std::vector<ExpertIndex>{2, 1, 3, 0}));
}

TEST(SelectionKey, PutsNanBehindEveryNumber) {
  using moe::detail::selection_key;
  const double nan = selection_key(std::numeric_limits<double>::quiet_NaN());
  EXPECT_LT(-infinity, nan);
  EXPECT_LT(nan, selection_key(-infinity));
  EXPECT_EQ(selection_key(-infinity), selection_key(lowest));
  EXPECT_EQ(selection_key(infinity), infinity);
  EXPECT_EQ(selection_key(-1.5), -1.5);
}

std::vector<double> mask(const moe::GroupRule& rule, std::vector<double> key) {
  std::vector<double> score(static_cast<std::size_t>(rule.count));
  std::vector<ExpertIndex> kept(static_cast<std::size_t>(rule.kept));
  moe::detail::mask_groups(rule, static_cast<Index>(key.size()), key.data(), score.data(),
                           kept.data());
  return key;
}

TEST(MaskGroups, AgreesWithSortingEveryGroup) {
  std::uint64_t position = 0;
  for (int repetition = 0; repetition < 200; ++repetition) {
    std::vector<double> key;
    for (int e = 0; e < 12; ++e)
      key.push_back(std::floor(moe::detail::uniform(6, position++) * 9 - 4));
    for (const auto score : {moe::GroupScore::maximum, moe::GroupScore::top_sum})
      for (const auto fill : {moe::GroupFill::zero, moe::GroupFill::negative_infinity})
        for (const Index top : {1, 2, 3, 4})
          for (const Index kept : {1, 2, 3}) {
            const moe::GroupRule rule{
                .count = 3, .kept = kept, .score = score, .top = top, .fill = fill};
            if (!rule.active()) continue;
            EXPECT_EQ(mask(rule, key), reference::mask_groups(rule, key));
          }
  }
}

TEST(MaskGroups, TiesGoToTheLowerGroup) {
  const moe::GroupRule rule{.count = 3, .kept = 1, .score = moe::GroupScore::maximum};
  EXPECT_EQ(mask(rule, {1, 2, 2, 1, 0, 2}),
            (std::vector<double>{1, 2, -infinity, -infinity, -infinity, -infinity}));
}

TEST(MaskGroups, AZeroFillMakesNoNumberOfANan) {
  const moe::GroupRule rule{.count = 2,
                            .kept = 1,
                            .score = moe::GroupScore::top_sum,
                            .top = 2,
                            .fill = moe::GroupFill::zero};
  const double nan = moe::detail::nan_key<double>;
  EXPECT_EQ(mask(rule, {-3, nan, -1, -1}), (std::vector<double>{0, nan, -1, -1}));
}

}  // namespace selection_test
