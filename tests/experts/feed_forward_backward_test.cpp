// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The backward pass of a bank: in double against central differences, in float against double.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/contracts.hpp>
#include <moe/core/random.hpp>
#include <moe/core/scratch.hpp>
#include <moe/experts/activation.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/routing/plan.hpp>

#include "support/differences.hpp"
#include "support/levels.hpp"
#include "support/routings.hpp"
#include "support/threads.hpp"

namespace feed_forward_backward_test {

using moe::DownBias;
using moe::ExpertsConfig;
using moe::Index;
using moe::MatrixView;
using test_support::expect_some_slopes;

template <class Scalar>
using Matrix = moe::Matrix<Scalar>;

enum class Weights { none, on_output, on_input };

/// A bank, a routing and a gradient dy with which sum dy * y is the loss, in one precision.
template <class Scalar, class ActivationT>
struct Case {
  using Bank = moe::FeedForwardExperts<Scalar, ActivationT>;

  Bank bank;
  moe::Routing<Scalar> routing;
  moe::DispatchPlan plan;
  Matrix<Scalar> x;   // (T, D)
  Matrix<Scalar> dy;  // (T, D)
  Weights where;
  moe::Scratch scratch;

  typename Bank::Gradients gradients;
  Matrix<Scalar> rows;       // (N, D)
  Matrix<Scalar> d_weights;  // (T, K)

  Case(const ExpertsConfig& config, Index tokens, Index top_k, Weights acts,
       const ActivationT& activation = {}, const moe::Capacity& capacity = {})
      : bank(config, activation), where(acts), gradients(config) {
    auto random = [seed = std::uint64_t{1}](Index r, Index c) mutable {
      Matrix<double> m(r, c);
      moe::detail::fill_uniform(m.data(), m.size(), 1, ++seed);
      return Matrix<Scalar>(m.cast<Scalar>());
    };
    constexpr bool gated = Bank::is_gated;
    const Index biases = config.biases ? 1 : 0;
    for (Index e = 0; e < config.num_experts; ++e)
      bank.set_expert(
          e,
          moe::ExpertMatrices<Scalar>{
              random(gated ? config.d_ff : 0, gated ? config.d_model : 0) / 3,
              random(config.d_ff, config.d_model) / 3, random(config.d_model, config.d_ff) / 3,
              random(gated ? config.d_ff * biases : 0, gated ? biases : 0),
              random(config.d_ff * biases, biases), random(config.d_model * biases, biases)}
              .weights());
    routing = test_support::route<Scalar>(
        test_support::random_logits(tokens, config.num_experts, 9), top_k);
    moe::make_plan(routing, capacity, plan);
    x = random(tokens, config.d_model);
    dy = random(tokens, config.d_model);
    rows.resize(plan.num_rows(), config.d_model);
    d_weights.setZero(tokens, top_k);
  }

  moe::ExpertInput<Scalar> input() const {
    MatrixView<const Scalar> scales;
    if (where == Weights::on_input) scales = routing.weights;
    return {x, plan, scales, 1, dropout};
  }

  Scalar weight(moe::TokenSlot at) const {
    return where == Weights::on_output ? routing.weights(at.token, at.slot) : Scalar(1);
  }

  double loss() {
    Matrix<Scalar> y(plan.num_rows(), x.cols());
    bank.forward(input(), y, scratch);
    double total = 0;
    const bool is_left_out = bank.has_biases() && left_out;
    for (Index r = 0; r < plan.num_rows(); ++r) {
      const moe::TokenSlot at = plan.rows[static_cast<std::size_t>(r)];
      total += static_cast<double>(weight(at)) *
               (y.row(r).template cast<double>()).dot(dy.row(at.token).template cast<double>());
    }
    if (is_left_out) {
      Matrix<Scalar> sum = Matrix<Scalar>::Zero(x.rows(), x.cols());
      moe::detail::add_unweighted(bank, routing, plan, 0, sum);
      total += (sum.template cast<double>().array() * dy.template cast<double>().array()).sum();
    }
    return total;
  }
  bool left_out = false;  // biases are unweighted
  moe::HiddenDropout dropout{};

