// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include <moe/experts/activation.hpp>

#include "support/reference.hpp"

namespace activation_test {

template <class Scalar>
class ActivationOf : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ActivationOf, Scalars);

template <class Scalar, class Activation>
void expect_formula(const Activation& activation, double (*formula)(double)) {
  for (int i = -160; i <= 160; ++i) {
    const Scalar z = static_cast<Scalar>(i) / 16;
    const double exact = formula(static_cast<double>(z));
    // A handful of roundings; in the tails of the GELUs they are of the argument of an exponential,
    // whose size is at most z^2 / 2 <= 50, or of 1 + tanh, whose size is 1.
    const double tolerance = std::numeric_limits<Scalar>::epsilon() *
                             (60 * std::fabs(exact) + 2 * std::fabs(static_cast<double>(z)));
    EXPECT_NEAR(static_cast<double>(activation(z)), exact, tolerance) << z;
  }
}

TYPED_TEST(ActivationOf, FollowsItsFormula) {
  expect_formula<TypeParam>(moe::Relu{}, reference::relu);
  expect_formula<TypeParam>(moe::Silu{}, reference::silu);
  expect_formula<TypeParam>(moe::Gelu{}, reference::gelu);
  expect_formula<TypeParam>(moe::GeluTanh{}, reference::gelu_tanh);
}

template <class Scalar, class Activation>
void expect_limits(const Activation& activation) {
  const Scalar infinity = std::numeric_limits<Scalar>::infinity();
  EXPECT_EQ(activation(infinity), infinity);
  EXPECT_EQ(activation(-infinity), 0);
  EXPECT_EQ(activation(Scalar(0)), 0);
  EXPECT_EQ(activation(std::numeric_limits<Scalar>::lowest()), 0);
  EXPECT_TRUE(std::isnan(activation(std::numeric_limits<Scalar>::quiet_NaN())));
}

TYPED_TEST(ActivationOf, HasItsLimitsAtInfinityAndKeepsNan) {
  expect_limits<TypeParam>(moe::Relu{});
  expect_limits<TypeParam>(moe::Silu{});
  expect_limits<TypeParam>(moe::Gelu{});
  expect_limits<TypeParam>(moe::GeluTanh{});
}

TYPED_TEST(ActivationOf, AGateMultipliesTheUpValue) {
  const TypeParam gate = TypeParam(0.75);
  const TypeParam up = TypeParam(-3);
  EXPECT_EQ(moe::SwiGlu{}(gate, up), moe::Silu{}(gate)*up);
  EXPECT_EQ(moe::GeGlu{}(gate, up), moe::Gelu{}(gate)*up);
  EXPECT_EQ(moe::GeGluTanh{}(gate, up), moe::GeluTanh{}(gate)*up);
  EXPECT_EQ(moe::ReGlu{}(gate, up), gate * up);
  EXPECT_EQ(moe::ReGlu{}(-gate, up), 0);
}

TEST(ClampedSwiGlu, GivesTheKnownResults) {
  const moe::ClampedSwiGlu act;
  EXPECT_NEAR(act(.5, -.25), .262791, 0.5001e-6);
  EXPECT_NEAR(act(8.0, 1.0), 13.999906, 0.5001e-6);
  EXPECT_NEAR(act(-9.0, -8.0), .000012, 0.5001e-6);
}

TEST(ClampedSwiGlu, ClampsTheGateAboveAndTheUpValueOnBothSides) {
  const moe::ClampedSwiGlu act;
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(act(8.0, 1.0), act(7.0, 1.0));
  EXPECT_EQ(act(infinity, 1.0), act(7.0, 1.0));
  EXPECT_EQ(act(1.0, 9.0), act(1.0, 7.0));
  EXPECT_EQ(act(1.0, -infinity), act(1.0, -7.0));
  EXPECT_EQ(act(-infinity, 1.0), 0);
  EXPECT_NE(act(-8.0, 1.0), act(-7.0, 1.0));
  EXPECT_TRUE(std::isnan(act(std::nan(""), 1.0)));
  EXPECT_TRUE(std::isnan(act(1.0, std::nan(""))));
  const moe::ClampedSwiGlu both{.clamps_gate_below = true};
  EXPECT_EQ(both(-8.0, 1.0), both(-7.0, 1.0));
  // DeepSeek-V4's form is SwiGLU with limits.
  const moe::ClampedSwiGlu v4{.alpha = 1, .limit = 10, .offset = 0};
  EXPECT_NEAR(v4(1.5, -2.5), moe::SwiGlu{}(1.5, -2.5), 1e-15);
  EXPECT_EQ(v4(12.0, 11.0), v4(10.0, 10.0));
}

TEST(ClampedSwiGlu, HasTheKnownSlopes) {
  const moe::ClampedSwiGlu act;
  constexpr double h = 1e-5;
  EXPECT_NEAR((act(.5 + h, -.25) - act(.5 - h, -.25)) / (2 * h), .659416, 1e-6);
  EXPECT_NEAR((act(.5, -.25 + h) - act(.5, -.25 - h)) / (2 * h), .350388, 1e-6);
}

}  // namespace activation_test
