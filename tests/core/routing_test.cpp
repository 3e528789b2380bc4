// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include <moe/core/routing.hpp>

namespace routing_test {

template <class Scalar>
class RoutingValue : public testing::Test {
 protected:
  /// Two tokens, two of three experts.
  static moe::Routing<Scalar> valid() {
    moe::Routing<Scalar> routing;
    routing.resize(2, 3, 2, {});
    routing.experts << 0, 2, 1, 0;
    routing.weights << Scalar(0.75), Scalar(0.25), Scalar(0.5), Scalar(0.5);
    routing.logits.setZero();
    routing.scores.setZero();
    return routing;
  }

  static std::string message(const moe::Routing<Scalar>& routing) {
    try {
      moe::detail::check_routing("f", routing);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(RoutingValue, Scalars);

TYPED_TEST(RoutingValue, ResizesToWhatIsKept) {
  for (const bool logits : {false, true}) {
    for (const bool scores : {false, true}) {
      moe::Routing<TypeParam> routing;
      routing.resize(5, 8, 2, {.keep_logits = logits, .keep_scores = scores});
      EXPECT_EQ(routing.tokens(), 5);
      EXPECT_EQ(routing.top_k(), 2);
      EXPECT_EQ(routing.num_experts, 8);
      EXPECT_EQ(routing.weights.rows(), 5);
      EXPECT_EQ(routing.weights.cols(), 2);
      EXPECT_EQ(routing.logits.rows(), logits ? 5 : 0);
      EXPECT_EQ(routing.logits.cols(), logits ? 8 : 0);
      EXPECT_EQ(routing.scores.rows(), scores ? 5 : 0);
      EXPECT_EQ(routing.scores.cols(), scores ? 8 : 0);
    }
  }
}

TYPED_TEST(RoutingValue, AcceptsWhatIsValid) {
  moe::Routing<TypeParam> routing = this->valid();
  EXPECT_EQ(this->message(routing), "");
  routing.logits.resize(0, 0);
  routing.scores.resize(0, 0);
  EXPECT_EQ(this->message(routing), "");
  routing.weights(0, 0) = -3;
  EXPECT_EQ(this->message(routing), "") << "a weight may have any sign";
  routing.resize(0, 3, 2, {});
  EXPECT_EQ(this->message(routing), "");
}

TYPED_TEST(RoutingValue, RejectsWrongSizes) {
  const auto rejects = [&](auto&& change) {
    moe::Routing<TypeParam> routing = this->valid();
    change(routing);
    EXPECT_THROW(moe::detail::check_routing("f", routing), moe::ShapeError);
  };
  rejects([](auto& r) { r.weights.resize(3, 2); });
  rejects([](auto& r) { r.weights.resize(2, 1); });
  rejects([](auto& r) { r.logits.resize(1, 3); });
  rejects([](auto& r) { r.logits.resize(2, 4); });
  rejects([](auto& r) { r.scores.resize(3, 3); });
  rejects([](auto& r) { r.scores.resize(2, 2); });
}

TYPED_TEST(RoutingValue, AnUnusedSlotHasWeightZero) {
  moe::Routing<TypeParam> routing = this->valid();
  routing.experts(1, 0) = moe::no_expert;
  routing.weights(1, 0) = 0;
  EXPECT_EQ(this->message(routing), "");
  routing.weights(1, 0) = 1;
  EXPECT_EQ(this->message(routing), "f: routing.weights(1, 0) must be 0: the slot has no expert");
}

TYPED_TEST(RoutingValue, RejectsExpertsOutOfRange) {
  for (const int expert : {-2, 3, std::numeric_limits<int>::max()}) {
    moe::Routing<TypeParam> routing = this->valid();
    routing.experts(1, 0) = expert;
    EXPECT_EQ(this->message(routing),
              "f: routing.experts(1, 0): expected 0 to 2, got " + std::to_string(expert));
  }
}

TYPED_TEST(RoutingValue, RejectsWeightsThatAreNotFinite) {
  using Limits = std::numeric_limits<TypeParam>;
  for (const TypeParam bad : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN()}) {
    moe::Routing<TypeParam> routing = this->valid();
    routing.weights(0, 1) = bad;
    EXPECT_EQ(this->message(routing), "f: routing.weights(0, 1) is not finite");
  }
}

}  // namespace routing_test
