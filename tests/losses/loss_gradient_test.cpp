// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Analytic gradients of every loss against central differences in double, with the choices held.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/contracts.hpp>
#include <moe/core/random.hpp>
#include <moe/losses/conventions.hpp>
#include <moe/losses/device_balance.hpp>
#include <moe/losses/logit_losses.hpp>
#include <moe/losses/loss_gradient.hpp>
#include <moe/losses/variation.hpp>
#include <moe/routing/capacity.hpp>
#include <moe/routing/plan.hpp>

#include "support/differences.hpp"
#include "support/reference.hpp"
#include "support/routings.hpp"

namespace loss_gradient_test {

using moe::Index;
using moe::Routing;
using moe::ScoreFunction;
using moe::Vector;
using moe::losses::BalanceScale;
using moe::losses::BalanceSums;
using moe::losses::LossGradient;
using moe::losses::Variance;
using test_support::random_logits;
using test_support::route;

using Matrix = moe::Matrix<double>;

constexpr Index tokens = 9;
constexpr Index experts = 6;
const std::vector<std::uint8_t> some_tokens = {1, 0, 1, 1, 1, 0, 1, 1, 0};

/// At each coordinate of x, which is left as it was.
void expect_slopes(Matrix& x, const Matrix& gradient, const std::function<double()>& f,
                   const std::string& what) {
  const auto size = static_cast<std::size_t>(x.size());
  test_support::expect_some_slopes(what, x.data(), gradient.data(), size, f, size);
}

using Loss = std::function<double(const Routing<double>&, LossGradient<double>)>;

/// Checks a loss of the routing of random logits, by each score function. A first gradient of 1
/// everywhere and a coefficient of -0.5 show that it is added, and scaled.
void expect_gradient(const char* name, Index top_k, const Loss& loss) {
  for (const ScoreFunction function : {ScoreFunction::softmax, ScoreFunction::sigmoid,
                                       ScoreFunction::sqrt_softplus, ScoreFunction::identity}) {
    Matrix logits = random_logits(tokens, experts, 41);
    Routing<double> routing = route<double>(logits, top_k, function);
    Matrix gradient = Matrix::Ones(tokens, experts);
    const double value = loss(routing, {gradient, -0.5});
    EXPECT_EQ(value, loss(routing, {})) << name;
    gradient = (gradient.array() - 1) / -0.5;
    expect_slopes(
        logits, gradient,
        [&] {
          const Routing<double> moved = route<double>(logits, top_k, function);
          routing.logits = moved.logits;
          routing.scores = moved.scores;
          return loss(routing, {});
        },
        name + std::string(", score function ") + std::to_string(static_cast<int>(function)));
  }
}

TEST(LossGradient, OfLoadBalancing) {
  for (const BalanceScale scale :
       {BalanceScale::per_choice, BalanceScale::per_token, BalanceScale::first_choice,
        BalanceScale::gshard_paper, BalanceScale::unscaled}) {
    expect_gradient("load_balancing", 2, [=](const auto& routing, auto gradient) {
      return moe::losses::load_balancing(routing, scale, some_tokens, gradient);
    });
    expect_gradient("load_balancing_by_group", 2, [=](const auto& routing, auto gradient) {
      return moe::losses::load_balancing_by_group(routing, 4, scale, {}, gradient);
    });
    // The second group of two tokens has none that counts.
    const std::vector<std::uint8_t> mask = {1, 1, 0, 0, 1, 0, 1, 1, 1};
    expect_gradient("load_balancing_by_group", 2, [=](const auto& routing, auto gradient) {
      return moe::losses::load_balancing_by_group(routing, 2, scale, mask, gradient);
    });
  }
}

TEST(LossGradient, OfSeveralLayers) {
  const Routing<double> other = route<double>(random_logits(tokens, experts, 5), 2);
  for (const bool is_first : {true, false}) {
    expect_gradient("load_balancing_of_layers", 2, [&](const auto& routing, auto gradient) {
      Matrix unused = Matrix::Zero(tokens, experts);
      std::vector<const Routing<double>*> layers = {&routing, &other};
      std::vector<LossGradient<double>> gradients = {gradient, {unused, 1}};
      if (!is_first) {
        std::swap(layers[0], layers[1]);
        std::swap(gradients[0], gradients[1]);
      }
      if (!gradient.wanted()) gradients.clear();
      return moe::losses::load_balancing_of_layers<double>(layers, BalanceScale::per_token, {},
                                                           gradients);
    });
  }
}

TEST(LossGradient, OfAGlobalBatchInAMicroBatch) {
  const BalanceSums global =
      moe::losses::balance_sums(route<double>(random_logits(50, experts, 6), 2));
  expect_gradient("load_balancing", 2, [&](const auto& routing, auto gradient) {
    const BalanceSums own = moe::losses::balance_sums(routing);
    moe::losses::add_probability_gradient(routing, moe::losses::load_balancing_slopes(global, own),
                                          gradient);
    return moe::losses::load_balancing(global, own);
  });
}

TEST(LossGradient, OfEveryConvention) {
  namespace losses = moe::losses;
  const std::pair<const char*, Loss> all[] = {
      {"switch_transformer",
       [](const auto& r, auto g) { return losses::switch_transformer(r, some_tokens, g); }},
      {"gshard_paper", [](const auto& r, auto g) { return losses::gshard_paper(r, {}, g); }},
      {"gshard_code", [](const auto& r, auto g) { return losses::gshard_code(r, {}, g); }},
      {"transformers", [](const auto& r, auto g) { return losses::transformers(r, {}, g); }},
      {"flaxformer", [](const auto& r, auto g) { return losses::flaxformer(r, 3, {}, g); }},
      {"megatron", [](const auto& r, auto g) { return losses::megatron(r, {}, g); }},
      {"megablocks", [](const auto& r, auto g) { return losses::megablocks(r, {}, g); }},
      {"deepspeed", [](const auto& r, auto g) { return losses::deepspeed(r, {}, g); }},
      {"tutel", [](const auto& r, auto g) { return losses::tutel(r, {}, g); }},
      {"deepseek_expert", [](const auto& r, auto g) { return losses::deepseek_expert(r, {}, g); }},
      {"deepseek_sequence",
       [](const auto& r, auto g) { return losses::deepseek_sequence(r, 5, some_tokens, g); }},
      {"tutel_load_importance",
       [](const auto& r, auto g) {
         Vector<double> load(experts);
         load << 1, 2, 3, 4, 5, 6;
         return losses::tutel_load_importance(r, load, some_tokens, g);
       }},
      {"device_balance",
       [](const auto& r, auto g) { return losses::device_balance(r, 3, some_tokens, g); }},
      {"communication_balance",
       [](const auto& r, auto g) {
         return losses::communication_balance(r, 3, 2, some_tokens, g);
       }},
      {"mean_entropy",
       [](const auto& r, auto g) { return losses::mean_entropy(r, some_tokens, g); }},
      {"z_loss", [](const auto& r, auto g) { return losses::z_loss(r, some_tokens, g); }},
  };
  for (const auto& [name, loss] : all) expect_gradient(name, 2, loss);

  expect_gradient("fastmoe_switch", 1, [](const auto& r, auto g) {
    moe::DispatchPlan plan;
    moe::make_plan(r, {.formula = moe::CapacityFormula::fixed, .fixed_rows = 2}, plan);
    EXPECT_FALSE(plan.dropped.empty());
    return losses::fastmoe_switch(r, plan, {}, g);
  });
}

TEST(LossGradient, OfImportanceByTheWeights) {
  for (const Variance variance : {Variance::population, Variance::unbiased}) {
    Routing<double> routing = route<double>(random_logits(tokens, experts, 43), 3);
    routing.experts(2, 2) = moe::no_expert;
    routing.weights(2, 2) = 0;
    Matrix gradient = Matrix::Zero(tokens, 3);
    moe::losses::importance(routing, variance, some_tokens, {gradient, 1});
    Matrix weights = routing.weights;
    expect_slopes(
        weights, gradient,
        [&] {
          const double kept = weights(2, 2);
          weights(2, 2) = 0;  // An unused slot must have weight 0.
          routing.weights = weights;
          weights(2, 2) = kept;
          return static_cast<double>(moe::losses::importance(routing, variance, some_tokens));
        },
        "importance");
  }
}

TEST(LossGradient, OfTheSmoothLoadByEachArgument) {
  using moe::losses::LoadThreshold;
  for (const LoadThreshold threshold : {LoadThreshold::excluding, LoadThreshold::kth}) {
    Matrix logits = random_logits(tokens, experts, 1);
    Matrix noisy = random_logits(tokens, experts, 2);
    Matrix deviation = random_logits(tokens, experts, 3).cwiseAbs().array() + 0.3;
    Matrix gradient[3];
    for (Matrix& part : gradient) part = Matrix::Zero(tokens, experts);
    const auto loss = [&](const moe::losses::LoadGradient<double>& to) {
      return moe::losses::load(logits, noisy, deviation, 2, Variance::unbiased, threshold,
                               some_tokens, to);
    };
    loss({gradient[0], gradient[1], gradient[2], 2});
    for (Matrix& part : gradient) part /= 2;
    const auto value = [&] { return loss({}); };
    expect_slopes(logits, gradient[0], value, "logits");
    expect_slopes(noisy, gradient[1], value, "noisy logits");
    expect_slopes(deviation, gradient[2], value, "deviation");

    const Matrix before = gradient[0];
    moe::losses::load(logits, noisy, deviation, experts, Variance::unbiased, threshold, {},
                      {gradient[0], gradient[1], gradient[2], 1});
    EXPECT_EQ(gradient[0], before) << "with K = E there is none";
  }
}

TEST(LossGradient, SumsOfLossesShareAMatrix) {
  const Routing<double> routing = route<double>(random_logits(tokens, experts, 8), 2);
  Matrix balance = Matrix::Zero(tokens, experts);
  Matrix z = Matrix::Zero(tokens, experts);
  Matrix both = Matrix::Zero(tokens, experts);
  moe::losses::megatron(routing, {}, {balance, 0.01});
  moe::losses::z_loss(routing, {}, {z, 0.001});
  moe::losses::megatron(routing, {}, {both, 0.01});
  moe::losses::z_loss(routing, {}, {both, 0.001});
  EXPECT_TRUE(both.isApprox(balance + z, 1e-14));
}

TEST(LossGradient, LeavesTokensAloneThatDoNotCount) {
  const Routing<float> routing = route<float>(random_logits(tokens, experts, 8), 2);
  moe::Matrix<float> gradient = moe::Matrix<float>::Zero(tokens, experts);
  moe::losses::load_balancing(routing, BalanceScale::per_token, some_tokens, {gradient, 1});
  moe::losses::z_loss(routing, some_tokens, {gradient, 1});
  moe::losses::mean_entropy(routing, some_tokens, {gradient, 1});
  for (Index t = 0; t < tokens; ++t)
    EXPECT_EQ(gradient.row(t).isZero(0), some_tokens[static_cast<std::size_t>(t)] == 0) << t;
}

TEST(LossGradient, RefusesMatricesOfAnotherShapeAndRoutingsWithoutScores) {
  Routing<double> routing = route<double>(random_logits(tokens, experts, 8), 2);
  Matrix wrong = Matrix::Zero(tokens, experts + 1);
  Matrix right = Matrix::Zero(tokens, experts);
  EXPECT_THROW(moe::losses::megatron(routing, {}, {wrong, 1}), moe::ShapeError);
  EXPECT_THROW(moe::losses::flaxformer(routing, 3, {}, {wrong, 1}), moe::ShapeError);
  EXPECT_THROW(moe::losses::z_loss(routing, {}, {wrong, 1}), moe::ShapeError);
  EXPECT_THROW(moe::losses::importance(routing, Variance::population, {}, {right, 1}),
               moe::ShapeError);
  EXPECT_THROW(moe::losses::megatron(routing, {}, {right, NAN}), std::invalid_argument);
  const Matrix ones = Matrix::Ones(tokens, experts);
  EXPECT_THROW(moe::losses::load<Matrix>(ones, ones, ones, 2, Variance::population, {}, {},
                                         {.logits = right, .coefficient = NAN}),
               std::invalid_argument);
  const moe::Vector<double> slopes = moe::Vector<double>::Ones(experts);
  Routing<double> few = routing;
  few.scores.resize(tokens - 1, experts);
  EXPECT_THROW(moe::losses::add_probability_gradient<double>(few, slopes, {right, 1}),
               moe::ShapeError);
  routing.logits.resize(0, 0);
  EXPECT_THROW(moe::losses::z_loss(routing, {}, {right, 1}), std::invalid_argument);
  routing.scores.resize(0, 0);
  EXPECT_THROW(moe::losses::mean_entropy(routing, {}, {right, 1}), std::invalid_argument);
  EXPECT_TRUE(right.isZero(0));
}

}  // namespace loss_gradient_test