  void backward() {
    std::vector<Scalar> sums(static_cast<std::size_t>(plan.num_rows() * bank.sums_size()));
    Matrix<Scalar> y(plan.num_rows(), x.cols());
    bank.forward(input(), y, sums, scratch);
    const moe::ExpertInput<Scalar> in = input();
    moe::BankBackward<Scalar> call{in, dy, sums, rows};
    if (where == Weights::on_output) {
      call.weights = routing.weights;
      call.d_weights = d_weights;
    }
    bank.backward(call, gradients, scratch);
  }
};

template <class ActivationT>
void expect_gradients(const ExpertsConfig& config, Index tokens, Index top_k, Weights where,
                      const ActivationT& activation = {}, const moe::Capacity& capacity = {}) {
  SCOPED_TRACE(testing::Message() << "D " << config.d_model << ", F " << config.d_ff << ", T "
                                  << tokens << ", weights " << static_cast<int>(where));
  Case<double, ActivationT> c(config, tokens, top_k, where, activation, capacity);
  EXPECT_EQ(c.plan.dropped.empty(), capacity.is_unlimited());
  c.left_out = config.down_bias == DownBias::unweighted;
  c.backward();
  const auto loss = [&] { return c.loss(); };
  const auto values = c.bank.values();
  const auto slopes = c.gradients.values();
  const char* const names[] = {"up", "down", "up bias", "down bias"};
  for (std::size_t part = 0; part < (config.biases ? 4U : 2U); ++part)
    expect_some_slopes(names[part], values[part].data(), slopes[part].data(), values[part].size(),
                       loss);
  if (where == Weights::on_output)
    expect_some_slopes("weights", c.routing.weights.data(), c.d_weights.data(),
                       static_cast<std::size_t>(c.d_weights.size()), loss);
  // A token's gradient is the sum over its rows, through the scale of the input.
  Matrix<double> dx = Matrix<double>::Zero(tokens, config.d_model);
  for (Index r = 0; r < c.plan.num_rows(); ++r) {
    const moe::TokenSlot at = c.plan.rows[static_cast<std::size_t>(r)];
    dx.row(at.token) +=
        c.rows.row(r) * (where == Weights::on_input ? c.routing.weights(at.token, at.slot) : 1);
  }
  expect_some_slopes("x", c.x.data(), dx.data(), static_cast<std::size_t>(dx.size()), loss);
}

TEST(FeedForwardBackward, OfEveryActivation) {
  const ExpertsConfig config = {.num_experts = 3, .d_model = 5, .d_ff = 7};
  for (const moe::Capacity& capacity :
       {moe::Capacity{}, moe::Capacity{.formula = moe::CapacityFormula::fixed, .fixed_rows = 2}}) {
    const auto check = [&]<class ActivationT>(const ActivationT& activation) {
      expect_gradients(config, 5, 2, Weights::on_output, activation, capacity);
    };
    check(moe::Silu{});
    check(moe::Gelu{});
    check(moe::GeluTanh{});
    check(moe::Relu{});
    check(moe::SwiGlu{});
    check(moe::GeGlu{});
    check(moe::GeGluTanh{});
    check(moe::ReGlu{});
    check(moe::ClampedSwiGlu{.limit = 0.5});
  }
}

TEST(FeedForwardBackward, OfDropoutOfManyRows) {
  // Several tiles and, on the way forward, several tasks.
  Case<double, moe::SwiGlu> c({.num_experts = 2, .d_model = 9, .d_ff = 37, .biases = true}, 300, 2,
                              Weights::on_output);
  c.dropout = {.rate = 0.4, .seed = 3};
  c.backward();
  const auto loss = [&] { return c.loss(); };
  for (std::size_t part = 0; part < 4; ++part)
    expect_some_slopes("weights", c.bank.values()[part].data(), c.gradients.values()[part].data(),
                       c.bank.values()[part].size(), loss);
  expect_some_slopes("routing weights", c.routing.weights.data(), c.d_weights.data(),
                     static_cast<std::size_t>(c.d_weights.size()), loss);
}

TEST(FeedForwardBackward, OfSizesAroundThePanels) {
  for (const Index size : {1, 15, 16, 17, 31, 32, 33, 65}) {
    expect_gradients<moe::SwiGlu>({.num_experts = 2, .d_model = size, .d_ff = 19}, 5, 1,
                                  Weights::on_output);
    expect_gradients<moe::SwiGlu>({.num_experts = 2, .d_model = 19, .d_ff = size}, 5, 2,
                                  Weights::none);
    expect_gradients<moe::Gelu>({.num_experts = 2, .d_model = 34, .d_ff = size}, 17, 2,
                                Weights::on_output);
  }
}

TEST(FeedForwardBackward, OfBiasesAndScaledInputs) {
  for (const Weights where : {Weights::none, Weights::on_output, Weights::on_input}) {
    for (const DownBias down : {DownBias::weighted, DownBias::unweighted}) {
      const ExpertsConfig config = {
          .num_experts = 3, .d_model = 33, .d_ff = 18, .biases = true, .down_bias = down};
      expect_gradients<moe::SwiGlu>(config, 6, 2, where);
      expect_gradients<moe::Gelu>(config, 6, 2, where);
    }
  }
}

/// The largest difference relative to the largest value.
template <class A, class B>
double distance(const A& a, const B& b) {
  double largest = 1e-30;
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(b[i])));
    worst = std::max(worst, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return worst / largest;
}

