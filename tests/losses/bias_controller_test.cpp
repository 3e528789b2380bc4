// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/bias_controller.hpp>

namespace bias_controller_test {

using moe::Index;

TEST(BiasController, MovesEachBiasTowardsTheMeanLoad) {
  moe::Vector<float> bias = moe::Vector<float>::Zero(4);
  const std::vector<Index> load{5, 1, 3, 3};  // mean 3
  moe::BiasController{}.update(std::span<const Index>(load), bias);
  EXPECT_EQ(bias, (moe::Vector<float>(4) << -1e-3F, 1e-3F, 0, 0).finished());
  moe::BiasController{.rate = 0.5, .rule = moe::BiasRule::proportional}.update(
      std::span<const Index>(load), bias);
  EXPECT_EQ(bias, (moe::Vector<float>(4) << -1e-3F - 1, 1e-3F + 1, 0, 0).finished());
}

TEST(BiasController, RefusesAnotherNumberOfExperts) {
  moe::Vector<double> bias = moe::Vector<double>::Zero(3);
  const std::vector<Index> load{1, 2};
  EXPECT_THROW(moe::BiasController{}.update(std::span<const Index>(load), bias), moe::ShapeError);
}

}  // namespace bias_controller_test
