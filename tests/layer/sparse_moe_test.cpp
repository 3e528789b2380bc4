// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/zero_cost_experts.hpp>
#include <moe/fwd.hpp>
#include <moe/layer/sparse_moe.hpp>
#include <moe/routing/presets.hpp>

#include "support/small_layer.hpp"
#include "support/threads.hpp"

namespace sparse_moe_test {

using moe::Capacity;
using moe::Index;
using moe::Matrix;
using moe::MatrixView;
using moe::Routing;
using moe::RoutingRule;
using moe::SharedExperts;
using test_support::Bank;
using test_support::Layer;
using test_support::random_bank;
using test_support::random_matrix;
using test_support::small_layer;
using test_support::SmallLayer;

template <class Scalar>
class SparseMoeOf : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SparseMoeOf, Scalars);

/// Compares an output with the reference on the routing that the layer used.
template <class Scalar>
void expect_reference(const Layer<Scalar>& layer, const Matrix<Scalar>& x,
                      const Routing<Scalar>& routing, const Matrix<Scalar>& y,
                      Index limit = Capacity::unlimited) {
  const auto experts = test_support::reference_experts(layer.experts());
  std::vector<reference::Expert> shared;
  if (layer.shared().bank()) shared = test_support::reference_experts(*layer.shared().bank());
  const reference::MatrixD exact = x.template cast<double>();  // (T, D)
  const reference::MatrixD expected =
      reference::mixture(exact, routing, experts, reference::silu, shared, limit);
  const double bound = reference::bound_of_mixture(exact, routing, experts, shared);
  // One more step for each slot that combine adds.
  const double roundings = test_support::roundings(layer.d_model(), layer.experts().d_ff()) +
                           static_cast<double>(routing.top_k());
  EXPECT_LE((y.template cast<double>() - expected).cwiseAbs().maxCoeff(),
            roundings * std::numeric_limits<Scalar>::epsilon() * bound);
}

TYPED_TEST(SparseMoeOf, AgreesWithTheReference) {
  RoutingRule on_input = moe::presets::mixtral();
  on_input.weight_target = moe::WeightTarget::input;
  const std::vector<RoutingRule> rules{
      moe::presets::mixtral(), moe::presets::olmoe(), on_input,
      moe::presets::deepseek_v3({.groups = 4, .groups_kept = 2, .scale = 2.5})};
  for (const RoutingRule& rule : rules) {
    for (const bool shared : {false, true}) {
      for (const double capacity : {0.0, 0.8}) {
        auto layer = small_layer<TypeParam>(
            {.rule = rule, .shared = shared, .capacity = {.factor = capacity}});
        const auto x = random_matrix<TypeParam>(50, layer.d_model(), 3);
        Matrix<TypeParam> y(50, layer.d_model());  // (T, D)
        y.setConstant(std::numeric_limits<TypeParam>::quiet_NaN());
        const Routing<TypeParam>& routing = layer.forward(x, y);
        EXPECT_EQ(layer.plan().dropped.empty(), capacity == 0);
        expect_reference(layer, x, routing, y, layer.capacity().rows(50, 2, 8));
      }
    }
  }
}

TYPED_TEST(SparseMoeOf, WithAllExpertsChosenIsTheDenseMixture) {
  auto layer = small_layer<TypeParam>({.top_k = 8, .rule = moe::presets::olmoe()});
  const auto x = random_matrix<TypeParam>(9, layer.d_model(), 3);
  Matrix<TypeParam> y(9, layer.d_model());  // (T, D)
  const Routing<TypeParam>& routing = layer.forward(x, y);
  // Weights are the softmax itself, in whatever order the experts were chosen.
  for (Index t = 0; t < 9; ++t)
    for (Index k = 0; k < 8; ++k)
      EXPECT_EQ(routing.weights(t, k), routing.scores(t, routing.experts(t, k)));
  Routing<TypeParam> dense;
  dense.resize(9, 8, 8, {});
  for (Index t = 0; t < 9; ++t) {
    std::iota(dense.experts.row(t).begin(), dense.experts.row(t).end(), 0);
    dense.weights.row(t) = routing.scores.row(t);
  }
  expect_reference(layer, x, dense, y);
}