class FeedForwardBackwardLevels : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(FeedForwardBackwardLevels);

TEST_P(FeedForwardBackwardLevels, FloatIsDoubleToRounding) {
  // More rows than one piece, and an inner dimension of more than one slice.
  for (const auto& [d_model, d_ff, tokens] :
       {std::tuple<Index, Index, Index>{40, 24, 1300}, {2100, 20, 9}, {20, 1100, 9}}) {
    const ExpertsConfig config = {
        .num_experts = 2, .d_model = d_model, .d_ff = d_ff, .biases = true};
    Case<double, moe::SwiGlu> exact(config, tokens, 1, Weights::on_output);
    Case<float, moe::SwiGlu> c(config, tokens, 1, Weights::on_output);
    exact.dropout = c.dropout = {.rate = 0.3, .seed = 11};
    exact.backward();
    c.backward();
    // Sums of up to 2100 terms in float: sqrt(2100) roundings of 6e-8 are usual, 2e-5 is far off.
    for (std::size_t part = 0; part < 4; ++part)
      EXPECT_LT(distance(c.gradients.values()[part], exact.gradients.values()[part]), 2e-5)
          << "part " << part;
    EXPECT_LT(distance(std::span(c.rows.data(), static_cast<std::size_t>(c.rows.size())),
                       std::span(exact.rows.data(), static_cast<std::size_t>(exact.rows.size()))),
              2e-5);
  }
}

TEST_P(FeedForwardBackwardLevels, TheBitsDoNotDependOnTheNumberOfThreads) {
  // The experts have rows in one piece; then in several, which add to the same gradients.
  for (const auto& [num_experts, tokens] : {std::pair<Index, Index>{5, 600}, {2, 1700}}) {
    const ExpertsConfig config = {
        .num_experts = num_experts, .d_model = 170, .d_ff = 150, .biases = true};
    std::vector<float> first;
    for (const int threads : {1, 2, 3, 7}) {
      const test_support::ScopedThreads scope(threads);
      Case<float, moe::SwiGlu> c(config, tokens, 2, Weights::on_output);
      c.backward();
      std::vector<float> all(c.rows.data(), c.rows.data() + c.rows.size());
      all.insert(all.end(), c.d_weights.data(), c.d_weights.data() + c.d_weights.size());
      for (const auto part : c.gradients.values()) all.insert(all.end(), part.begin(), part.end());
      if (first.empty()) first = all;
      EXPECT_TRUE(all == first) << threads << " threads";
    }
  }
}

