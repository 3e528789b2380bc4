// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// AdamW against the formulas, element by element.
#include "language_model/training/adamw.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace adamw_test {

using language_model::training::AdamW;
using language_model::training::Parameters;

/// A matrix, which decays, and a vector, which does not.
struct Values {
  std::vector<double> matrix{0.5, -1.5, 2, 0};
  std::vector<double> vector{1, -2};
  std::vector<double> of_matrix{0.1, -0.2, 0, 3};
  std::vector<double> of_vector{-1, 0.5};

  Parameters<double> parameters() {
    return {{"matrix", matrix, of_matrix, true}, {"vector", vector, of_vector, false}};
  }
};

TEST(AdamW, FollowsItsFormulas) {
  constexpr double rate = 0.01;
  constexpr double decay = 0.3;
  for (const double clip : {0.0, 1.5, 100.0}) {
    Values values;
    AdamW<double> optimizer(values.parameters());
    std::vector<double> p = values.matrix;
    p.insert(p.end(), values.vector.begin(), values.vector.end());
    std::vector<double> m(p.size(), 0);
    std::vector<double> v(p.size(), 0);
    for (int t = 1; t <= 4; ++t) {
      for (double& g : values.of_matrix) g = g * -0.7 + 0.05;
      for (double& g : values.of_vector) g = g * 1.2 - 0.1;
      std::vector<double> g = values.of_matrix;
      g.insert(g.end(), values.of_vector.begin(), values.of_vector.end());
      double norm = 0;
      for (const double x : g) norm += x * x;
      norm = std::sqrt(norm);
      EXPECT_NEAR(optimizer.step(values.parameters(), t, rate, decay, clip), norm, 1e-14 * norm);
      for (std::size_t i = 0; i < p.size(); ++i) {
        const double clipped = g[i] * (clip > 0 && norm > clip ? clip / norm : 1);
        m[i] = 0.9 * m[i] + 0.1 * clipped;
        v[i] = 0.95 * v[i] + 0.05 * clipped * clipped;
        const double mean = m[i] / (1 - std::pow(0.9, t));
        const double square = v[i] / (1 - std::pow(0.95, t));
        if (i < values.matrix.size()) p[i] -= rate * decay * p[i];
        p[i] -= rate * mean / (std::sqrt(square) + 1e-8);
        const double is =
            i < values.matrix.size() ? values.matrix[i] : values.vector[i - values.matrix.size()];
        EXPECT_NEAR(is, p[i], 1e-13) << "step " << t << ", value " << i << ", clip " << clip;
      }
    }
  }
}

TEST(AdamW, LeavesEverythingWhereAGradientIsNotFinite) {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Values values;
    const Values before = values;
    AdamW<double> optimizer(values.parameters());
    values.of_vector[1] = bad;
    EXPECT_FALSE(std::isfinite(optimizer.step(values.parameters(), 1, 0.1, 0.1, 1)));
    EXPECT_EQ(values.matrix, before.matrix);
    EXPECT_EQ(values.vector, before.vector);
    EXPECT_EQ(optimizer.moments()[0].first, std::vector<double>(4, 0));
  }
}

}  // namespace adamw_test
