// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/custom_experts.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/fwd.hpp>
#include <moe/layer/soft_moe.hpp>

#include "support/differences.hpp"
#include "support/layers.hpp"
#include "support/threads.hpp"

namespace soft_moe_test {

using moe::Index;
using moe::Matrix;
using test_support::random_matrix;
using Bank = moe::GeluExperts<double>;

TEST(SoftMoe, AgreesWithItsDefinition) {
  const Bank bank = test_support::random_bank<Bank>({.num_experts = 3, .d_model = 6, .d_ff = 4}, 1);
  const auto phi = random_matrix<double>(6, 6, 2);  // two slots for each expert
  const moe::SoftMoe<Bank> layer({.phi = phi, .scale = 3}, bank);
  const auto x = random_matrix<double>(9, 6, 3);
  Matrix<double> y(9, 6);
  moe::SoftMoeWorkspace<double> workspace;
  layer.forward(x, y, workspace);

  Matrix<double> exponentials(9, 6);  // (T, slots)
  for (Index t = 0; t < 9; ++t)
    for (Index s = 0; s < 6; ++s)
      exponentials(t, s) =
          std::exp(3 * x.row(t).dot(phi.row(s)) / std::sqrt(x.row(t).squaredNorm() + 1e-6) /
                   std::sqrt(phi.row(s).squaredNorm() + 1e-6));
  Matrix<double> expected = Matrix<double>::Zero(9, 6);
  const auto experts = test_support::reference_experts(bank);
  for (Index s = 0; s < 6; ++s) {
    reference::Values slot(6, 0.0);
    for (Index t = 0; t < 9; ++t)
      for (Index d = 0; d < 6; ++d)
        slot[static_cast<std::size_t>(d)] +=
            exponentials(t, s) / exponentials.col(s).sum() * x(t, d);
    const auto out =
        reference::run_expert(experts[static_cast<std::size_t>(s / 2)], reference::gelu, slot);
    for (Index t = 0; t < 9; ++t)
      for (Index d = 0; d < 6; ++d)
        expected(t, d) +=
            exponentials(t, s) / exponentials.row(t).sum() * out[static_cast<std::size_t>(d)];
  }
  EXPECT_TRUE(y.isApprox(expected, 1e-12));
  for (Index s = 0; s < 6; ++s) EXPECT_NEAR(workspace.dispatch.col(s).sum(), 1, 1e-14);
  for (Index t = 0; t < 9; ++t) EXPECT_NEAR(workspace.combine.row(t).sum(), 1, 1e-14);
}

TEST(SoftMoe, LogitsOfATokenNearZeroAreSmall) {
  const Bank bank = test_support::random_bank<Bank>({.num_experts = 1, .d_model = 2, .d_ff = 4}, 1);
  const moe::SoftMoe<Bank> layer({.phi = (Matrix<double>(1, 2) << 1, 0).finished()}, bank);
  const Matrix<double> x = (Matrix<double>(1, 2) << 1e-4, 0).finished();
  Matrix<double> y(1, 2);
  moe::SoftMoeWorkspace<double> workspace;
  layer.forward(x, y, workspace);
  EXPECT_NEAR(workspace.logits(0, 0), 1e-4 / std::sqrt(1e-8 + 1e-6) / std::sqrt(1 + 1e-6), 1e-15);
}

TEST(SoftMoe, PermutingTokensPermutesTheirOutputs) {
  const Bank bank = test_support::random_bank<Bank>({.num_experts = 3, .d_model = 6, .d_ff = 4}, 1);
  const moe::SoftMoe<Bank> layer({.phi = random_matrix<double>(3, 6, 2)}, bank);
  const auto x = random_matrix<double>(5, 6, 3);
  Matrix<double> y(5, 6);
  Matrix<double> reversed(5, 6);
  layer.forward(x, y);
  layer.forward(x.colwise().reverse().eval(), reversed);
  EXPECT_TRUE(reversed.colwise().reverse().isApprox(y, 1e-13));
  Matrix<double> none(0, 6);
  layer.forward(Matrix<double>(0, 6), none);
}

TEST(SoftMoe, RefusesWhatCannotWork) {
  const Bank bank({.num_experts = 3, .d_model = 6, .d_ff = 4});
  using Layer = moe::SoftMoe<Bank>;
  EXPECT_THROW(Layer({.phi = Matrix<double>(4, 6)}, bank), std::invalid_argument);
  EXPECT_THROW(Layer({.phi = Matrix<double>(3, 5)}, bank), moe::ShapeError);
  const Layer layer({.phi = random_matrix<double>(3, 6, 2)}, bank);
  Matrix<double> y(2, 5);
  EXPECT_THROW(layer.forward(Matrix<double>(2, 6), y), moe::ShapeError);
}

TEST(SoftMoe, TheBitsDoNotDependOnTheNumberOfThreads) {
  // Large enough for a product to be cut along every dimension.
  using FloatBank = moe::GeluExperts<float>;
  const FloatBank bank =
      test_support::random_bank<FloatBank>({.num_experts = 4, .d_model = 500, .d_ff = 20}, 1);
  moe::SoftMoe<FloatBank> layer({.phi = random_matrix<float>(64, 500, 2)}, bank);
  const auto x = random_matrix<float>(600, 500, 3);
  const auto dy = random_matrix<float>(600, 500, 4);
  std::vector<float> first;
  for (const int threads : {1, 2, 3, 7}) {
    const test_support::ScopedThreads scope(threads);
    Matrix<float> y(600, 500);
    Matrix<float> dx(600, 500);
    moe::SoftMoeTape<float> tape;
    layer.forward(x, y, tape);
    auto gradients = layer.gradients();
    layer.backward(x, tape, dy, dx, gradients);
    std::vector<float> all(y.data(), y.data() + y.size());
    all.insert(all.end(), dx.data(), dx.data() + dx.size());
    all.insert(all.end(), gradients.phi.data(), gradients.phi.data() + gradients.phi.size());
    all.push_back(gradients.scale);
    for (const auto part : gradients.experts.values())
      all.insert(all.end(), part.begin(), part.end());
    if (first.empty()) first = all;
    EXPECT_TRUE(all == first) << threads << " threads";
  }
}

TEST(SoftMoe, RefusesWhatDoesNotBelongTogether) {
  const Bank bank = test_support::random_bank<Bank>({.num_experts = 3, .d_model = 6, .d_ff = 4}, 1);
  moe::SoftMoe<Bank> layer({.phi = random_matrix<double>(6, 6, 2)}, bank);
  const moe::SoftMoe<Bank> other = layer;
  const auto x = random_matrix<double>(9, 6, 3);
  const auto wrong = random_matrix<double>(8, 6, 3);
  Matrix<double> y(9, 6);
  Matrix<double> dx(9, 6);
  moe::SoftMoeTape<double> tape;
  layer.forward(x, y, tape);
  auto gradients = layer.gradients();
  EXPECT_THROW(other.backward(x, tape, x, dx, gradients), std::invalid_argument);
  EXPECT_THROW(layer.backward(wrong, tape, x, dx, gradients), moe::ShapeError);
  EXPECT_THROW(layer.backward(x, tape, wrong, dx, gradients), moe::ShapeError);
  layer.experts() = Bank({.num_experts = 3, .d_model = 6, .d_ff = 40});
  auto of_wider = layer.gradients();
  EXPECT_THROW(layer.backward(x, tape, x, dx, of_wider), std::invalid_argument);
  const Bank unweighted({.num_experts = 3,
                         .d_model = 6,
                         .d_ff = 4,
                         .biases = true,
                         .down_bias = moe::DownBias::unweighted});
  EXPECT_THROW(moe::SoftMoe<Bank>({.phi = random_matrix<double>(6, 6, 2)}, unweighted),
               std::invalid_argument);
  const Matrix<double> none(0, 6);
  Matrix<double> nothing(0, 6);
  moe::SoftMoe<Bank> empty({.phi = random_matrix<double>(6, 6, 2)}, bank);
  empty.forward(none, nothing, tape);
  empty.backward(none, tape, none, nothing, gradients);
  EXPECT_TRUE(gradients.phi.isZero(0));
}

TEST(SoftMoe, HasTheGradientsThatDifferencesHave) {
  Bank bank = test_support::random_bank<Bank>({.num_experts = 3, .d_model = 6, .d_ff = 4}, 1);
  moe::SoftMoe<Bank> layer({.phi = random_matrix<double>(6, 6, 2), .scale = 3}, bank);
  Matrix<double> x = random_matrix<double>(9, 6, 3);
  const auto dy = random_matrix<double>(9, 6, 4);
  Matrix<double> y(9, 6);
  Matrix<double> dx(9, 6);
  moe::SoftMoeTape<double> tape;
  auto gradients = layer.gradients();
  EXPECT_THROW(layer.backward(x, tape, dy, dx, gradients), std::invalid_argument);
  layer.forward(x, y, tape);
  Matrix<double> without(9, 6);
  layer.forward(x, without);
  EXPECT_EQ(y, without);
  layer.backward(x, tape, dy, dx, gradients);
  EXPECT_THROW(layer.backward(x, tape, dy, dx, gradients), std::invalid_argument) << "used";
  const auto loss = [&] {
    layer.forward(x, y);
    return (y.array() * dy.array()).sum();
  };
  const auto check = [&](const char* what, double* values, const double* slopes, Index size) {
    test_support::expect_some_slopes(what, values, slopes, static_cast<std::size_t>(size), loss);
  };
  check("x", x.data(), dx.data(), x.size());
  check("phi", layer.weights().phi.data(), gradients.phi.data(), gradients.phi.size());
  check("scale", &layer.weights().scale, &gradients.scale, 1);
  for (std::size_t i = 0; i < 2; ++i)
    check("experts", layer.experts().values()[i].data(), gradients.experts.values()[i].data(),
          static_cast<Index>(gradients.experts.values()[i].size()));
}

}  // namespace soft_moe_test
