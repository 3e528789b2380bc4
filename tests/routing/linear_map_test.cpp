// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <moe/core/types.hpp>
#include <moe/experts/activation.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/layer/shared_experts.hpp>
#include <moe/routing/base_router.hpp>
#include <moe/routing/linear_map.hpp>

namespace linear_map_test {

using moe::Index;
using moe::Matrix;
using moe::detail::LinearMap;

template <class Scalar>
class LinearMapTest : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(LinearMapTest, Scalars);

TYPED_TEST(LinearMapTest, GivesItsMatrixBack) {
  for (const Index outputs : {1, 31, 32, 33, 70}) {
    const Matrix<TypeParam> weight = Matrix<TypeParam>::Random(outputs, 19);
    const LinearMap<TypeParam> map(weight);
    EXPECT_FALSE(map.empty());
    EXPECT_EQ(map.outputs(), outputs);
    EXPECT_EQ(map.inner(), 19);
    EXPECT_EQ(map.weight(), weight);
  }
}

TYPED_TEST(LinearMapTest, IsEmptyWithoutAMatrix) {
  EXPECT_TRUE(LinearMap<TypeParam>().empty());
  EXPECT_EQ(LinearMap<TypeParam>().weight().size(), 0);
  EXPECT_TRUE(LinearMap<TypeParam>(Matrix<TypeParam>()).empty());
}

TYPED_TEST(LinearMapTest, AddsToWhatIsThere) {
  const Matrix<TypeParam> weight = Matrix<TypeParam>::Random(37, 11);  // (E, D)
  const Matrix<TypeParam> x = Matrix<TypeParam>::Random(17, 11);       // (T, D)
  Matrix<TypeParam> y = Matrix<TypeParam>::Constant(17, 37, 2);        // (T, E)
  LinearMap<TypeParam>(weight).run(x, y, true);
  const Matrix<TypeParam> expected = (x * weight.transpose()).array() + TypeParam(2);
  EXPECT_LE((y - expected).cwiseAbs().maxCoeff(), TypeParam(1e-5));
}

TEST(LinearMap, IsWhatRoutersAndGatesGiveBack) {
  const Matrix<float> weight = Matrix<float>::Random(5, 12);
  EXPECT_EQ(moe::BaseRouter<float>(weight).centroids(), weight);
  using Bank = moe::FeedForwardExperts<float, moe::SwiGlu>;
  const moe::ExpertsConfig config{.num_experts = 5, .d_model = 12, .d_ff = 3};
  const moe::SharedExperts<Bank> gated(Bank(config), weight);
  EXPECT_TRUE(gated.has_gate());
  EXPECT_EQ(gated.gate(), weight);
  const moe::SharedExperts<Bank> plain{Bank(config)};
  EXPECT_FALSE(plain.has_gate());
  EXPECT_EQ(plain.gate().size(), 0);
}

}  // namespace linear_map_test
