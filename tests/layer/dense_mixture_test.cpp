// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <stdexcept>

#include <gtest/gtest.h>

#include <moe/experts/feed_forward.hpp>
#include <moe/fwd.hpp>
#include <moe/layer/dense_mixture.hpp>
#include <moe/layer/sparse_moe.hpp>
#include <moe/losses/logit_losses.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/differences.hpp"
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

TEST(DenseMixture, HasTheGradientsThatDifferencesHave) {
  for (const auto kind :
       {MixtureError::cooperative, MixtureError::competitive, MixtureError::likelihood}) {
    for (const moe::ScoreFunction score :
         {moe::ScoreFunction::softmax, moe::ScoreFunction::sigmoid}) {
      Setting s;
      Matrix<double> weight = random_matrix<double>(4, 6, 1);
      moe::DenseMixture<Router, Bank> layer(s.router, s.bank);
      const auto dy = random_matrix<double>(9, 6, 5);
      Matrix<double> y(9, 6);
      Matrix<double> dx(9, 6);
      moe::MixtureTape<double> tape;
      moe::Scratch scratch;
      const auto run = [&](bool with_gradient) {
        layer.router() =
            Router({.d_model = 6, .num_experts = 4, .top_k = 4, .rule = {.score = score}},
                   {.weight = weight});
        const auto& routing = layer.forward(s.x, y, tape, scratch);
        moe::losses::MixtureErrorGradient<double> gradient{.coefficient = 0.3};
        moe::losses::LossGradient<double> of_logits{.coefficient = 0.1};
        if (with_gradient) {
          gradient.rows = tape.d_rows;
          gradient.weights = tape.d_weights;
          of_logits.sum = tape.d_logits;
        }
        return (y.array() * dy.array()).sum() + 0.1 * moe::losses::z_loss(routing, {}, of_logits) +
               0.3 * moe::losses::mixture_error(kind, routing, tape.rows, s.target, gradient).sum();
      };
      run(true);
      auto gradients = layer.gradients();
      layer.backward(s.x, tape, dy, dx, gradients, scratch);
      EXPECT_THROW(layer.backward(s.x, tape, dy, dx, gradients, scratch), std::invalid_argument);
      const auto loss = [&] { return run(false); };
      const auto check = [&](const char* what, double* values, const double* slopes, Index size) {
        test_support::expect_some_slopes(what, values, slopes, static_cast<std::size_t>(size),
                                         loss);
      };
      check("x", s.x.data(), dx.data(), s.x.size());
      check("router", weight.data(), gradients.router.weight.data(), weight.size());
      for (std::size_t i = 0; i < 4; ++i)
        check("experts", layer.experts().values()[i].data(), gradients.experts.values()[i].data(),
              static_cast<Index>(gradients.experts.values()[i].size()));
    }
  }
}

}  // namespace