TYPED_TEST(SparseMoeOf, OfEqualExpertsIsOneExpert) {
  auto layer = small_layer<TypeParam>({.rule = moe::presets::mixtral()});
  for (Index e = 1; e < 8; ++e) layer.experts().set_expert(e, layer.experts().expert(0).weights());
  const auto x = random_matrix<TypeParam>(9, layer.d_model(), 3);
  Matrix<TypeParam> y(9, layer.d_model());  // (T, D)
  layer.forward(x, y);
  Routing<TypeParam> single;
  single.resize(9, 8, 1, {});
  single.experts.setZero();
  single.weights.setOnes();
  const auto experts = test_support::reference_experts(layer.experts());
  const reference::MatrixD exact = x.template cast<double>();  // (T, D)
  // Weights that sum to one within three roundings, on top of the experts' own.
  const double tolerance = (test_support::roundings(layer.d_model(), layer.experts().d_ff()) + 5) *
                           std::numeric_limits<TypeParam>::epsilon() *
                           reference::bound_of_mixture(exact, single, experts);
  EXPECT_LE(
      (y.template cast<double>() - reference::mixture(exact, single, experts, reference::silu))
          .cwiseAbs()
          .maxCoeff(),
      tolerance);
}

TYPED_TEST(SparseMoeOf, PermutedTokensGivePermutedRows) {
  auto layer = small_layer<TypeParam>({.shared = true});
  const auto x = random_matrix<TypeParam>(40, layer.d_model(), 3);
  Matrix<TypeParam> y(40, layer.d_model());         // (T, D)
  Matrix<TypeParam> permuted(40, layer.d_model());  // (T, D)
  Matrix<TypeParam> result(40, layer.d_model());    // (T, D)
  layer.forward(x, y);
  for (Index t = 0; t < 40; ++t) permuted.row(t) = x.row(t * 7 % 40);
  layer.forward(permuted, result);
  for (Index t = 0; t < 40; ++t) EXPECT_EQ(result.row(t), y.row(t * 7 % 40)) << t;
}

TYPED_TEST(SparseMoeOf, ATokenHasTheSameBitsInAnyBatchAndForAnyThreads) {
  for (const SmallLayer& options :
       {SmallLayer{.shared = true}, SmallLayer{.d_model = 5, .d_ff = 3, .top_k = 3},
        SmallLayer{.d_model = 1, .d_ff = 1}}) {
    auto layer = small_layer<TypeParam>(options);
    const auto x = random_matrix<TypeParam>(100, layer.d_model(), 3);
    Matrix<TypeParam> all(100, layer.d_model());  // (T, D)
    layer.forward(x, all);
    for (const int threads : test_support::thread_counts) {
      const test_support::ScopedThreads scoped(threads);
      Matrix<TypeParam> y(100, layer.d_model());  // (T, D)
      layer.forward(x, y);
      EXPECT_EQ(y, all) << threads << " threads";
      for (const Index count : {1, 2, 3, 17, 64}) {
        for (Index first = 0; first + count <= 100; first += 23) {
          Matrix<TypeParam> part(count, layer.d_model());  // (T, D)
          layer.forward(x.middleRows(first, count), part);
          EXPECT_EQ(part, all.middleRows(first, count))
              << count << " tokens from " << first << ", " << threads << " threads";
        }
      }
    }
  }
}

TYPED_TEST(SparseMoeOf, TakesAndWritesAnyRowStride) {
  auto layer = small_layer<TypeParam>({});
  const Index d_model = layer.d_model();
  const auto wide = random_matrix<TypeParam>(6, 3 * d_model, 3);
  const Matrix<TypeParam> packed = wide.middleCols(2, d_model);  // (T, D)
  Matrix<TypeParam> expected(6, d_model);                        // (T, D)
  layer.forward(packed, expected);
  Matrix<TypeParam> out = Matrix<TypeParam>::Constant(6, 2 * d_model, 7);  // (T, D) within
  layer.forward(wide.middleCols(2, d_model), out.middleCols(1, d_model));
  EXPECT_EQ(out.middleCols(1, d_model), expected);
  EXPECT_TRUE((out.leftCols(1).array() == 7).all());
  EXPECT_TRUE((out.rightCols(d_model - 1).array() == 7).all());
  // Input and output may be columns of one matrix, side by side.
  Matrix<TypeParam> both(6, 2 * d_model);  // (T, 2 D)
  both.leftCols(d_model) = packed;
  layer.forward(both.leftCols(d_model), both.rightCols(d_model));
  EXPECT_EQ(both.rightCols(d_model), expected);
}