template <class Storage>
void expect_rounded_weights_train(Index d_model, Index d_ff) {
  const ExpertsConfig config = {.num_experts = 3, .d_model = d_model, .d_ff = d_ff, .biases = true};
  Case<float, moe::SwiGlu> c(config, 30, 2, Weights::on_output);
  moe::FeedForwardExperts<float, moe::SwiGlu, Storage> rounded(config);
  rounded.round_from(c.bank);
  EXPECT_NE(rounded.expert(1).up, c.bank.expert(1).up);
  EXPECT_TRUE(rounded.expert(1).up.isApprox(c.bank.expert(1).up, 1e-2F));
  EXPECT_EQ(rounded.expert(1).up_bias, c.bank.expert(1).up_bias);
  // The master with the same rounded weights has the same gradients.
  for (Index e = 0; e < config.num_experts; ++e) {
    const moe::ExpertMatrices<float> matrices = rounded.expert(e);
    c.bank.set_expert(e, matrices.weights());
  }
  c.backward();
  const moe::Matrix<float> d_rows = c.rows;
  std::vector<float> sums(static_cast<std::size_t>(c.plan.num_rows() * rounded.sums_size()));
  moe::Matrix<float> y(c.plan.num_rows(), config.d_model);
  rounded.forward(c.input(), y, sums, c.scratch);
  auto gradients = rounded.gradients();
  const moe::ExpertInput<float> in = c.input();
  moe::BankBackward<float> call{in, c.dy, sums, c.rows};
  call.weights = c.routing.weights;
  call.d_weights = c.d_weights;
  rounded.backward(call, gradients, c.scratch);
  for (std::size_t part = 0; part < 4; ++part)
    EXPECT_LT(distance(gradients.values()[part], c.gradients.values()[part]), 1e-5);
  EXPECT_TRUE(c.rows.isApprox(d_rows, 1e-5F));
  using Other = moe::FeedForwardExperts<float, moe::SwiGlu>;
  EXPECT_THROW(rounded.round_from(Other({.num_experts = 2, .d_model = d_model, .d_ff = d_ff})),
               moe::ShapeError);
  EXPECT_THROW(rounded.round_from(Other({.num_experts = 3, .d_model = d_model, .d_ff = d_ff})),
               std::invalid_argument);
}

TEST(FeedForwardBackward, OfRoundedWeightsBesideAMaster) {
  expect_rounded_weights_train<moe::bfloat16>(40, 24);
  expect_rounded_weights_train<moe::half>(40, 24);
  // More columns than a task takes, and more inner values than a slice.
  expect_rounded_weights_train<moe::bfloat16>(600, 290);
}

TEST(FeedForwardBackward, AddsToTheGradients) {
  const ExpertsConfig config = {.num_experts = 3, .d_model = 20, .d_ff = 10, .biases = true};
  Case<double, moe::SwiGlu> c(config, 6, 2, Weights::on_output);
  c.backward();
  std::vector<double> once;
  for (const auto part : c.gradients.values()) once.insert(once.end(), part.begin(), part.end());
  c.backward();
  std::vector<double> twice;
  for (const auto part : c.gradients.values()) twice.insert(twice.end(), part.begin(), part.end());
  for (std::size_t i = 0; i < once.size(); ++i) ASSERT_NEAR(twice[i], 2 * once[i], 1e-12);
  c.gradients.set_zero();
  for (const auto part : c.gradients.values())
    for (const double value : part) ASSERT_EQ(value, 0);
}

TEST(FeedForwardBackward, LeavesExpertsWithoutRowsAndFilledUpPanelsAtZero) {
  const ExpertsConfig config = {.num_experts = 40, .d_model = 20, .d_ff = 10};
  Case<double, moe::SwiGlu> c(config, 3, 2, Weights::on_output);
  c.backward();
  double sum = 0;
  for (Index e = 0; e < config.num_experts; ++e) {
    const moe::ExpertMatrices<double> g = c.gradients.expert(e);
    if (c.plan.rows_of(e) == 0) {
      EXPECT_TRUE(g.up.isZero(0) && g.gate.isZero(0));
    }
    sum += g.gate.cwiseAbs().sum() + g.up.cwiseAbs().sum() + g.down.cwiseAbs().sum();
  }
  double all = 0;
  for (const auto part : c.gradients.values())
    for (const double value : part) all += std::fabs(value);
  EXPECT_NEAR(all, sum, 1e-9 * sum);
}

