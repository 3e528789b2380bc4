// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Several forwards of one layer at once, forwards within a caller's region, and exceptions from a
// user's parts. Most of it is there for ThreadSanitizer.
#include <atomic>
#include <omp.h>
#include <stdexcept>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/custom_experts.hpp>
#include <moe/layer/sparse_moe.hpp>

#include "support/small_layer.hpp"
#include "support/threads.hpp"

namespace concurrency_test {

using moe::Index;
using moe::Matrix;
using moe::MatrixView;
using test_support::random_matrix;
using test_support::ScopedThreads;

TEST(Concurrency, OneConstLayerRunsSeveralForwardsEachWithItsOwnWorkspace) {
  const ScopedThreads scoped(2);
  auto layer = test_support::small_layer<float>({.shared = true, .capacity = {.factor = 1.5}});
  std::vector<Matrix<float>> inputs;
  std::vector<Matrix<float>> expected;
  for (std::uint64_t i = 0; i < 4; ++i) {
    inputs.push_back(random_matrix<float>(40 + static_cast<Index>(i), layer.d_model(), i));
    expected.emplace_back(inputs.back().rows(), layer.d_model());
    layer.forward(inputs.back(), expected.back());
  }
  const auto& shared_layer = std::as_const(layer);
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      moe::Workspace<float> workspace;
      Matrix<float> y(inputs[i].rows(), inputs[i].cols());  // (T, D)
      for (int repetition = 0; repetition < 5; ++repetition) {
        y.setZero();
        const auto& routing = shared_layer.forward(inputs[i], y, workspace);
        if (y != expected[i] || routing.tokens() != y.rows()) ++wrong[i];
        const moe::Routing<float> copy = routing;
        shared_layer.forward(inputs[i], copy, y, workspace);
        if (y != expected[i]) ++wrong[i];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(Concurrency, WithinACallersRegionAForwardRunsOnItsThread) {
  const ScopedThreads scoped(2);
  auto layer = test_support::small_layer<float>({});
  const auto x = random_matrix<float>(40, layer.d_model(), 3);
  Matrix<float> expected(40, layer.d_model());  // (T, D)
  layer.forward(x, expected);
  const auto& shared_layer = std::as_const(layer);
  std::atomic<int> wrong{0};
#pragma omp parallel num_threads(3)
  {
    moe::Workspace<float> workspace;
    Matrix<float> y(40, shared_layer.d_model());  // (T, D)
    shared_layer.forward(x, y, workspace);
    if (y != expected) ++wrong;
  }
  EXPECT_EQ(wrong, 0);
}

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct FailingExpert {
  using Scalar = float;
  bool fails = false;

  Index d_model() const { return 4; }
  void forward(MatrixView<const float> x, MatrixView<float> y) const {
    if (fails) throw Failure("an expert failed");
    y.map() = x.map();
  }
};

struct FailingRouter {
  using Scalar = float;

  Index d_model() const { return 4; }
  Index num_experts() const { return 3; }
  Index top_k() const { return 1; }
  void route(MatrixView<const float> /*x*/, moe::RouteOptions /*options*/,
             moe::Routing<float>& /*routing*/) const {
    throw Failure("the router failed");
  }
};

TEST(Concurrency, WhatAnExpertThrowsInTheRegionReachesTheCallerOfForward) {
  std::mt19937_64 rng(1);
  const auto router =
      moe::TopKRouter<float>::random({.d_model = 4, .num_experts = 3, .top_k = 1}, rng);
  moe::SparseMoe layer{router, moe::CustomExperts(std::vector<FailingExpert>(3))};
  const auto x = random_matrix<float>(60, 4, 3);
  for (const int threads : test_support::thread_counts) {
    const ScopedThreads scoped(threads);
    Matrix<float> y = Matrix<float>::Constant(60, 4, 7);  // (T, D)
    layer.experts().expert(1).fails = true;
    try {
      layer.forward(x, y);
      FAIL() << "nothing was thrown";
    } catch (const Failure& failure) {
      EXPECT_STREQ(failure.what(), "an expert failed");
    }
    EXPECT_TRUE((y.array() == 7).all());
    layer.experts().expert(1).fails = false;
    EXPECT_NO_THROW(layer.forward(x, y));
  }
}

TEST(Concurrency, WhatARouterThrowsReachesTheCallerOfForward) {
  moe::SparseMoe layer{FailingRouter{}, moe::CustomExperts(std::vector<FailingExpert>(3))};
  Matrix<float> x = random_matrix<float>(5, 4, 3);
  Matrix<float> y(5, 4);  // (T, D)
  EXPECT_THROW(layer.forward(x, y), Failure);
}

}  // namespace concurrency_test