TYPED_TEST(SparseMoeOf, NoTokensAreFine) {
  auto layer = small_layer<TypeParam>({.shared = true, .capacity = {.factor = 1}});
  Matrix<TypeParam> x(0, layer.d_model());  // (T, D)
  Matrix<TypeParam> y(0, layer.d_model());  // (T, D)
  const Routing<TypeParam>& routing = layer.forward(x, y);
  EXPECT_EQ(routing.tokens(), 0);
  EXPECT_EQ(layer.plan().num_rows(), 0);
}

TYPED_TEST(SparseMoeOf, NanAndInfinityStayInTheirToken) {
  auto layer = small_layer<TypeParam>({.shared = true});
  auto x = random_matrix<TypeParam>(40, layer.d_model(), 3);
  Matrix<TypeParam> clean(40, layer.d_model());  // (T, D)
  layer.forward(x, clean);
  x(3, 1) = std::numeric_limits<TypeParam>::quiet_NaN();
  x(20, 0) = std::numeric_limits<TypeParam>::infinity();
  Matrix<TypeParam> y(40, layer.d_model());  // (T, D)
  layer.forward(x, y);
  for (Index t = 0; t < 40; ++t) {
    if (t == 3 || t == 20) {
      EXPECT_FALSE(y.row(t).allFinite());
    } else {
      EXPECT_EQ(y.row(t), clean.row(t));
    }
  }
}

TYPED_TEST(SparseMoeOf, ATokenWithoutAnyExpertGetsZerosOrTheSharedSum) {
  for (const bool shared : {false, true}) {
    auto layer = small_layer<TypeParam>({.shared = shared, .capacity = {.factor = 0.01}});
    const auto x = random_matrix<TypeParam>(30, layer.d_model(), 3);
    Matrix<TypeParam> y(30, layer.d_model());  // (T, D)
    const Routing<TypeParam>& routing = layer.forward(x, y);
    const Index limit = layer.capacity().rows(30, routing.top_k(), 8);
    ASSERT_EQ(limit, 1);
    expect_reference(layer, x, routing, y, limit);
    Index without = 0;
    for (Index t = 0; t < 30; ++t) {
      const auto row = [&](Index k) {
        return layer.plan().row_of[static_cast<std::size_t>(t * 2 + k)];
      };
      if (row(0) >= 0 || row(1) >= 0) continue;
      ++without;
      EXPECT_EQ(y.row(t).isZero(0), !shared);
    }
    EXPECT_GE(without, 10);
  }
}

TYPED_TEST(SparseMoeOf, TakesASuppliedRouting) {
  auto layer = small_layer<TypeParam>({});
  const auto x = random_matrix<TypeParam>(20, layer.d_model(), 3);
  Matrix<TypeParam> y(20, layer.d_model());         // (T, D)
  Matrix<TypeParam> replayed(20, layer.d_model());  // (T, D)
  const Routing<TypeParam> recorded = layer.forward(x, y);
  layer.forward(x, recorded, replayed);
  EXPECT_EQ(replayed, y);
  // Its K need not be the router's, an expert may come twice, and logits need not be there.
  Routing<TypeParam> by_hand;
  by_hand.resize(20, 8, 5, {.keep_logits = false, .keep_scores = false});
  for (Index t = 0; t < 20; ++t)
    for (Index k = 0; k < 5; ++k) {
      by_hand.experts(t, k) = static_cast<moe::ExpertIndex>((t + k * k) % 8);
      by_hand.weights(t, k) = static_cast<TypeParam>(k - 2) / 4;
    }
  layer.forward(x, by_hand, y);
  expect_reference(layer, x, by_hand, y);
}

TYPED_TEST(SparseMoeOf, KeepsLogitsAndScoresUnlessToldOtherwise) {
  auto layer = small_layer<TypeParam>({});
  const auto x = random_matrix<TypeParam>(4, layer.d_model(), 3);
  Matrix<TypeParam> y(4, layer.d_model());  // (T, D)
  EXPECT_EQ(layer.forward(x, y).logits.cols(), 8);
  EXPECT_EQ(layer.forward(x, y).scores.cols(), 8);
  const auto& lean = layer.forward(x, y, {.keep_logits = false, .keep_scores = false});
  EXPECT_EQ(lean.logits.size(), 0);
  EXPECT_EQ(lean.scores.size(), 0);
}

