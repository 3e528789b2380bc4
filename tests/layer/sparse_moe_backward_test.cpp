// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The backward pass of a block against central differences in double: every gradient, for the
// families' routing rules, with drops, jitter, shared experts and losses.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/contracts.hpp>
#include <moe/core/random.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/layer/sparse_moe.hpp>
#include <moe/layer/tape.hpp>
#include <moe/losses/balance.hpp>
#include <moe/losses/logit_losses.hpp>
#include <moe/losses/variation.hpp>
#include <moe/routing/presets.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/differences.hpp"
#include "support/threads.hpp"

namespace sparse_moe_backward_test {

using moe::Index;
using moe::MatrixView;
using moe::RoutingRule;
using moe::TapePolicy;
using moe::WeightTarget;
using test_support::expect_some_slopes;

constexpr Index tokens = 11;
constexpr Index d_model = 9;
constexpr Index experts = 6;

template <class Scalar>
using Bank = moe::FeedForwardExperts<Scalar, moe::SwiGlu>;
template <class Scalar>
using Layer = moe::SparseMoe<moe::TopKRouter<Scalar>, Bank<Scalar>>;

template <class Scalar>
moe::Matrix<Scalar> random(Index rows, Index cols, std::uint64_t seed) {
  moe::Matrix<double> m(rows, cols);
  moe::detail::fill_uniform(m.data(), m.size(), 1, seed);
  return m.cast<Scalar>();
}

struct Setting {
  RoutingRule rule = {.renormalization = {.kind = moe::Renormalization::sum}};
  Index top_k = 2;
  bool router_bias = false;
  bool shared = false;
  bool gated_shared = false;
  bool output_bias = false;
  bool biases = false;
  moe::Capacity capacity = {};
  bool training = false;
  bool losses = false;
  TapePolicy policy = TapePolicy::keep_preactivations;
  moe::ExpertDropout dropout = {};
  moe::DownBias down_bias = moe::DownBias::weighted;
};

/// What a block has learnt, from which it is made anew where a coordinate moved.
template <class Scalar>
struct Parameters {
  moe::RouterWeights<Scalar> router;
  Bank<Scalar> bank;
  Bank<Scalar> shared;
  moe::Matrix<Scalar> gate;
  moe::Vector<Scalar> output_bias;

  explicit Parameters(const Setting& setting)
      : bank({.num_experts = experts,
              .d_model = d_model,
              .d_ff = 5,
              .biases = setting.biases,
              .down_bias = setting.down_bias}),
        shared({.num_experts = 2,
                .d_model = d_model,
                .d_ff = 4,
                .biases = setting.biases,
                .down_bias = setting.down_bias}) {
    router.weight = random<Scalar>(experts, d_model, 1);
    if (setting.router_bias) router.bias = random<Scalar>(1, experts, 2).row(0);
    std::uint64_t seed = 3;
    for (const auto& values : {bank.values(), shared.values()})
      for (const std::span<Scalar> part : values) {
        const moe::Matrix<Scalar> m = random<Scalar>(1, static_cast<Index>(part.size()), ++seed);
        std::copy_n(m.data(), part.size(), part.begin());
      }
    if (setting.gated_shared) gate = random<Scalar>(2, d_model, 60);
    if (setting.output_bias) output_bias = random<Scalar>(1, d_model, 61).row(0);
  }

