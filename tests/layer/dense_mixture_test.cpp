// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/feed_forward.hpp>
#include <moe/fwd.hpp>
#include <moe/layer/dense_mixture.hpp>
#include <moe/layer/sparse_moe.hpp>
#include <moe/losses/logit_losses.hpp>
#include <moe/routing/group_router.hpp>
#include <moe/routing/gshard_router.hpp>
#include <moe/routing/hash_router.hpp>
#include <moe/routing/modality_router.hpp>
#include <moe/routing/sparse_mixer_router.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/differences.hpp"
#include "support/layers.hpp"
#include "support/threads.hpp"

namespace dense_mixture_test {

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

TEST(MixtureError, OfATargetThatNoExpertCanReachIsInfinite) {
  Setting s;
  s.target.setConstant(1e200);  // Whose distance's square is too large for a number.
  const moe::DenseMixture<Router, Bank> layer(s.router, s.bank);
  Matrix<double> y(9, 6);
  moe::Workspace<double> workspace;
  const auto& routing = layer.forward(s.x, y, workspace);
  const auto errors =
      moe::losses::mixture_error(MixtureError::likelihood, routing, workspace.rows, s.target);
  for (Index t = 0; t < 9; ++t) EXPECT_EQ(errors[t], std::numeric_limits<double>::infinity());
}

TEST(DenseMixture, TheBitsDoNotDependOnTheNumberOfThreads) {
  const Setting s;
  const moe::DenseMixture<Router, Bank> layer(s.router, s.bank);
  const auto x = random_matrix<double>(200, 6, 3);
  std::vector<double> first;
  for (const int threads : {1, 2, 3, 7}) {
    const test_support::ScopedThreads scope(threads);
    Matrix<double> y(200, 6);
    Matrix<double> dx(200, 6);
    moe::MixtureTape<double> tape;
    moe::Scratch scratch;
    layer.forward(x, y, tape, scratch);
    auto gradients = layer.gradients();
    layer.backward(x, tape, x, dx, gradients, scratch);
    std::vector<double> all(dx.data(), dx.data() + dx.size());
    const Matrix<double>& of_router = gradients.router.weight;
    all.insert(all.end(), of_router.data(), of_router.data() + of_router.size());
    for (const auto part : gradients.experts.values())
      all.insert(all.end(), part.begin(), part.end());
    if (first.empty()) first = all;
    EXPECT_TRUE(all == first) << threads << " threads";
  }
}

TEST(DenseMixture, RefusesWhatDoesNotBelongTogether) {
  const Setting s;
  moe::DenseMixture<Router, Bank> layer(s.router, s.bank);
  const moe::DenseMixture<Router, Bank> other = layer;
  Matrix<double> y(9, 6);
  Matrix<double> dx(9, 6);
  const auto wrong = random_matrix<double>(8, 6, 3);
  moe::MixtureTape<double> tape;
  moe::Scratch scratch;
  layer.forward(s.x, y, tape, scratch);
  auto gradients = layer.gradients();
  EXPECT_THROW(other.backward(s.x, tape, s.x, dx, gradients, scratch), std::invalid_argument);
  EXPECT_THROW(layer.backward(wrong, tape, s.x, dx, gradients, scratch), moe::ShapeError);
  EXPECT_THROW(layer.backward(s.x, tape, wrong, dx, gradients, scratch), moe::ShapeError);
  for (auto* const m : {&tape.d_rows, &tape.d_weights, &tape.d_logits, &tape.d_scored}) {
    const moe::GrowingMatrix<double> kept = *m;
    m->resize(9, 2);
    EXPECT_THROW(layer.backward(s.x, tape, s.x, dx, gradients, scratch), moe::ShapeError);
    *m = kept;
  }
  for (const auto part : gradients.experts.values())
    for (const double value : part) ASSERT_EQ(value, 0);
  const Bank unweighted({.num_experts = 4,
                         .d_model = 6,
                         .d_ff = 4,
                         .biases = true,
                         .down_bias = moe::DownBias::unweighted});
  EXPECT_THROW((moe::DenseMixture<Router, Bank>(s.router, unweighted)), std::invalid_argument);
  moe::Matrix<moe::ExpertIndex> table(1, 1);
  table << 0;
  const moe::DenseMixture<moe::HashRouter<double>, Bank> without({6, 4, table}, s.bank);
  const std::vector<std::int32_t> ids(9, 0);
  moe::Workspace<double> workspace;
  EXPECT_THROW(without.forward(s.x, y, workspace, {.token_ids = ids}), std::invalid_argument);
}

/// Of all that the tokens are, by differences, where the options name what the router needs.
/// Returns the router's gradients.
template <class RouterT>
auto expect_slopes_behind(const RouterT& router, const moe::RouteOptions& options) {
  Setting s;
  const moe::DenseMixture<RouterT, Bank> layer(router, s.bank);
  Matrix<double> y(9, 6);
  Matrix<double> dx(9, 6);
  moe::Scratch scratch;
  moe::MixtureTape<double> tape;
  layer.forward(s.x, y, tape, scratch, options);
  auto gradients = layer.gradients();
  layer.backward(s.x, tape, s.target, dx, gradients, scratch);
  moe::Workspace<double> workspace;
  test_support::expect_some_slopes("x", s.x.data(), dx.data(), 54, [&] {
    layer.forward(s.x, y, workspace, options);
    return (y.array() * s.target.array()).sum();
  });
  return gradients.router;
}

/// The same, and of the weight (E, D) that `make` makes a router of.
template <class Make>
void expect_slopes_of_router(const Make& make, const moe::RouteOptions& options) {
  const Setting s;
  Matrix<double> weight = random_matrix<double>(4, 6, 1);
  using Layer = moe::DenseMixture<decltype(make(weight)), Bank>;
  const auto gradients = expect_slopes_behind(make(weight), options);
  Matrix<double> y(9, 6);
  moe::Workspace<double> workspace;
  test_support::expect_some_slopes("weight", weight.data(), gradients.weight.data(), 24, [&] {
    Layer(make(weight), s.bank).forward(s.x, y, workspace, options);
    return (y.array() * s.target.array()).sum();
  });
}

TEST(DenseMixture, GoesBackThroughRoutersOfTwoExperts) {
  using Gshard = moe::GShardRouter<double>;
  const std::vector<std::int32_t> groups{0, 1, 1, 0, 0, 1, 0, 1, 1};
  const auto gshard = [](const Matrix<double>& weight) {
    return Gshard(Router({.d_model = 6, .num_experts = 4, .top_k = 2}, {.weight = weight}));
  };
  expect_slopes_of_router(gshard, {.training = true});
  expect_slopes_of_router(
      [&](const Matrix<double>& weight) { return moe::GroupRouter<Gshard>(gshard(weight)); },
      {.training = true, .token_groups = groups});
  const auto mixer = [](const Matrix<double>& weight) {
    return moe::SparseMixerRouter<double>({.d_model = 6, .num_experts = 4}, weight);
  };
  for (const bool training : {false, true}) expect_slopes_of_router(mixer, {.training = training});
}

TEST(DenseMixture, GoesBackThroughRoutersOfTypesAndGroups) {
  const auto make = [](Index size, std::uint64_t seed) {
    return Router({.d_model = 6, .num_experts = size, .top_k = 1, .rule = {}},
                  {.weight = random_matrix<double>(size, 6, seed)});
  };
  const std::vector<std::int32_t> kinds{0, 1, 1, 0, 0, 1, 0, 1, 1};
  expect_slopes_behind(moe::ModalityRouter<Router>(4, {{make(3, 1), 0}, {make(2, 2), 2}}),
                       {.token_types = kinds});
  expect_slopes_behind(moe::GroupRouter<Router>(make(4, 1)), {.token_groups = kinds});
}

TEST(MixtureError, TheLikelihoodsGradientIsFiniteWhereAnExpertHasNoWeight) {
  moe::Routing<float> routing;
  routing.resize(1, 2, 2, {});
  routing.experts << 0, 1;
  routing.weights << 1, 0;
  const Matrix<float> rows = (Matrix<float>(2, 1) << 50, 0).finished();
  const Matrix<float> target = Matrix<float>::Constant(1, 1, 0.5F);
  Matrix<float> d_rows = Matrix<float>::Zero(2, 1);
  Matrix<float> d_weights = Matrix<float>::Zero(1, 2);
  moe::losses::mixture_error<float>(MixtureError::likelihood, routing, rows, target,
                                    {d_rows, d_weights});
  EXPECT_TRUE(d_rows.allFinite());
  EXPECT_TRUE(d_weights.allFinite());
  EXPECT_FLOAT_EQ(d_rows(0, 0), 49.5F);
  EXPECT_THROW(moe::losses::mixture_error<float>(MixtureError::likelihood, routing, rows, target,
                                                 {d_rows, d_weights, NAN}),
               std::invalid_argument);
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

}  // namespace dense_mixture_test