TYPED_TEST(SparseMoeOf, CopiesAndMovesKeepTheResult) {
  auto layer = small_layer<TypeParam>({.shared = true});
  const auto x = random_matrix<TypeParam>(4, layer.d_model(), 3);
  Matrix<TypeParam> y(4, layer.d_model());      // (T, D)
  Matrix<TypeParam> again(4, layer.d_model());  // (T, D)
  layer.forward(x, y);
  auto copy = layer;
  copy.forward(x, again);
  EXPECT_EQ(again, y);
  auto moved = std::move(copy);
  again.setZero();
  moved.forward(x, again);
  EXPECT_EQ(again, y);
}

/// The message of what `action` throws; it must leave y as it was.
template <class Action>
std::string complaint(Matrix<float>& y, const Action& action) {
  y.setConstant(7);
  std::string message;
  try {
    action();
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  EXPECT_TRUE((y.array() == 7).all()) << message;
  return message;
}

TEST(SparseMoe, RefusesViewsThatDoNotFitBeforeItWrites) {
  auto layer = small_layer<float>({.d_model = 6});
  const auto x = random_matrix<float>(4, 6, 3);
  Matrix<float> y(4, 6);  // (T, D)
  EXPECT_EQ(complaint(y, [&] { layer.forward(x.leftCols(5), y); }),
            "SparseMoe::forward: x.cols(): expected 6, got 5");
  EXPECT_EQ(complaint(y, [&] { layer.forward(x.topRows(3), y); }),
            "SparseMoe::forward: y.rows(): expected 3, got 4");
  EXPECT_EQ(complaint(y, [&] { layer.forward(x, y.leftCols(5)); }),
            "SparseMoe::forward: y.cols(): expected 6, got 5");
  EXPECT_EQ(complaint(y, [&] { layer.forward(y, y); }), "SparseMoe::forward: y overlaps x");
  EXPECT_EQ(complaint(y, [&] { layer.forward(y.topRows(2), y.middleRows(1, 2)); }),
            "SparseMoe::forward: y overlaps x");
}

TEST(SparseMoe, RefusesABadRoutingBeforeItWrites) {
  auto layer = small_layer<float>({.d_model = 6});
  const auto x = random_matrix<float>(4, 6, 3);
  Matrix<float> y(4, 6);  // (T, D)
  const Routing<float> good = layer.forward(x, y);
  const auto with = [&](auto change) {
    Routing<float> routing = good;
    change(routing);
    return complaint(y, [&] { layer.forward(x, routing, y); });
  };
  EXPECT_EQ(with([](auto& r) { r.experts(2, 1) = 8; }),
            "SparseMoe::forward: routing.experts(2, 1): expected 0 to 7, got 8");
  EXPECT_EQ(with([](auto& r) { r.experts(0, 0) = -2; }),
            "SparseMoe::forward: routing.experts(0, 0): expected 0 to 7, got -2");
  EXPECT_EQ(with([](auto& r) { r.weights(3, 0) = std::nanf(""); }),
            "SparseMoe::forward: routing.weights(3, 0) is not finite");
  EXPECT_EQ(with([](auto& r) { r.num_experts = 9; }),
            "SparseMoe::forward: routing.num_experts: expected 8, got 9");
  EXPECT_EQ(with([](auto& r) { r.experts.conservativeResize(3, 2); }),
            "SparseMoe::forward: routing.tokens(): expected 4, got 3");
  EXPECT_EQ(with([](auto& r) { r.weights.conservativeResize(4, 1); }),
            "SparseMoe::forward: routing.weights.cols(): expected 2, got 1");
  EXPECT_EQ(with([](auto& r) { r.input_scale = std::nan(""); }),
            "SparseMoe::forward: routing.input_scale is not finite");
  EXPECT_EQ(with([](auto& r) { r.scale_after_drop = std::nan(""); }),
            "SparseMoe::forward: routing.scale_after_drop is not finite");
  auto narrow = small_layer<float>({.d_model = 2});
  Routing<float> own = good;
  const auto two = random_matrix<float>(4, 2, 3);
  EXPECT_THROW(narrow.forward(two, own, moe::MatrixView<float>(own.weights)), std::invalid_argument)
      << "y is where the weights are";
}

TEST(SparseMoe, RefusesPartsThatDoNotFitEachOther) {
  using test_support::random_bank;
  const auto make = [](Index router_width, Index experts, Index shared_width,
                       const Capacity& capacity) {
    std::mt19937_64 rng(1);
    return Layer<float>(
        moe::TopKRouter<float>::random({.d_model = router_width, .num_experts = 4, .top_k = 2},
                                       rng),
        Bank<float>({.num_experts = experts, .d_model = 6, .d_ff = 8}),
        SharedExperts(Bank<float>({.num_experts = 1, .d_model = shared_width, .d_ff = 8})),
        capacity);
  };
  EXPECT_NO_THROW(make(6, 4, 6, {}));
  EXPECT_THROW(make(5, 4, 6, {}), moe::ShapeError);
  EXPECT_THROW(make(6, 5, 6, {}), moe::ShapeError);
  EXPECT_THROW(make(6, 4, 7, {}), moe::ShapeError);
  EXPECT_THROW(make(6, 4, 6, {.factor = -1}), std::invalid_argument);
}

TEST(SparseMoeOptions, AnOutputBiasIsAddedOnce) {
  auto layer = small_layer<double>({.shared = true});
  const auto x = random_matrix<double>(5, 13, 3);
  Matrix<double> without(5, 13);
  Matrix<double> with(5, 13);
  layer.forward(x, without);
  const moe::Vector<double> bias = random_matrix<double>(13, 1, 4).col(0);
  layer.set_output_bias(bias);
  layer.forward(x, with);
  EXPECT_EQ(with, (without.rowwise() + bias.transpose()).eval());
  EXPECT_THROW(layer.set_output_bias(moe::Vector<double>(12)), moe::ShapeError);
}

TEST(SparseMoeOptions, ASharedExpertCanBeGated) {
  const auto bank = random_bank<Bank<double>>({.num_experts = 2, .d_model = 13, .d_ff = 4}, 50);
  const auto gate = random_matrix<double>(2, 13, 6);
  auto plain = small_layer<double>({});
  moe::SparseMoe gated(plain.router(), plain.experts(),
                       moe::SharedExperts<Bank<double>>(bank, gate));
  const auto x = random_matrix<double>(40, 13, 3);
  Matrix<double> y(40, 13);
  Matrix<double> expected(40, 13);
  plain.forward(x, expected);
  gated.forward(x, y);
  const auto experts = test_support::reference_experts(bank);
  for (Index t = 0; t < 40; ++t) {
    for (Index e = 0; e < 2; ++e) {
      const double weight = 1 / (1 + std::exp(-gate.row(e).dot(x.row(t))));
      const auto out = reference::run_expert(experts[static_cast<std::size_t>(e)], reference::silu,
                                             reference::row_of(x, t));
      for (Index d = 0; d < 13; ++d) expected(t, d) += weight * out[static_cast<std::size_t>(d)];
    }
  }
  EXPECT_TRUE(y.isApprox(expected, 1e-12));
  EXPECT_THROW(moe::SharedExperts<Bank<double>>(bank, random_matrix<double>(1, 13, 6)),
               moe::ShapeError);
}

TEST(SparseMoeOptions, DroppedChoicesAreRerouted) {
  auto layer = small_layer<double>(
      {.capacity = {.factor = 1, .formula = moe::CapacityFormula::choices_ceil}});
  const auto x = random_matrix<double>(64, 13, 3);
  Matrix<double> y(64, 13);
  layer.forward(x, y);
  const auto dropped = layer.plan().dropped.size();
  ASSERT_GT(dropped, 0U);
  layer.capacity().reroute = true;
  const Routing<double> routing = layer.forward(x, y);
  EXPECT_LT(layer.plan().dropped.size(), dropped);
  // The same as the routing that came out, on a layer without a limit.
  auto free = small_layer<double>({});
  Routing<double> kept = routing;
  for (const moe::TokenSlot slot : layer.plan().dropped) {
    kept.experts(slot.token, slot.slot) = moe::no_expert;
    kept.weights(slot.token, slot.slot) = 0;
  }
  Matrix<double> expected(64, 13);
  free.forward(x, kept, expected);
  EXPECT_EQ(y, expected);
}

TEST(SparseMoeOptions, WeightsAreRenormalisedAfterTheDrop) {
  moe::RoutingRule rule = moe::presets::nllb_moe();
  const Capacity capacity{.factor = 1, .order = moe::DropOrder::slot_major};
  auto after = small_layer<double>({.rule = rule, .capacity = capacity});
  rule.renormalization = {};
  auto raw = small_layer<double>({.rule = rule, .capacity = capacity});
  const auto x = random_matrix<double>(64, 13, 3);
  Matrix<double> y(64, 13);
  Matrix<double> other(64, 13);
  after.forward(x, y);
  Routing<double> routing = raw.forward(x, other);
  const moe::DispatchPlan& plan = raw.plan();
  ASSERT_FALSE(plan.dropped.empty());
  for (Index t = 0; t < 64; ++t) {
    double sum = 0;
    for (Index k = 0; k < 2; ++k)
      if (plan.row_of[static_cast<std::size_t>(2 * t + k)] >= 0) sum += routing.weights(t, k);
    if (sum > 0) {
      EXPECT_TRUE(y.row(t).isApprox(other.row(t) / sum, 1e-12));
    } else {
      EXPECT_EQ(y.row(t).cwiseAbs().sum(), 0);
    }
  }
}

TEST(SparseMoeOptions, InputsAreScaledAndJitteredAsTheRuleSays) {
  moe::RoutingRule rule = moe::presets::mixtral(.25);
  auto layer = small_layer<double>({.rule = rule});
  const auto x = random_matrix<double>(9, 13, 3);
  Matrix<double> y(9, 13);
  Matrix<double> expected(9, 13);
  moe::Workspace<double> workspace;
  layer.forward(x, y, workspace, {.training = true, .seed = 7});
  Matrix<double> jittered(9, 13);
  moe::jitter<double>(x, .25, 7, jittered);
  layer.forward(jittered, expected);
  EXPECT_EQ(y, expected) << "router and experts see the jitter";

  rule = moe::presets::mixtral();
  rule.input_scale = 2;
  auto scaled = small_layer<double>({.rule = rule});
  const Routing<double> routing = scaled.forward(x, y);
  Routing<double> plain = routing;
  plain.input_scale = 1;
  layer.forward((2 * x).eval(), plain, expected);
  EXPECT_EQ(y, expected);
}

TEST(SparseMoeOptions, APlanCanBeSupplied) {
  auto layer = small_layer<double>({});
  const auto x = random_matrix<double>(9, 13, 3);
  Matrix<double> y(9, 13);
  Matrix<double> expected(9, 13);
  const Routing<double> routing = layer.forward(x, expected);
  moe::DispatchPlan plan = layer.plan();
  moe::Workspace<double> workspace;
  layer.forward(x, routing, plan, y, workspace);
  EXPECT_EQ(y, expected);
  plan.top_k = 1;
  EXPECT_THROW(layer.forward(x, routing, plan, y, workspace), moe::ShapeError);
  plan = layer.plan();
  plan.first_expert = 1;
  EXPECT_THROW(layer.forward(x, routing, plan, y, workspace), moe::ShapeError);
  plan.first_expert = 0;
  Routing<double> other = routing;
  other.experts(0, 0) = moe::no_expert;
  other.weights(0, 0) = 0;
  EXPECT_THROW(layer.forward(x, other, plan, y, workspace), std::invalid_argument);
}

/// The same bank by itself and within one that is no part of the layer's stage.
TEST(SparseMoeOptions, BanksCanHoldBanks) {
  using Outer = moe::ZeroCostExperts<Bank<double>>;
  const moe::ExpertsConfig config{.num_experts = 4, .d_model = 13, .d_ff = 6};
  const auto bank = random_bank<Bank<double>>(config, 9);
  const auto more = random_bank<Bank<double>>({.num_experts = 2, .d_model = 13, .d_ff = 5}, 3);
  const auto router = [](Index experts) {
    std::mt19937_64 rng(1);
    return moe::TopKRouter<double>::random({.d_model = 13, .num_experts = experts, .top_k = 2},
                                           rng);
  };
  const auto x = random_matrix<double>(30, 13, 3);
  Matrix<double> y(30, 13);
  Matrix<double> expected(30, 13);
  for (int run = 0; run < 2; ++run) {
    moe::SparseMoe plain(router(4), bank, SharedExperts(more));
    plain.forward(x, expected);
    moe::SparseMoe routed(router(4), Outer(bank, {}), SharedExperts(more));
    routed.forward(x, y);
    routed.forward(x, y);
    EXPECT_TRUE(y.isApprox(expected, 1e-14));
    moe::SparseMoe shared(router(4), bank, SharedExperts(Outer(more, {})));
    shared.forward(x, y);
    shared.forward(x, y);
    EXPECT_TRUE(y.isApprox(expected, 1e-14));
    moe::SparseMoe both(router(4), Outer(bank, {}), SharedExperts(Outer(more, {})));
    both.forward(x, y);
    EXPECT_TRUE(y.isApprox(expected, 1e-14));
  }
}

/// As LongCat-Flash has it: some experts give the token back.
TEST(SparseMoeOptions, SomeExpertsCostNothing) {
  const moe::ExpertsConfig config{.num_experts = 4, .d_model = 13, .d_ff = 6};
  const auto bank = random_bank<Bank<double>>(config, 9);
  std::mt19937_64 rng(1);
  moe::SparseMoe layer(
      moe::TopKRouter<double>::random({.d_model = 13, .num_experts = 6, .top_k = 2}, rng),
      moe::ZeroCostExperts<Bank<double>>(
          bank, {{moe::ZeroCostKind::identity}, {moe::ZeroCostKind::zero}}));
  const auto x = random_matrix<double>(40, 13, 3);
  Matrix<double> y(40, 13);
  const Routing<double> routing = layer.forward(x, y);
  const auto experts = test_support::reference_experts(bank);
  for (Index t = 0; t < 40; ++t) {
    Matrix<double> expected = Matrix<double>::Zero(1, 13);
    for (Index k = 0; k < 2; ++k) {
      const Index e = routing.experts(t, k);
      if (e == 4) expected += routing.weights(t, k) * x.row(t);
      if (e >= 4) continue;
      const auto out = reference::run_expert(experts[static_cast<std::size_t>(e)], reference::silu,
                                             reference::row_of(x, t));
      for (Index d = 0; d < 13; ++d)
        expected(0, d) += routing.weights(t, k) * out[static_cast<std::size_t>(d)];
    }
    EXPECT_TRUE(y.row(t).isApprox(expected, 1e-12)) << t;
  }
}

TEST(SparseMoeOptions, RandomDropsDifferFromStepToStep) {
  auto layer = small_layer<double>({.capacity = {.factor = 1, .order = moe::DropOrder::random}});
  const auto x = random_matrix<double>(64, 13, 3);
  Matrix<double> y(64, 13);
  layer.forward(x, y, {.seed = 1});
  const auto first = layer.plan().dropped;
  layer.forward(x, y, {.seed = 2});
  EXPECT_NE(layer.plan().dropped, first);
  layer.forward(x, y, {.seed = 1});
  EXPECT_EQ(layer.plan().dropped, first);
}

TEST(SparseMoeOptions, DownBiasesCanStandBesideTheWeights) {
  const moe::ExpertsConfig weighted{.num_experts = 8, .d_model = 13, .d_ff = 4, .biases = true};
  moe::ExpertsConfig unweighted = weighted;
  unweighted.down_bias = moe::DownBias::unweighted;
  auto plain = small_layer<double>({});
  moe::SparseMoe inside(plain.router(), random_bank<Bank<double>>(weighted, 9));
  moe::SparseMoe outside(plain.router(), random_bank<Bank<double>>(unweighted, 9));
  const auto x = random_matrix<double>(20, 13, 3);
  Matrix<double> y(20, 13);
  Matrix<double> expected(20, 13);
  const Routing<double> routing = inside.forward(x, expected);
  outside.forward(x, y);
  for (Index t = 0; t < 20; ++t)
    for (Index k = 0; k < 2; ++k)
      expected.row(t) += (1 - routing.weights(t, k)) *
                         inside.experts().expert(routing.experts(t, k)).down_bias.transpose();
  EXPECT_TRUE(y.isApprox(expected, 1e-12));
}

}  // namespace sparse_moe_test
