// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Properties of the sampler.
#include "language_model/sampler.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

namespace language_model {
namespace sampler_test {

moe::Vector<double> logits_of(const std::vector<double>& probabilities) {
  moe::Vector<double> logits(static_cast<Index>(probabilities.size()));  // (vocab_size)
  for (Index i = 0; i < logits.size(); ++i)
    logits[i] = 5 + std::log(probabilities[static_cast<std::size_t>(i)]);
  return logits;
}

std::vector<int> draw(const SamplerOptions& options, const moe::Vector<double>& logits, int draws) {
  Sampler sampler(options);
  std::vector<int> counts(static_cast<std::size_t>(logits.size()));
  for (int i = 0; i < draws; ++i) ++counts[static_cast<std::size_t>(sampler(logits))];
  return counts;
}

TEST(Sampler, TemperatureZeroTakesTheFirstOfTheLargest) {
  Sampler sampler({.temperature = 0, .top_p = 0.1});
  moe::Vector<double> logits(6);  // (vocab_size)
  logits << -1, 3, 7, 2, 7, 7;
  EXPECT_EQ(sampler(logits), 2);
}

TEST(Sampler, DrawsFollowTheProbabilities) {
  constexpr int draws = 20000;
  const std::vector<double> probabilities{0.5, 0.3, 0.15, 0.05};
  const auto counts = draw({.temperature = 1, .top_p = 1}, logits_of(probabilities), draws);
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double p = probabilities[i];
    // Five standard deviations of a binomial count; the seed is fixed.
    EXPECT_NEAR(counts[i], draws * p, 5 * std::sqrt(draws * p * (1 - p))) << i;
  }
}

TEST(Sampler, TemperatureSharpens) {
  constexpr int draws = 20000;
  // Logits over 1/2 square the probabilities: 0.64 / 0.68 and 0.04 / 0.68.
  const auto counts = draw({.temperature = 0.5, .top_p = 1}, logits_of({0.2, 0.8}), draws);
  const double p = 0.04 / 0.68;
  EXPECT_NEAR(counts[0], draws * p, 5 * std::sqrt(draws * p * (1 - p)));
}

TEST(Sampler, TopPKeepsTheNucleusOnly) {
  constexpr int draws = 5000;
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  const auto most = draw({.temperature = 1, .top_p = 0.65}, logits, draws);
  EXPECT_EQ(most[0], 0);
  EXPECT_EQ(most[2], 0);
  // Within the nucleus the proportions stay: 4 to 3.
  const double p = 4.0 / 7.0;
  EXPECT_NEAR(most[1], draws * p, 5 * std::sqrt(draws * p * (1 - p)));

  const auto best = draw({.temperature = 1, .top_p = 1e-9}, logits, draws);
  EXPECT_EQ(best[1], draws);
  const auto ties =
      draw({.temperature = 1, .top_p = 0.3}, logits_of({0.25, 0.25, 0.25, 0.25}), 500);
  EXPECT_EQ(ties[0] + ties[1], 500);
}

TEST(Sampler, SeedDecidesTheDraws) {
  const moe::Vector<double> logits = moe::Vector<double>::Zero(100);  // (vocab_size)
  const auto sequence = [&](std::uint64_t seed) {
    Sampler sampler({.temperature = 1, .top_p = 1, .seed = seed});
    std::vector<Token> tokens;
    for (int i = 0; i < 50; ++i) tokens.push_back(sampler(logits));
    return tokens;
  };
  EXPECT_EQ(sequence(3), sequence(3));
  EXPECT_NE(sequence(3), sequence(4));
}

TEST(Sampler, ExtremesAreDefined) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  moe::Vector<double> logits(3);  // (vocab_size)
  logits << 1e30, -infinity, 0;
  EXPECT_EQ(draw({.temperature = 1e-300, .top_p = 1}, logits, 10)[0], 10);
  EXPECT_EQ(draw({.temperature = 1e300, .top_p = 1}, logits, 100)[1], 0);

  Sampler sampler({.temperature = 1});
  logits[1] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(sampler(logits), std::runtime_error);
  logits[1] = infinity;
  EXPECT_THROW(sampler(logits), std::runtime_error);
}

TEST(Sampler, RefusesOptionsThatMakeNoSense) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double temperature : {-0.1, nan, std::numeric_limits<double>::infinity()})
    EXPECT_THROW(Sampler({.temperature = temperature}), std::invalid_argument);
  for (const double top_p : {0.0, -0.5, 1.01, nan})
    EXPECT_THROW(Sampler({.top_p = top_p}), std::invalid_argument);
}

}  // namespace sampler_test
}  // namespace language_model
