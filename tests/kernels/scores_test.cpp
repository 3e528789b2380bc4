// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/dispatch.hpp>

#include "support/levels.hpp"

namespace scores_test {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float lowest = std::numeric_limits<float>::lowest();

const moe::kernels::RowKernels<float>& kernels() {
  return moe::kernels::row_kernels<float>();
}

std::vector<float> logits(std::ptrdiff_t n) {
  std::mt19937 rng(static_cast<unsigned>(n));
  std::normal_distribution<float> draw(0, 4);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& v : values) v = draw(rng);
  return values;
}

class Scores : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(Scores);

constexpr std::ptrdiff_t sizes[] = {1, 7, 8, 9, 15, 16, 17, 67, 131};

TEST_P(Scores, LargestLeavesNanOut) {
  for (const std::ptrdiff_t n : sizes) {
    std::vector<float> z = logits(n);
    EXPECT_EQ(kernels().largest(z.data(), n), *std::max_element(z.begin(), z.end()));
    for (float& v : z) v = nan;
    EXPECT_EQ(kernels().largest(z.data(), n), -infinity);
    z.back() = -3;
    EXPECT_EQ(kernels().largest(z.data(), n), -3);
  }
}

TEST_P(Scores, ExponentialsAreThoseOfNumbersAndTheirSum) {
  for (const std::ptrdiff_t n : sizes) {
    std::vector<float> z = logits(n);
    if (n > 2) z[1] = nan;
    if (n > 3) z[2] = -infinity;
    const float top = kernels().largest(z.data(), n);
    std::vector<float> score(z.size() + 1, nan);
    const float sum = kernels().exponentials(z.data(), n, top, score.data());
    double expected = 0;
    for (std::size_t i = 0; i < z.size(); ++i) {
      const double e = std::isnan(z[i]) ? 0 : std::exp(static_cast<double>(z[i] - top));
      EXPECT_NEAR(score[i], e, 3 * std::numeric_limits<float>::epsilon() * e);
      expected += e;
    }
    EXPECT_NEAR(sum, expected,
                (3 + static_cast<double>(n)) * std::numeric_limits<float>::epsilon() * expected);
    EXPECT_TRUE(std::isnan(score.back())) << "written outside";
  }
}

TEST_P(Scores, SigmoidsDoNotOverflow) {
  for (const std::ptrdiff_t n : sizes) {
    std::vector<float> z = logits(n);
    const float special[] = {nan, infinity, -infinity, 200, -200, -90};
    for (std::size_t i = 0; i < std::min<std::size_t>(z.size(), 6); ++i) z[i] = special[i];
    std::vector<float> score(z.size());
    kernels().sigmoids(z.data(), n, score.data());
    for (std::size_t i = 0; i < z.size(); ++i) {
      const double expected = std::isnan(z[i]) ? 0 : 1 / (1 + std::exp(-static_cast<double>(z[i])));
      EXPECT_NEAR(score[i], expected, 4 * std::numeric_limits<float>::epsilon() * expected + 1e-38)
          << z[i];
    }
  }
}

TEST_P(Scores, SelectionKeysOrderNumbersThenMinusInfinityThenNan) {
  for (const std::ptrdiff_t n : sizes) {
    std::vector<float> z = logits(n);
    std::vector<float> score = logits(n);
    const std::vector<float> bias = logits(n);
    for (std::size_t i = 0; i < z.size(); i += 5) z[i] = nan;
    for (std::size_t i = 1; i < z.size(); i += 5) score[i] = -infinity;
    for (std::size_t i = 2; i < z.size(); i += 5) z[i] = score[i] = infinity;
    for (std::size_t i = 3; i < z.size(); i += 5) z[i] = -infinity;
    for (const float* const added : {static_cast<const float*>(nullptr), bias.data()}) {
      std::vector<float> key(z.size());
      kernels().selection_keys(z.data(), score.data(), added, n, key.data());
      for (std::size_t i = 0; i < z.size(); ++i) {
        const float sum = added == nullptr ? score[i] : score[i] + added[i];
        EXPECT_EQ(key[i], std::isnan(z[i]) ? lowest : std::max(sum, std::nextafter(lowest, 0.0F)));
      }
    }
  }
}

TEST_P(Scores, FindAboveFindsTheFirst) {
  for (const std::ptrdiff_t n : sizes) {
    std::vector<float> key(static_cast<std::size_t>(n), 1);
    EXPECT_EQ(kernels().find_above(key.data(), 0, n, 1), n);
    for (std::ptrdiff_t i = 0; i < n; ++i) {
      key[static_cast<std::size_t>(i)] = 2;
      for (std::ptrdiff_t begin = 0; begin <= n; begin += 3)
        EXPECT_EQ(kernels().find_above(key.data(), begin, n, 1), begin <= i ? i : n);
      key[static_cast<std::size_t>(i)] = 1;
    }
  }
}

TEST_P(Scores, DivideAllDividesAll) {
  for (const std::ptrdiff_t n : sizes) {
    const std::vector<float> before = logits(n);
    std::vector<float> score = before;
    kernels().divide_all(score.data(), n, 3);
    for (std::size_t i = 0; i < score.size(); ++i) EXPECT_EQ(score[i], before[i] / 3);
  }
}

}  // namespace scores_test