TEST(FeedForwardBackward, LeavesFilledUpPanelsAtZeroWhateverTheWeights) {
  const ExpertsConfig config = {.num_experts = 2, .d_model = 20, .d_ff = 10, .biases = true};
  Case<float, moe::SwiGlu> c(config, 5, 1, Weights::on_output);
  c.routing.weights(0, 0) = std::numeric_limits<float>::infinity();
  c.backward();
  const auto count = [](std::span<const float> values) {
    return std::count_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
  };
  std::ptrdiff_t all = 0;
  for (const auto part : c.gradients.values()) all += count(part);
  std::ptrdiff_t in_matrices = 0;
  for (Index e = 0; e < config.num_experts; ++e) {
    const moe::ExpertMatrices<float> g = c.gradients.expert(e);
    const auto add = [&](const auto& m) {
      in_matrices += count({m.data(), static_cast<std::size_t>(m.size())});
    };
    add(g.gate);
    add(g.up);
    add(g.down);
    add(g.gate_bias);
    add(g.up_bias);
    add(g.down_bias);
  }
  EXPECT_GT(all, 0);
  EXPECT_EQ(all, in_matrices);
}

/// Experts with a row each fill a panel of 32 each, for which there is to be no more memory.
TEST(FeedForwardBackward, TakesNoMoreExpertsTogetherThanFillItsMemory) {
  constexpr Index experts = 200;
  const Case<float, moe::SwiGlu> c({.num_experts = experts, .d_model = 4, .d_ff = 4}, 300, 1,
                                   Weights::none);
  std::vector<moe::detail::RowPiece> pieces;
  Index rows = 0;
  moe::detail::for_each_group(c.plan, 512, 1024, pieces, [&](Index panels) {
    EXPECT_LT(panels * moe::kernels::panel_width, 1024 + 512);
    for (const auto& piece : pieces) rows += piece.rows;
  });
  EXPECT_EQ(rows, c.plan.num_rows());
}

TEST(FeedForwardBackward, RefusesGradientsOfAnotherBank) {
  Case<float, moe::SwiGlu> c({.num_experts = 2, .d_model = 8, .d_ff = 4}, 3, 1, Weights::none);
  c.gradients =
      Case<float, moe::SwiGlu>::Bank::Gradients({.num_experts = 2, .d_model = 8, .d_ff = 5});
  EXPECT_THROW(c.backward(), moe::ShapeError);
}

TEST(FeedForwardBackward, RefusesWhatDoesNotFit) {
  Case<float, moe::SwiGlu> c({.num_experts = 2, .d_model = 8, .d_ff = 4}, 3, 1, Weights::none);
  std::vector<float> sums(static_cast<std::size_t>(c.plan.num_rows() * c.bank.sums_size()));
  const moe::ExpertInput<float> in = c.input();
  const moe::Matrix<float> wrong(2, 8);
  moe::Matrix<float> wrong_weights(3, 2);
  const std::vector<std::uint8_t> frozen(3);
  const auto refuses = [&](const moe::BankBackward<float>& call) {
    EXPECT_THROW(c.bank.backward(call, c.gradients, c.scratch), moe::ShapeError);
  };
  refuses({in, wrong, sums, c.rows});
  refuses({in, c.dy, std::span(sums).first(1), c.rows});
  refuses({.input = in, .dy = c.dy, .sums = sums, .rows = c.rows, .weights = wrong_weights});
  refuses({.input = in, .dy = c.dy, .sums = sums, .rows = c.rows, .d_weights = wrong_weights});
  refuses({.input = in, .dy = c.dy, .sums = sums, .rows = c.rows, .frozen = frozen});
  c.bank.backward({in, c.dy, sums, c.rows}, c.gradients, c.scratch);
}

}  // namespace feed_forward_backward_test