  Layer<Scalar> layer(const Setting& setting) const {
    moe::SharedExperts<Bank<Scalar>> of_all;
    if (setting.shared) of_all = moe::SharedExperts<Bank<Scalar>>(shared, gate);
    Layer<Scalar> result(moe::TopKRouter<Scalar>({.d_model = d_model,
                                                  .num_experts = experts,
                                                  .top_k = setting.top_k,
                                                  .rule = setting.rule},
                                                 router),
                         bank, of_all, setting.capacity);
    if (setting.output_bias) result.set_output_bias(output_bias);
    result.set_expert_dropout(setting.dropout);
    return result;
  }
};

moe::RouteOptions options_of(const Setting& setting) {
  return {.training = setting.training, .seed = 77};
}

/// The losses' value, to which they add their gradients if there is a tape.
template <class Scalar>
double losses(const moe::Routing<Scalar>& routing, moe::Tape<Scalar>* tape) {
  moe::losses::LossGradient<Scalar> logits;
  moe::losses::LossGradient<Scalar> weights;
  if (tape != nullptr) {
    logits.sum = tape->d_logits;
    weights.sum = tape->d_weights;
  }
  double sum = 0;
  logits.coefficient = 0.7;
  sum += 0.7 * static_cast<double>(moe::losses::load_balancing(
                   routing, moe::losses::BalanceScale::per_choice, {}, logits));
  logits.coefficient = 0.3;
  sum += 0.3 * static_cast<double>(moe::losses::z_loss(routing, {}, logits));
  weights.coefficient = 0.2;
  sum += 0.2 * static_cast<double>(moe::losses::importance(
                   routing, moe::losses::Variance::population, {}, weights));
  return sum;
}

double loss_of(const Parameters<double>& parameters, const Setting& setting,
               const moe::Matrix<double>& x, const moe::Matrix<double>& dy) {
  Layer<double> layer = parameters.layer(setting);
  moe::Matrix<double> y(tokens, d_model);
  moe::Tape<double> tape{.policy = setting.policy};
  const auto& routing = layer.forward(x, y, tape, options_of(setting));
  return (y.array() * dy.array()).sum() + (setting.losses ? losses<double>(routing, nullptr) : 0);
}

void expect_gradients(const Setting& setting, bool router_moves = true) {
  Parameters<double> parameters(setting);
  moe::Matrix<double> x = random<double>(tokens, d_model, 50);
  const moe::Matrix<double> dy = random<double>(tokens, d_model, 51);
  Layer<double> layer = parameters.layer(setting);
  moe::Tape<double> tape{.policy = setting.policy};
  moe::Matrix<double> y(tokens, d_model);
  moe::Matrix<double> dx(tokens, d_model);
  const auto& routing = layer.forward(x, y, tape, options_of(setting));
  if (setting.losses) losses<double>(routing, &tape);
  auto gradients = layer.gradients();
  layer.backward(x, tape, dy, dx, gradients);

  const auto loss = [&] { return loss_of(parameters, setting, x, dy); };
  const auto count = [](const auto& m) { return static_cast<std::size_t>(m.size()); };
  expect_some_slopes("x", x.data(), dx.data(), count(x), loss);
  if (router_moves) {
    expect_some_slopes("router", parameters.router.weight.data(), gradients.router.weight.data(),
                       count(gradients.router.weight), loss);
    if (setting.router_bias)
      expect_some_slopes("router bias", parameters.router.bias.data(), gradients.router.bias.data(),
                         count(gradients.router.bias), loss);
  }
  const auto check_bank = [&](const char* what, Bank<double>& bank, Bank<double>::Gradients& g,
                              std::size_t parts) {
    for (std::size_t i = 0; i < parts; ++i)
      expect_some_slopes(what, bank.values()[i].data(), g.values()[i].data(), g.values()[i].size(),
                         loss);
  };
  check_bank("experts", parameters.bank, gradients.experts, setting.biases ? 4 : 2);
  if (setting.shared)
    check_bank("shared", parameters.shared, *gradients.shared, setting.biases ? 4 : 2);
  if (setting.gated_shared)
    expect_some_slopes("gate", parameters.gate.data(), gradients.shared_gate.data(),
                       count(gradients.shared_gate), loss);
  if (setting.output_bias)
    expect_some_slopes("output bias", parameters.output_bias.data(), gradients.output_bias.data(),
                       count(gradients.output_bias), loss);
}

TEST(SparseMoeBackward, OfTheFamiliesRules) {
  const RoutingRule rules[] = {
      {},
      {.renormalization = {.kind = moe::Renormalization::sum}},
      {.weights_from = moe::WeightSource::softmax_of_chosen},
      {.score = moe::ScoreFunction::sigmoid,
       .renormalization = {.kind = moe::Renormalization::sum, .epsilon = 1e-20},
       .scale = 2.5},
      {.score = moe::ScoreFunction::sqrt_softplus,
       .renormalization = {.kind = moe::Renormalization::sum}},
      {.groups = {.count = 3, .kept = 2, .score = moe::GroupScore::maximum}, .scale = 16},
      {.renormalization = {.kind = moe::Renormalization::p_norm, .p = 2}},
      {.score = moe::ScoreFunction::identity,
       .weights_from = moe::WeightSource::sigmoid_of_chosen,
       .weight_target = WeightTarget::input},
      {.score = moe::ScoreFunction::sigmoid,
       .weight_target = WeightTarget::input,
       .input_scale = 1.5},
  };
  for (const RoutingRule& rule : rules) {
    SCOPED_TRACE(static_cast<int>(&rule - rules));
    for (const bool losses : {false, true})
      expect_gradients({.rule = rule, .router_bias = true, .losses = losses});
    expect_gradients({.rule = rule,
                      .router_bias = true,
                      .capacity = {.formula = moe::CapacityFormula::fixed, .fixed_rows = 3},
                      .losses = true});
  }
}

TEST(SparseMoeBackward, OfSharedExpertsAndBiases) {
  expect_gradients({.shared = true});
  expect_gradients({.shared = true, .gated_shared = true, .output_bias = true, .biases = true});
  expect_gradients(
      {.rule = {.weight_target = WeightTarget::input}, .top_k = 1, .shared = true, .biases = true});
}

TEST(SparseMoeBackward, OfDroppedChoices) {
  for (const bool after : {false, true}) {
    Setting setting{
        .rule = {.renormalization = {.kind = moe::Renormalization::sum, .after_drop = after}},
        .capacity = {.formula = moe::CapacityFormula::fixed, .fixed_rows = 3},
        .losses = true};
    for (const TapePolicy policy : {TapePolicy::keep_all, TapePolicy::recompute}) {
      setting.policy = policy;
      setting.biases = true;
      for (const moe::DownBias down : {moe::DownBias::weighted, moe::DownBias::unweighted}) {
        setting.down_bias = down;
        expect_gradients(setting);
      }
    }
    setting.policy = TapePolicy::keep_preactivations;
    setting.biases = false;
    Layer<double> layer = Parameters<double>(setting).layer(setting);
    moe::Matrix<double> y(tokens, d_model);
    layer.forward(random<double>(tokens, d_model, 50), y);
    EXPECT_GT(layer.plan().dropped.size(), 2U);
    expect_gradients(setting);
    setting.shared = true;
    setting.rule.weight_target = WeightTarget::input;
    expect_gradients(setting);
  }
}

TEST(SparseMoeBackward, OfJitter) {
  for (const moe::JitterTarget target :
       {moe::JitterTarget::router_input, moe::JitterTarget::hidden_states}) {
    Setting setting{.training = true, .losses = true};
    setting.rule.jitter = {.target = target, .epsilon = 0.3};
    expect_gradients(setting);
    setting.shared = setting.gated_shared = true;
    expect_gradients(setting);
  }
}

TEST(SparseMoeBackward, OfNoise) {
  Setting setting{.training = true, .losses = true};
  setting.rule.logits.noise = 0.4;
  expect_gradients(setting);
}

TEST(SparseMoeBackward, OfDropoutInsideExperts) {
  for (const TapePolicy policy : {TapePolicy::keep_preactivations, TapePolicy::recompute}) {
    Setting setting{.shared = true, .biases = true, .training = true, .policy = policy};
    setting.dropout = {.routed = 0.4, .shared = 0.2};
    expect_gradients(setting);
    setting.gated_shared = true;
    setting.rule.weight_target = WeightTarget::input;
    expect_gradients(setting);
  }
}

TEST(SparseMoeBackward, DropoutIsOffOutsideOfTrainingAndKeepsTheMean) {
  Setting setting{.shared = true};
  Layer<double> layer = Parameters<double>(setting).layer(setting);
  const moe::Matrix<double> x = random<double>(tokens, d_model, 50);
  moe::Matrix<double> y(tokens, d_model);
  moe::Matrix<double> dropped(tokens, d_model);
  layer.forward(x, y);
  layer.set_expert_dropout({.routed = 0.5, .shared = 0.1});
  moe::Tape<double> tape;
  layer.forward(x, dropped, tape);
  EXPECT_EQ(y, dropped);
  moe::Matrix<double> mean = moe::Matrix<double>::Zero(tokens, d_model);
  constexpr int draws = 4000;
  for (int i = 0; i < draws; ++i) {
    layer.forward(x, dropped, tape, {.training = true, .seed = static_cast<std::uint64_t>(i)});
    mean += dropped / draws;
  }
  EXPECT_NE(y, dropped);
  EXPECT_LT((mean - y).norm(), 0.05 * y.norm());
  EXPECT_THROW(layer.set_expert_dropout({.routed = 1}), std::invalid_argument);
  EXPECT_THROW(layer.set_expert_dropout({.shared = -0.1}), std::invalid_argument);
}

TEST(SparseMoeBackward, FrozenPartsGetNothingAndTheOthersTheSame) {
  const Setting setting{.shared = true, .gated_shared = true, .output_bias = true, .biases = true};
  Layer<double> layer = Parameters<double>(setting).layer(setting);
  const moe::Matrix<double> x = random<double>(tokens, d_model, 50);
  const moe::Matrix<double> dy = random<double>(tokens, d_model, 51);
  moe::Matrix<double> y(tokens, d_model);
  const auto run = [&](const moe::FrozenParts& frozen) {
    moe::Tape<double> tape;
    moe::Matrix<double> dx(tokens, d_model);
    layer.forward(x, y, tape);
    auto gradients = layer.gradients();
    gradients.frozen = frozen;
    layer.backward(x, tape, dy, dx, gradients);
    return std::pair(std::move(gradients), std::move(dx));
  };
  const auto is_zero = [](auto&& bank) {
    for (const auto part : bank.values())
      for (const double value : part)
        if (value != 0) return false;
    return true;
  };
  auto [all, dx] = run({});
  auto [no_router, dx1] = run({.router = true});
  EXPECT_EQ(dx, dx1);
  EXPECT_TRUE(no_router.router.weight.isZero(0));
  EXPECT_FALSE(is_zero(no_router.experts));
  auto [no_experts, dx2] = run({.experts = true});
  EXPECT_EQ(dx, dx2);
  EXPECT_TRUE(is_zero(no_experts.experts));
  EXPECT_EQ(no_experts.router.weight, all.router.weight);
  EXPECT_FALSE(is_zero(*no_experts.shared));
  auto [no_shared, dx3] = run({.shared = true});
  EXPECT_EQ(dx, dx3);
  EXPECT_TRUE(is_zero(*no_shared.shared));
  EXPECT_TRUE(no_shared.shared_gate.isZero(0));
  EXPECT_EQ(no_shared.output_bias, all.output_bias);
  auto [no_bias, dx5] = run({.output_bias = true});
  EXPECT_EQ(dx, dx5);
  EXPECT_TRUE(no_bias.output_bias.isZero(0));
  EXPECT_FALSE(all.output_bias.isZero(0));
  auto [some, dx4] = run({.of_experts = {0, 1, 0, 0, 1, 0}});
  EXPECT_EQ(dx, dx4);
  for (Index e = 0; e < experts; ++e) {
    const bool frozen = e == 1 || e == 4;
    EXPECT_EQ(some.experts.expert(e).down.isZero(0), frozen) << e;
    EXPECT_EQ(some.experts.expert(e).up_bias.isZero(0), frozen) << e;
    if (!frozen) {
      EXPECT_EQ(some.experts.expert(e).down, all.experts.expert(e).down) << e;
    }
  }
  EXPECT_THROW(run({.of_experts = {1}}), moe::ShapeError);
}

TEST(SparseMoeBackward, KeepsTheOutputsWhereAsked) {
  const Setting setting{.policy = TapePolicy::keep_all};
  expect_gradients(setting);
  Layer<double> layer = Parameters<double>(setting).layer(setting);
  const moe::Matrix<double> x = random<double>(tokens, d_model, 50);
  moe::Matrix<double> y(tokens, d_model);
  moe::Tape<double> tape{.policy = TapePolicy::keep_all};
  layer.forward(x, y, tape);
  moe::Matrix<double> sum = moe::Matrix<double>::Zero(tokens, d_model);
  for (Index r = 0; r < tape.plan.num_rows(); ++r)
    sum.row(Index{tape.plan.rows[static_cast<std::size_t>(r)].token}) += tape.outputs.row(r);
  EXPECT_LT((sum - y).norm(), 1e-13);
}

TEST(SparseMoeBackward, OfBiasesThatNoWeightMultiplies) {
  expect_gradients({.shared = true, .biases = true, .down_bias = moe::DownBias::unweighted});
  expect_gradients({.shared = true,
                    .gated_shared = true,
                    .biases = true,
                    .down_bias = moe::DownBias::unweighted});
}

TEST(SparseMoeBackward, WhatIsRecomputedHasTheSameBits) {
  Setting setting{.router_bias = true,
                  .shared = true,
                  .gated_shared = true,
                  .output_bias = true,
                  .biases = true,
                  .training = true};
  setting.rule.jitter = {.target = moe::JitterTarget::hidden_states, .epsilon = 0.1};
  setting.dropout = {.routed = 0.2, .shared = 0.1};
  std::vector<float> first;
  for (const TapePolicy policy : {TapePolicy::keep_preactivations, TapePolicy::recompute}) {
    for (const int threads : {1, 2, 3, 7}) {
      const test_support::ScopedThreads scope(threads);
      Layer<float> layer = Parameters<float>(setting).layer(setting);
      const moe::Matrix<float> x = random<float>(100, d_model, 50);
      const moe::Matrix<float> dy = random<float>(100, d_model, 51);
      moe::Matrix<float> y(100, d_model);
      moe::Matrix<float> dx(100, d_model);
      moe::Tape<float> tape{.policy = policy};
      losses(layer.forward(x, y, tape, options_of(setting)), &tape);
      EXPECT_EQ(tape.sums.capacity() == 0, policy == TapePolicy::recompute);
      auto gradients = layer.gradients();
      layer.backward(x, tape, dy, dx, gradients);
      EXPECT_EQ(tape.sums.capacity() == 0, policy == TapePolicy::recompute);
      std::vector<float> all;
      const auto add = [&](const float* values, Index size) {
        all.insert(all.end(), values, values + size);
      };
      add(y.data(), y.size());
      add(dx.data(), dx.size());
      add(gradients.router.weight.data(), gradients.router.weight.size());
      add(gradients.router.bias.data(), gradients.router.bias.size());
      add(gradients.shared_gate.data(), gradients.shared_gate.size());
      add(gradients.output_bias.data(), gradients.output_bias.size());
      for (const auto part : gradients.experts.values())
        add(part.data(), static_cast<Index>(part.size()));
      for (const auto part : gradients.shared->values())
        add(part.data(), static_cast<Index>(part.size()));
      if (first.empty()) first = all;
      EXPECT_TRUE(all == first) << threads << " threads";
    }
  }
}

TEST(SparseMoeBackward, TheForwardWithATapeIsTheForward) {
  const Setting setting{.shared = true, .losses = true};
  Layer<float> layer = Parameters<float>(setting).layer(setting);
  const moe::Matrix<float> x = random<float>(tokens, d_model, 50);
  moe::Matrix<float> y(tokens, d_model);
  moe::Matrix<float> with_tape(tokens, d_model);
  moe::Tape<float> tape;
  layer.forward(x, y);
  layer.forward(x, with_tape, tape);
  EXPECT_EQ(y, with_tape);
}

TEST(SparseMoeBackward, TheTapeTakesWhatIsDocumented) {
  const Setting setting{.shared = true, .gated_shared = true};
  const Layer<float> layer = Parameters<float>(setting).layer(setting);
  const double choices = 2 * tokens;
  const double routing =
      4 * (4 * choices + 4 * tokens * experts + 2 * tokens) + 16 * choices + 8 * (experts + 1);
  EXPECT_EQ(layer.tape_bytes(tokens, 2 * tokens, TapePolicy::recompute), routing);
  // 5 gates and 5 ups fill one panel of 32, so do 4 and 4.
  EXPECT_EQ(layer.tape_bytes(tokens, 20), routing + 4.0 * 32 * (20 + 2 * tokens));
  EXPECT_EQ(layer.tape_bytes(tokens, 20, TapePolicy::keep_all),
            routing + 4.0 * 32 * (20 + 2 * tokens) + 4.0 * choices * d_model);
}

TEST(SparseMoeBackward, RefusesWhatDoesNotBelongTogether) {
  const Setting setting;
  Layer<float> layer = Parameters<float>(setting).layer(setting);
  Layer<float> other = layer;
  const moe::Matrix<float> x = random<float>(tokens, d_model, 50);
  const moe::Matrix<float> dy = random<float>(tokens, d_model, 51);
  moe::Matrix<float> y(tokens, d_model);
  moe::Matrix<float> dx(tokens, d_model);
  moe::Matrix<float> wrong(tokens + 1, d_model);
  moe::Tape<float> tape;
  auto gradients = layer.gradients();
  EXPECT_THROW(layer.backward(x, tape, dy, dx, gradients), std::invalid_argument) << "no forward";
  layer.forward(x, y, tape);
  EXPECT_THROW(other.backward(x, tape, dy, dx, gradients), std::invalid_argument);
  EXPECT_THROW(layer.backward(wrong, tape, dy, dx, gradients), moe::ShapeError);
  EXPECT_THROW(layer.backward(x, tape, wrong, dx, gradients), moe::ShapeError);
  EXPECT_THROW(layer.backward(x, tape, dy, wrong, gradients), moe::ShapeError);
  EXPECT_THROW(
      layer.backward(x, tape, dy,
                     moe::MatrixView<float>(const_cast<float*>(dy.data()), tokens, d_model),
                     gradients),
      std::invalid_argument)
      << "dx overlaps dy";
  const Setting with_shared{.shared = true};
  auto of_another = Parameters<float>(with_shared).layer(with_shared).gradients();
  EXPECT_THROW(layer.backward(x, tape, dy, dx, of_another), std::invalid_argument);
  for (auto* const m : {&tape.d_logits, &tape.d_scored, &tape.d_weights}) {
    const moe::GrowingMatrix<float> kept = *m;
    m->resize(tokens, 1);
    EXPECT_THROW(layer.backward(x, tape, dy, dx, gradients), moe::ShapeError);
    *m = kept;
  }
  const Bank<float> bank = layer.experts();
  layer.experts() = Bank<float>({.num_experts = experts, .d_model = d_model, .d_ff = 70});
  auto of_wider = layer.gradients();
  EXPECT_THROW(layer.backward(x, tape, dy, dx, of_wider), std::invalid_argument) << "was changed";
  layer.experts() = bank;
  EXPECT_TRUE(gradients.router.weight.isZero(0)) << "nothing is added before all was checked";
  for (const auto part : gradients.experts.values())
    for (const float value : part) ASSERT_EQ(value, 0);
  layer.backward(x, tape, dy, dx, gradients);
  EXPECT_THROW(layer.backward(x, tape, dy, dx, gradients), std::invalid_argument) << "used";

  Setting reroutes;
  reroutes.capacity = {.formula = moe::CapacityFormula::fixed, .fixed_rows = 2, .reroute = true};
  Layer<float> rerouting = Parameters<float>(reroutes).layer(reroutes);
  EXPECT_THROW(rerouting.forward(x, y, tape), std::invalid_argument);
}

TEST(SparseMoeBackward, ANaNStaysInItsToken) {
  const Setting setting{.shared = true, .losses = true};
  Layer<double> layer = Parameters<double>(setting).layer(setting);
  moe::Matrix<double> x = random<double>(tokens, d_model, 50);
  const moe::Matrix<double> dy = random<double>(tokens, d_model, 51);
  moe::Matrix<double> y(tokens, d_model);
  moe::Matrix<double> dx(tokens, d_model);
  moe::Matrix<double> expected(tokens, d_model);
  const auto run = [&](moe::Matrix<double>& to) {
    moe::Tape<double> tape;
    layer.forward(x, y, tape);
    auto gradients = layer.gradients();
    layer.backward(x, tape, dy, to, gradients);
  };
  run(expected);
  x(3, 2) = std::numeric_limits<double>::quiet_NaN();
  run(dx);
  for (Index t = 0; t < tokens; ++t) {
    if (t == 3) continue;
    EXPECT_EQ(dx.row(t), expected.row(t)) << t;
  }
}

TEST(SparseMoeBackward, OfNoTokens) {
  const Setting setting{.shared = true, .gated_shared = true};
  Layer<double> layer = Parameters<double>(setting).layer(setting);
  const moe::Matrix<double> x(0, d_model);
  moe::Matrix<double> y(0, d_model);
  moe::Tape<double> tape;
  layer.forward(x, y, tape);
  auto gradients = layer.gradients();
  layer.backward(x, tape, x, y, gradients);
  EXPECT_TRUE(gradients.router.weight.isZero(0));
}

}  // namespace sparse_moe_backward_test
