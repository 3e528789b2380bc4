// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include <gtest/gtest.h>

#include <moe/experts/feed_forward.hpp>
#include <moe/fwd.hpp>
#include <moe/layer/dense_mixture.hpp>
#include <moe/layer/sparse_moe.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/layers.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using moe::losses::MixtureError;
using test_support::random_matrix;
using Bank = moe::ReluExperts<double>;
using Router = moe::TopKRouter<double>;

struct Setting {
  Router router{{.d_model = 6, .num_experts = 4, .top_k = 4, .rule = {}},
                {.weight = random_matrix<double>(4, 6, 1)}};
  Bank bank = test_support::random_bank<Bank>(
      {.num_experts = 4, .d_model = 6, .d_ff = 5, .biases = true}, 2);
  Matrix<double> x = random_matrix<double>(9, 6, 3);
  Matrix<double> target = random_matrix<double>(9, 6, 4);
};

TEST(DenseMixture, IsASparseLayerThatChoosesAll) {
  const Setting s;
  const moe::DenseMixture<Router, Bank> dense(s.router, s.bank);
  moe::SparseMoe<Router, Bank> sparse(s.router, s.bank);
  Matrix<double> a(9, 6);
  Matrix<double> b(9, 6);
  moe::Workspace<double> workspace;
  const auto& routing = dense.forward(s.x, a, workspace);
  sparse.forward(s.x, b);
  EXPECT_TRUE(a.isApprox(b, 1e-13));
  for (Index t = 0; t < 9; ++t) {
    EXPECT_NEAR(routing.weights.row(t).sum(), 1, 1e-14);
    for (Index e = 0; e < 4; ++e) EXPECT_EQ(routing.experts(t, e), e);
  }
}

TEST(MixtureError, AgreesWithTheThreeFormulas) {
  const Setting s;
  const moe::DenseMixture<Router, Bank> layer(s.router, s.bank);
  Matrix<double> y(9, 6);
  moe::Workspace<double> workspace;
  const auto& routing = layer.forward(s.x, y, workspace);
  const auto error = [&](MixtureError kind) {
    return moe::losses::mixture_error(kind, routing, workspace.rows, s.target);
  };
  const auto cooperative = error(MixtureError::cooperative);
  const auto competitive = error(MixtureError::competitive);
  const auto likelihood = error(MixtureError::likelihood);
  for (Index t = 0; t < 9; ++t) {
    double expected = 0;
    double mixture = 0;
    for (Index e = 0; e < 4; ++e) {
      const double distance = (s.target.row(t) - workspace.rows.row(e * 9 + t)).squaredNorm();
      expected += routing.weights(t, e) * distance;
      mixture += routing.weights(t, e) * std::exp(-distance / 2);
    }
    EXPECT_NEAR(competitive[t], expected, 1e-13 * expected);
    EXPECT_NEAR(likelihood[t], -std::log(mixture), 1e-12);
    const double rest = (s.target.row(t) - y.row(t)).squaredNorm();
    EXPECT_NEAR(cooperative[t], rest, 1e-12 * rest);
  }
}

TEST(MixtureError, LikelihoodDoesNotUnderflow) {
  Setting s;
  s.target.setConstant(1e4);
  const moe::DenseMixture<Router, Bank> layer(s.router, s.bank);
  Matrix<double> y(9, 6);
  moe::Workspace<double> workspace;
  const auto& routing = layer.forward(s.x, y, workspace);
  EXPECT_TRUE(
      moe::losses::mixture_error(MixtureError::likelihood, routing, workspace.rows, s.target)
          .allFinite());
  EXPECT_THROW(moe::losses::mixture_error(MixtureError::likelihood, routing, workspace.rows,
                                          s.target.topRows(3).eval()),
               moe::ShapeError);
}

}  // namespace
