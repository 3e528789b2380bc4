// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Gradients against central differences.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace test_support {

/// Compares slopes with (f(x + h) - f(x - h)) / 2h, and leaves the values as they were: at up to
/// `most` coordinates whose slope is not 0, spread over all of these, and at up to half as many
/// where it is, such as the padding of packed weights. With h = 1e-5 the differences of values near
/// 1 are good to about 1e-10.
inline void expect_slopes(const std::string& what, double* values, const double* slopes,
                          std::size_t size, const std::function<double()>& loss,
                          std::size_t most = 100) {
  constexpr double h = 1e-5;
  double largest = 0;
  std::vector<std::size_t> moving;
  std::vector<std::size_t> resting;
  for (std::size_t i = 0; i < size; ++i) {
    largest = std::max(largest, std::fabs(slopes[i]));
    (slopes[i] != 0 ? moving : resting).push_back(i);
  }
  std::vector<std::size_t> chosen;
  const auto choose = [&](const std::vector<std::size_t>& from, std::size_t count) {
    count = std::min(count, from.size());
    for (std::size_t i = 0; i < count; ++i) chosen.push_back(from[i * from.size() / count]);
  };
  choose(moving, most);
  choose(resting, most / 2);
  for (const std::size_t i : chosen) {
    const double kept = values[i];
    values[i] = kept + h;
    const double above = loss();
    values[i] = kept - h;
    const double below = loss();
    values[i] = kept;
    ASSERT_NEAR(slopes[i], (above - below) / (2 * h), 1e-6 * largest + 1e-10)
        << what << ", coordinate " << i;
  }
}

/// The same where a gradient of zeros would be a mistake.
inline void expect_some_slopes(const std::string& what, double* values, const double* slopes,
                               std::size_t size, const std::function<double()>& loss,
                               std::size_t most = 100) {
  EXPECT_TRUE(std::any_of(slopes, slopes + size, [](double slope) { return slope != 0; })) << what;
  expect_slopes(what, values, slopes, size, loss, most);
}

}  // namespace test_support
