// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The backward pass of every router within a block against central differences in double, and
// where a block's backward ends if the routing or the router is the caller's own.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/moe.hpp>

#include "support/differences.hpp"
#include "support/threads.hpp"

namespace router_backward_test {

using moe::Index;
using moe::Matrix;
using moe::MatrixView;
using moe::RouteOptions;
using moe::RoutingRule;
using test_support::expect_some_slopes;

constexpr Index tokens = 12;
constexpr Index d_model = 7;
constexpr Index experts = 6;

Matrix<double> random(Index rows, Index cols, std::uint64_t seed) {
  Matrix<double> m(rows, cols);
  moe::detail::fill_uniform(m.data(), m.size(), 1, seed);
  return m;
}

using Bank = moe::FeedForwardExperts<double, moe::SwiGlu>;

Bank make_bank(Index size = experts) {
  Bank bank({.num_experts = size, .d_model = d_model, .d_ff = 5});
  std::uint64_t seed = 3;
  for (const auto part : bank.values()) {
    const Matrix<double> m = random(1, static_cast<Index>(part.size()), ++seed);
    std::copy_n(m.data(), part.size(), part.begin());
  }
  return bank;
}

/// Adds losses' gradients to a tape if there is one, and gives their value.
using Losses = std::function<double(const moe::Routing<double>&, const moe::NoisyLogits<double>&,
                                    moe::Tape<double>*)>;

/// A weight of a router, and its gradient; of a router of routers, that of this type of tokens.
template <class RouterT>
struct Part {
  std::string name;
  Matrix<double>* weight;
  Matrix<double> moe::RouterGradients<double>::*gradient;
  std::size_t type = 0;

  const Matrix<double>& of(const typename RouterT::Gradients& gradients) const {
    if constexpr (requires { gradients.of_type; }) {
      return gradients.of_type.at(type).*gradient;
    } else {
      return gradients.*gradient;
    }
  }
};

/// `make()` makes the router of the weights as they are.
template <class Make>
void expect_gradients(const Make& make, const std::vector<Part<decltype(make())>>& parts,
                      RouteOptions options = {}, const Losses& losses = {},
                      moe::Capacity capacity = {}) {
  const Bank bank = make_bank();
  Matrix<double> x = random(tokens, d_model, 50);
  const Matrix<double> dy = random(tokens, d_model, 51);
  Matrix<double> y(tokens, d_model);
  Matrix<double> dx(tokens, d_model);
  moe::Tape<double> tape;
  moe::Workspace<double> workspace;
  const auto run = [&](moe::Tape<double>& to) {
    const moe::SparseMoe layer{make(), bank, {}, capacity};
    layer.forward(x, y, to, workspace, options);
    return (y.array() * dy.array()).sum();
  };
  const moe::SparseMoe layer{make(), bank, {}, capacity};
  layer.forward(x, y, tape, workspace, options);
  if (losses) losses(tape.routing, tape.drawn, &tape);
  auto gradients = layer.gradients();
  layer.backward(x, tape, dy, dx, gradients, workspace);
  // A router that is frozen gets nothing, and tokens get the same.
  Matrix<double> dx_of_frozen(tokens, d_model);
  moe::Tape<double> again;
  layer.forward(x, y, again, workspace, options);
  if (losses) losses(again.routing, again.drawn, &again);
  auto of_frozen = layer.gradients();
  of_frozen.frozen.router = true;
  layer.backward(x, again, dy, dx_of_frozen, of_frozen, workspace);
  EXPECT_EQ(dx_of_frozen, dx);
  for (const auto& part : parts)
    EXPECT_TRUE(part.of(of_frozen.router).isZero(0)) << part.name << " is frozen";
  // Whatever the tape keeps.
  for (const moe::TapePolicy policy : {moe::TapePolicy::keep_all, moe::TapePolicy::recompute}) {
    moe::Tape<double> kept{.policy = policy};
    Matrix<double> dx_of_kept(tokens, d_model);
    layer.forward(x, y, kept, workspace, options);
    if (losses) losses(kept.routing, kept.drawn, &kept);
    auto of_kept = layer.gradients();
    layer.backward(x, kept, dy, dx_of_kept, of_kept, workspace);
    EXPECT_EQ(dx_of_kept, dx);
    for (const auto& part : parts) EXPECT_EQ(part.of(of_kept.router), part.of(gradients.router));
  }
  moe::Tape<double> other;
  const auto loss = [&] {
    const double value = run(other);
    return value + (losses ? losses(other.routing, other.drawn, nullptr) : 0);
  };
  expect_some_slopes("x", x.data(), dx.data(), static_cast<std::size_t>(x.size()), loss);
  for (const auto& part : parts)
    expect_some_slopes(part.name, part.weight->data(), part.of(gradients.router).data(),
                       static_cast<std::size_t>(part.weight->size()), loss);
}

constexpr auto weight_of = &moe::RouterGradients<double>::weight;

/// Balance by the scores and z-loss by the logits, each with its own matrix.
double both_losses(const moe::Routing<double>& routing, const moe::NoisyLogits<double>& /*drawn*/,
                   moe::Tape<double>* tape) {
  moe::losses::LossGradient<double> scored{.coefficient = 0.7};
  moe::losses::LossGradient<double> logits{.coefficient = 0.3};
  if (tape != nullptr) {
    scored.sum = tape->d_scored;
    logits.sum = tape->d_logits;
  }
  return 0.7 * moe::losses::load_balancing(routing, moe::losses::BalanceScale::per_choice, {},
                                           scored) +
         0.3 * moe::losses::z_loss(routing, {}, logits);
}

struct TopK {
  RoutingRule rule = {.renormalization = {.kind = moe::Renormalization::sum}};
  moe::RouterWeights<double> weights = {.weight = random(experts, d_model, 1)};

  moe::TopKRouter<double> operator()() const {
    return {{.d_model = d_model, .num_experts = experts, .top_k = 2, .rule = rule}, weights};
  }
};

/// 2 rows for each of 6 experts: of 24 choices, or 12 with K = 1, some are dropped.
constexpr moe::Capacity small{.formula = moe::CapacityFormula::fixed, .fixed_rows = 2};

TEST(RouterBackward, OfEveryFormOfLogits) {
  using G = moe::RouterGradients<double>;
  const auto expect = [](const TopK& make, const std::vector<Part<moe::TopKRouter<double>>>& parts,
                         const RouteOptions& options = {}) {
    for (const moe::Capacity& capacity : {moe::Capacity{}, small})
      expect_gradients(make, parts, options, both_losses, capacity);
  };
  for (const moe::WeightSource source :
       {moe::WeightSource::scores, moe::WeightSource::softmax_of_chosen}) {
    TopK cosine;
    cosine.rule.weights_from = source;
    cosine.rule.logits = {.form = moe::LogitForm::cosine, .temperature = 0.3};
    expect(cosine, {{"weight", &cosine.weights.weight, weight_of}});
    cosine.weights = {.weight = random(experts, 4, 1), .projection = random(4, d_model, 2)};
    expect(cosine, {{"weight", &cosine.weights.weight, weight_of},
                    {"projection", &cosine.weights.projection, &G::projection}});
    TopK layers;
    layers.rule.weights_from = source;
    layers.rule.logits.form = moe::LogitForm::two_layer;
    layers.weights = {.weight = random(experts, 4, 1),
                      .projection = random(4, d_model, 2),
                      .projection_bias = random(1, 4, 3).row(0)};
    expect(layers, {{"weight", &layers.weights.weight, weight_of},
                    {"projection", &layers.weights.projection, &G::projection}});
    TopK scaled;
    scaled.rule.weights_from = source;
    scaled.rule.logits.standard_deviation = 1.7;
    expect(scaled, {{"weight", &scaled.weights.weight, weight_of}});
    scaled.rule.logits.noise = 0.4;
    scaled.rule.jitter = {.target = moe::JitterTarget::router_input, .epsilon = 0.2};
    expect(scaled, {{"weight", &scaled.weights.weight, weight_of}}, {.training = true, .seed = 5});
  }
}

/// What a router's backward takes for a routing of its own, nothing of which was dropped.
struct OwnCall {
  const Matrix<double>& x;
  RouteOptions options;
  moe::RouteInputs<double> inputs;
  moe::Routing<double> routing;
  moe::DispatchPlan plan;
  Matrix<double> d_logits = Matrix<double>::Zero(x.rows(), experts);
  Matrix<double> dx = Matrix<double>::Zero(x.rows(), d_model);

  OwnCall(const moe::TopKRouter<double>& router, const Matrix<double>& tokens_of_it,
          RouteOptions its_options = {}, const moe::RouteInputs<double>& its_inputs = {})
      : x(tokens_of_it), options(its_options), inputs(its_inputs) {
    router.route(x, inputs, options, routing);
    moe::make_plan(routing, {}, plan);
  }
  OwnCall(const moe::SparseMixerRouter<double>& router, const Matrix<double>& tokens_of_it,
          RouteOptions its_options)
      : x(tokens_of_it), options(its_options) {
    router.route(x, options, routing);
    moe::make_plan(routing, {}, plan);
  }

  moe::RouterBackward<double> with(const Matrix<double>& slope) {
    return {.x = x,
            .options = options,
            .routing = routing,
            .plan = plan,
            .d_weights = slope,
            .d_logits = d_logits,
            .dx = dx,
            .inputs = inputs};
  }
};

TEST(RouterBackward, OfTheBiasOfAProjection) {
  TopK make;
  make.rule.logits.form = moe::LogitForm::two_layer;
  make.weights = {.weight = random(experts, 4, 1),
                  .projection = random(4, d_model, 2),
                  .projection_bias = random(1, 4, 3).row(0)};
  const Matrix<double> x = random(tokens, d_model, 50);
  const Matrix<double> slope = random(tokens, 2, 54);
  OwnCall call(make(), x);
  auto gradients = make().gradients();
  make().backward(call.with(slope), gradients);
  expect_some_slopes("projection bias", make.weights.projection_bias.data(),
                     gradients.projection_bias.data(), 4, [&] {
                       make().route(x, {}, call.routing);
                       return (call.routing.weights.array() * slope.array()).sum();
                     });
}

TEST(RouterBackward, OfALogitThatDoesNotMove) {
  // Equal logits cannot be scaled, and a token of zeros has no direction: all stays finite.
  TopK router;
  router.rule.logits.standard_deviation = 1;
  router.weights.weight.setZero();
  const Bank bank = make_bank();
  Matrix<double> x = random(tokens, d_model, 50);
  x.row(0).setZero();
  Matrix<double> y(tokens, d_model);
  Matrix<double> dx(tokens, d_model);
  moe::Tape<double> tape;
  moe::SparseMoe layer{router(), bank};
  layer.forward(x, y, tape);
  auto gradients = layer.gradients();
  layer.backward(x, tape, x, dx, gradients);
  EXPECT_TRUE(gradients.router.weight.allFinite());
  router.rule.logits = {.form = moe::LogitForm::cosine};
  moe::SparseMoe turned{router(), bank};
  turned.forward(x, y, tape);
  gradients = turned.gradients();
  turned.backward(x, tape, x, dx, gradients);
  EXPECT_TRUE(gradients.router.weight.allFinite());
  EXPECT_TRUE(dx.allFinite());
}

TEST(RouterBackward, OfPreviousLogitsAndNoiseOfTheCallers) {
  TopK make;
  make.weights.residual = random(experts, 3, 4);
  make.weights.bias = random(1, experts, 5).row(0);
  make.rule.logits.noise = 0.5;
  make.rule.jitter = {.target = moe::JitterTarget::router_input, .epsilon = 0.3};
  Matrix<double> x = random(tokens, d_model, 50);
  Matrix<double> previous = random(tokens, 3, 51);
  const Matrix<double> noise = random(tokens, experts, 52);
  const Matrix<double> jitter = (random(tokens, d_model, 53).array() + 2) / 4;
  const Matrix<double> slope = random(tokens, 2, 54);
  const moe::RouteInputs<double> inputs{jitter, noise, previous};
  const RouteOptions options{.training = true};
  OwnCall call(make(), x, options, inputs);
  Matrix<double> d_previous = Matrix<double>::Zero(tokens, 3);
  auto gradients = make().gradients();
  moe::RouterBackward<double> its_call = call.with(slope);
  its_call.d_previous_logits = d_previous;
  make().backward(its_call, gradients);
  moe::Routing<double> other;
  const auto loss = [&] {
    make().route(x, inputs, options, other);
    return (other.weights.array() * slope.array()).sum();
  };
  const auto check = [&](const char* name, auto& values, const auto& slopes) {
    expect_some_slopes(name, values.data(), slopes.data(), static_cast<std::size_t>(values.size()),
                       loss);
  };
  check("x", x, call.dx);
  check("previous", previous, d_previous);
  check("weight", make.weights.weight, gradients.weight);
  check("residual", make.weights.residual, gradients.residual);
  check("bias", make.weights.bias, gradients.bias);
}

/// The importance, by the weights as they were routed.
double importance(const moe::Routing<double>& routing, const moe::NoisyLogits<double>& /*drawn*/,
                  moe::Tape<double>* tape) {
  moe::losses::LossGradient<double> gradient{.coefficient = 0.4};
  if (tape != nullptr) gradient.sum = tape->d_weights;
  return 0.4 * moe::losses::importance(routing, moe::losses::Variance::unbiased, {}, gradient);
}

/// The smooth load by the logits, and the importance by the weights.
double loads(const moe::Routing<double>& routing, const moe::NoisyLogits<double>& drawn,
             moe::Tape<double>* tape) {
  moe::losses::LoadGradient<double> load{.coefficient = 0.5};
  if (tape != nullptr) {
    load.logits = tape->d_logits;
    load.noisy_logits = tape->d_scored;
    load.deviation = tape->d_deviation;
  }
  return 0.5 * moe::losses::load(routing.logits, drawn.noisy_logits, drawn.deviation, 2,
                                 moe::losses::Variance::population,
                                 moe::losses::LoadThreshold::excluding, {}, load) +
         importance(routing, drawn, tape);
}

TEST(RouterBackward, OfTheNoisyRouterWithItsLoads) {
  Matrix<double> gate = random(experts, d_model, 1);
  Matrix<double> noise = random(experts, d_model, 2);
  const auto make = [&] {
    return moe::NoisyTopKRouter<double>(
        {.d_model = d_model, .num_experts = experts, .top_k = 2, .noise_epsilon = 0.1}, gate,
        noise);
  };
  using Router = decltype(make());
  const Part<Router> of_gate{"gate", &gate, weight_of};
  const Part<Router> of_noise{"noise", &noise, &moe::RouterGradients<double>::noise_weight};
  for (const moe::Capacity& capacity : {moe::Capacity{}, small})
    expect_gradients(make, {of_gate, of_noise}, {.training = true, .seed = 8}, loads, capacity);
  expect_gradients(make, {of_gate, of_noise}, {.training = true, .seed = 9}, both_losses);
  expect_gradients(make, {of_gate}, {}, both_losses);
}

TEST(RouterBackward, OfALossByTheWeights) {
  TopK top;
  Matrix<double> weight = random(experts, d_model, 1);
  const auto mixer = [&] {
    return moe::SparseMixerRouter<double>(
        {.d_model = d_model, .num_experts = experts, .jitter = 0.4}, weight);
  };
  const auto base = [&] { return moe::BaseRouter<double>(weight); };
  const auto choice = [&] {
    return moe::ExpertChoiceRouter<double>({.d_model = d_model, .num_experts = experts}, weight);
  };
  for (const moe::Capacity& capacity : {moe::Capacity{}, small}) {
    expect_gradients(top, {{"weight", &top.weights.weight, weight_of}}, {}, importance, capacity);
    expect_gradients(mixer, {{"weight", &weight, weight_of}}, {}, importance, capacity);
    expect_gradients(base, {{"weight", &weight, weight_of}}, {}, importance, capacity);
  }
  expect_gradients(choice, {{"weight", &weight, weight_of}}, {}, importance);
}

TEST(RouterBackward, OfTheSparseMixer) {
  Matrix<double> weight = random(experts, d_model, 1);
  const auto make = [&] {
    return moe::SparseMixerRouter<double>(
        {.d_model = d_model, .num_experts = experts, .jitter = 0.4}, weight);
  };
  for (const moe::Capacity& capacity : {moe::Capacity{}, small})
    expect_gradients(make, {{"weight", &weight, weight_of}}, {}, both_losses, capacity);
}

/// In training choices are drawn, and the estimator is no derivative of what differences see. But
/// with jittered tokens it is what it is for these tokens without jitter, times the jitter.
TEST(RouterBackward, OfTheSparseMixersJitter) {
  const Matrix<double> weight = random(experts, d_model, 1);
  const Bank bank = make_bank();
  const Matrix<double> x = random(tokens, d_model, 50);
  const Matrix<double> dy = random(tokens, d_model, 51);
  const RouteOptions options{.training = true, .seed = 4};
  struct Seen {
    Matrix<double> y;
    Matrix<double> dx;
    Matrix<double> d_weight;
  };
  const auto run = [&](double input_jitter, const Matrix<double>& in) {
    const moe::SparseMoe layer{moe::SparseMixerRouter<double>({.d_model = d_model,
                                                               .num_experts = experts,
                                                               .jitter = 0.4,
                                                               .input_jitter = input_jitter},
                                                              weight),
                               bank};
    Seen seen{Matrix<double>(tokens, d_model), Matrix<double>(tokens, d_model), {}};
    moe::Tape<double> tape;
    moe::Workspace<double> workspace;
    layer.forward(in, seen.y, tape, workspace, options);
    auto gradients = layer.gradients();
    layer.backward(in, tape, dy, seen.dx, gradients, workspace);
    seen.d_weight = gradients.router.weight;
    return seen;
  };
  moe::GrowingMatrix<double> buffer;
  const moe::SparseMixerRouter<double> router(
      {.d_model = d_model, .num_experts = experts, .input_jitter = 0.2}, weight);
  const Matrix<double> jittered = router.hidden_states(x, options, buffer).map();
  const Seen with = run(0.2, x);
  const Seen without = run(0, jittered);
  EXPECT_FALSE(jittered.isApprox(x, 0.02));
  EXPECT_EQ(with.y, without.y);
  EXPECT_EQ(with.d_weight, without.d_weight);
  EXPECT_FALSE(with.d_weight.isZero(0));
  const Matrix<double> expected = without.dx.cwiseProduct(jittered.cwiseQuotient(x));
  EXPECT_TRUE(with.dx.isApprox(expected, 1e-12)) << (with.dx - expected).cwiseAbs().maxCoeff();
}

TEST(RouterBackward, OfTheSparseMixersEstimator) {
  const Matrix<double> weight = random(experts, d_model, 1);
  const moe::SparseMixerRouter<double> router(
      {.d_model = d_model, .num_experts = experts, .jitter = 2}, weight);
  const Matrix<double> x = random(64, d_model, 50);
  OwnCall call(router, x, {.training = true, .seed = 4});
  const moe::Routing<double>& routing = call.routing;
  const Matrix<double>& d_logits = call.d_logits;
  Matrix<double> slope = Matrix<double>::Zero(64, 2);
  slope.col(0).setOnes();  // of the first choice alone
  auto gradients = router.gradients();
  router.backward(call.with(slope), gradients);
  Index thirds = 0;
  for (Index t = 0; t < 64; ++t) {
    // Who takes part has a slope of its own, so the softmax can be read back from the others'.
    double sum = 0;
    const Index chosen = routing.experts(t, 0);
    Index best = 0;
    for (Index e = 0; e < experts; ++e)
      if (routing.logits(t, e) > routing.logits(t, best)) best = e;
    const double most = routing.logits(t, best);
    std::vector<double> p(experts, 0);
    for (Index e = 0; e < experts; ++e) {
      const double z = routing.logits(t, e);
      if ((most - z) / std::fmax(std::fabs(z), most) <= 4)
        p[static_cast<std::size_t>(e)] = std::exp(z - most);
      sum += p[static_cast<std::size_t>(e)];
    }
    const double w = p[static_cast<std::size_t>(chosen)] / sum;
    thirds += routing.weights(t, 0) < 0.5 * w ? 1 : 0;
    for (Index e = 0; e < experts; ++e)
      EXPECT_NEAR(d_logits(t, e),
                  w * ((e == chosen ? 1 : 0) - p[static_cast<std::size_t>(e)] / sum), 1e-12);
  }
  EXPECT_GT(thirds, 3) << "weights that count a third have the whole slope";
}

TEST(RouterBackward, OfExpertsThatChoose) {
  Matrix<double> weight = random(experts, d_model, 1);
  for (const moe::ScoreFunction score :
       {moe::ScoreFunction::softmax, moe::ScoreFunction::sigmoid}) {
    const auto make = [&] {
      return moe::ExpertChoiceRouter<double>(
          {.d_model = d_model, .num_experts = experts, .score = score}, weight);
    };
    for (const moe::Capacity& capacity : {moe::Capacity{}, small})
      expect_gradients(make, {{"weight", &weight, weight_of}}, {}, both_losses, capacity);
  }
}

TEST(RouterBackward, OfBaseLayers) {
  Matrix<double> centroids = random(experts, d_model, 1);
  const auto make = [&] { return moe::BaseRouter<double>(centroids); };
  for (const bool training : {false, true})
    for (const moe::Capacity& capacity : {moe::Capacity{}, small})
      expect_gradients(make, {{"centroids", &centroids, weight_of}}, {.training = training}, {},
                       capacity);
}

TEST(RouterBackward, OfTheSecondExpertAtRandom) {
  TopK top;
  const Losses with_weights = [](const moe::Routing<double>& routing,
                                 const moe::NoisyLogits<double>& drawn, moe::Tape<double>* tape) {
    Index left_out = 0;
    for (Index t = 0; t < routing.tokens(); ++t)
      left_out += routing.experts(t, 1) == moe::no_expert ? 1 : 0;
    EXPECT_GT(left_out, 1);
    // By the weights, those of unused slots among them, which are always 0.
    double sum = 0;
    for (Index i = 0; i < routing.weights.size(); ++i)
      sum += static_cast<double>(i + 1) * routing.weights.data()[i];
    if (tape != nullptr)
      for (Index i = 0; i < routing.weights.size(); ++i)
        tape->d_weights.data()[i] += static_cast<double>(i + 1);
    return sum + both_losses(routing, drawn, tape);
  };
  const auto random_second = [&] { return moe::GShardRouter<double>(top()); };
  expect_gradients(random_second, {{"weight", &top.weights.weight, weight_of}},
                   {.training = true, .seed = 3}, with_weights);
  TopK scaled;
  scaled.rule = {.logits = {.standard_deviation = 1.4, .noise = 0.1},
                 .weights_from = moe::WeightSource::softmax_of_chosen};
  const auto sampled = [&] {
    return moe::GShardRouter<double>(scaled(), {.policy = moe::SecondExpertPolicy::sampling});
  };
  expect_gradients(sampled, {{"weight", &scaled.weights.weight, weight_of}},
                   {.training = true, .seed = 3}, both_losses);
  for (const moe::SecondExpertPolicy policy :
       {moe::SecondExpertPolicy::best, moe::SecondExpertPolicy::random,
        moe::SecondExpertPolicy::sampling}) {
    const auto make = [&] { return moe::GShardRouter<double>(top(), {.policy = policy}); };
    expect_gradients(make, {{"weight", &top.weights.weight, weight_of}},
                     {.training = true, .seed = 3}, both_losses);
    expect_gradients(make, {{"weight", &top.weights.weight, weight_of}},
                     {.training = true, .seed = 3}, both_losses,
                     {.formula = moe::CapacityFormula::fixed, .fixed_rows = 3});
  }
}

TEST(RouterBackward, OfATableOfExperts) {
  Matrix<double> weight = random(experts, d_model, 1);
  moe::Matrix<moe::ExpertIndex> table(3, 2);
  table << 0, 4, 5, 1, 2, 3;
  std::vector<std::int32_t> ids;
  for (Index t = 0; t < tokens; ++t) ids.push_back(static_cast<std::int32_t>(t % 3));
  const auto make = [&] {
    return moe::HashRouter<double>(
        weight, RoutingRule{.renormalization = {.kind = moe::Renormalization::sum}}, table);
  };
  for (const moe::Capacity& capacity : {moe::Capacity{}, small})
    expect_gradients(make, {{"weight", &weight, weight_of}}, {.token_ids = ids}, both_losses,
                     capacity);
  const auto without = [&] { return moe::HashRouter<double>(d_model, experts, table); };
  expect_gradients(without, {}, {.token_ids = ids});
}

/// Gradients of a router on 100 tokens, 80 wide so that several tasks have columns of a weight, for
/// each number of threads.
constexpr Index wide = 80;

template <class RouterT>
void expect_the_same_bits(const RouterT& router, RouteOptions options = {}) {
  const Matrix<double> x = random(100, wide, 50);
  const Matrix<double> dy = random(100, wide, 51);
  std::vector<double> first;
  std::mt19937_64 generator(9);
  const Bank bank = Bank::random({.num_experts = experts, .d_model = wide, .d_ff = 5}, generator);
  for (const int threads : {1, 2, 3, 7}) {
    const test_support::ScopedThreads scope(threads);
    moe::SparseMoe layer{router, bank};
    Matrix<double> y(100, wide);
    Matrix<double> dx(100, wide);
    moe::Tape<double> tape;
    layer.forward(x, y, tape, options);
    both_losses(tape.routing, tape.drawn, &tape);
    auto gradients = layer.gradients();
    layer.backward(x, tape, dy, dx, gradients);
    std::vector<double> all(dx.data(), dx.data() + dx.size());
    const auto add = [&](const moe::RouterGradients<double>& of) {
      for (const auto* m : {&of.weight, &of.noise_weight, &of.projection})
        all.insert(all.end(), m->data(), m->data() + m->size());
      for (const auto* v : {&of.bias, &of.projection_bias})
        all.insert(all.end(), v->data(), v->data() + v->size());
    };
    if constexpr (requires { gradients.router.of_type; }) {
      for (const auto& of : gradients.router.of_type) add(of);
    } else {
      add(gradients.router);
    }
    if (first.empty()) first = all;
    EXPECT_TRUE(all == first) << threads << " threads";
  }
}

TEST(RouterBackward, TheBitsDoNotDependOnTheNumberOfThreads) {
  const RouteOptions training{.training = true, .seed = 3};
  const Matrix<double> weight = random(experts, wide, 1);
  RoutingRule rule{.renormalization = {.kind = moe::Renormalization::sum}};
  moe::RouterWeights<double> weights{.weight = weight};
  const auto top = [&] {
    return moe::TopKRouter<double>(
        {.d_model = wide, .num_experts = experts, .top_k = 2, .rule = rule}, weights);
  };
  rule.logits = {.standard_deviation = 1.5, .noise = 0.1};
  rule.jitter = {.target = moe::JitterTarget::router_input, .epsilon = 0.1};
  expect_the_same_bits(top(), training);
  expect_the_same_bits(moe::GShardRouter<double>(top()), training);
  weights = {.weight = random(experts, 70, 1), .projection = random(70, wide, 2)};
  rule = {.logits = {.form = moe::LogitForm::cosine}};
  expect_the_same_bits(top());
  rule.logits.form = moe::LogitForm::two_layer;
  expect_the_same_bits(top());
  expect_the_same_bits(
      moe::NoisyTopKRouter<double>({.d_model = wide, .num_experts = experts, .top_k = 2}, weight,
                                   random(experts, wide, 2)),
      training);
  expect_the_same_bits(moe::SparseMixerRouter<double>(
                           {.d_model = wide, .num_experts = experts, .jitter = 0.4}, weight),
                       training);
  expect_the_same_bits(
      moe::ExpertChoiceRouter<double>({.d_model = wide, .num_experts = experts}, weight));
  expect_the_same_bits(moe::BaseRouter<double>(weight));
  std::vector<std::int32_t> kinds;
  for (Index t = 0; t < 100; ++t) kinds.push_back(static_cast<std::int32_t>(t % 3 == 0));
  rule = {};
  weights = {.weight = weight, .bias = random(1, experts, 4).row(0)};
  expect_the_same_bits(moe::GroupRouter<moe::TopKRouter<double>>(top()), {.token_groups = kinds});
  expect_the_same_bits(
      moe::ModalityRouter<moe::TopKRouter<double>>(experts, {{top(), 0}, {top(), 0}}),
      {.token_types = kinds});
}

/// A router of a user's, without a backward pass: expert t mod E with weight 1 / (1 + t).
struct OwnRouter {
  using Scalar = double;
  Index d_model() const { return router_backward_test::d_model; }
  Index num_experts() const { return experts; }
  Index top_k() const { return 1; }
  void route(MatrixView<const double> x, RouteOptions options,
             moe::Routing<double>& routing) const {
    options.keep_logits = options.keep_scores = false;
    routing.resize(x.rows(), experts, 1, options);
    for (Index t = 0; t < x.rows(); ++t) {
      routing.experts(t, 0) = static_cast<moe::ExpertIndex>(t % experts);
      routing.weights(t, 0) = 1 / (1 + static_cast<double>(t));
    }
  }
};

TEST(RouterBackward, EndsAtTheWeightsOfARouterThatHasNone) {
  moe::SparseMoe layer{OwnRouter{}, make_bank()};
  const Matrix<double> x = random(tokens, d_model, 50);
  const Matrix<double> dy = random(tokens, d_model, 51);
  Matrix<double> y(tokens, d_model);
  Matrix<double> dx(tokens, d_model);
  moe::Tape<double> tape;
  layer.forward(x, y, tape);
  auto gradients = layer.gradients();
  layer.backward(x, tape, dy, dx, gradients);
  for (Index t = 0; t < tokens; ++t) {
    // y is the weight times the expert's output.
    const double product = y.row(t).dot(dy.row(t)) / tape.weights(t, 0);
    EXPECT_NEAR(tape.d_weights_used(t, 0), product, 1e-12);
  }
}

/// A bank's 6 experts behind a ModalityRouter whose two types have experts 0 to 3 and 2 to 5.
/// `make(weight, experts)` makes the inner routers.
template <class Make>
void expect_gradients_of_types(const Make& make, bool training, const Losses& losses) {
  Matrix<double> a = random(4, d_model, 1);
  Matrix<double> b = random(4, d_model, 2);
  std::vector<std::int32_t> types;
  for (Index t = 0; t < tokens; ++t) types.push_back(t % 3 == 0 ? 1 : 0);
  const auto both = [&] {
    return moe::ModalityRouter<decltype(make(a))>(experts, {{make(a), 0}, {make(b), 2}});
  };
  for (const moe::Capacity& capacity : {moe::Capacity{}, small})
    expect_gradients(both, {{"type 0", &a, weight_of, 0}, {"type 1", &b, weight_of, 1}},
                     {.training = training, .seed = 5, .token_types = types}, losses, capacity);
}

/// The same behind a GroupRouter, of five groups or one.
template <class Make>
void expect_gradients_of_groups(const Make& make, bool training, const Losses& losses) {
  Matrix<double> weight = random(experts, d_model, 1);
  std::vector<std::int32_t> five;
  for (Index t = 0; t < tokens; ++t) five.push_back(static_cast<std::int32_t>(7 * (t % 5)));
  const std::vector<std::int32_t> one;  // Without names, all are one group.
  const auto grouped = [&] { return moe::GroupRouter<decltype(make(weight))>(make(weight)); };
  for (const moe::Capacity& capacity : {moe::Capacity{}, small})
    for (const auto* const groups : {&std::as_const(five), &one})
      expect_gradients(grouped, {{"weight", &weight, weight_of}},
                       {.training = training, .seed = 5, .token_groups = *groups}, losses,
                       capacity);
}

/// Both, of a router that `make(weight)` makes of a weight (E, D).
template <class Make>
void expect_gradients_within(const Make& make, bool training = false,
                             const Losses& losses = both_losses) {
  expect_gradients_of_types(make, training, losses);
  expect_gradients_of_groups(make, training, losses);
}

TEST(RouterBackward, OfRoutersWithinRouters) {
  using Weight = Matrix<double>;
  RoutingRule rule{.renormalization = {.kind = moe::Renormalization::sum}};
  const auto top = [&](const Weight& weight) {
    return moe::TopKRouter<double>(
        {.d_model = d_model, .num_experts = weight.rows(), .top_k = 2, .rule = rule},
        {.weight = weight});
  };
  expect_gradients_within(top);
  expect_gradients_within(top, false, importance);
  rule.renormalization.after_drop = true;  // Weights are finished token by token.
  rule.scale = 1.3;
  expect_gradients_within(top);
  expect_gradients_within(top, false, importance);
  rule.logits = {.standard_deviation = 1.4, .noise = 0.2};
  rule.jitter = {.target = moe::JitterTarget::router_input, .epsilon = 0.2};
  expect_gradients_within(top, true);
  rule = {.jitter = {.target = moe::JitterTarget::hidden_states, .epsilon = 0.3}};
  expect_gradients_within(top, true);
  rule.jitter = {};
  expect_gradients_within([&](const Weight& w) { return moe::GShardRouter<double>(top(w)); }, true);
  expect_gradients_within([](const Weight& w) {
    return moe::NoisyTopKRouter<double>(
        {.d_model = d_model, .num_experts = w.rows(), .top_k = 2, .noise_epsilon = 0.1}, w, w);
  });
  expect_gradients_within([](const Weight& w) {
    return moe::SparseMixerRouter<double>(
        {.d_model = d_model, .num_experts = w.rows(), .jitter = 0.4}, w);
  });
  expect_gradients_within([](const Weight& w) {
    return moe::ExpertChoiceRouter<double>({.d_model = d_model, .num_experts = w.rows()}, w);
  });
}

TEST(RouterBackward, OfTheNoiseWithinRouters) {
  Matrix<double> gate = random(experts, d_model, 1);
  Matrix<double> noise = random(experts, d_model, 2);
  const auto grouped = [&] {
    return moe::GroupRouter(moe::NoisyTopKRouter<double>(
        {.d_model = d_model, .num_experts = experts, .top_k = 2, .noise_epsilon = 0.1}, gate,
        noise));
  };
  std::vector<std::int32_t> groups;
  for (Index t = 0; t < tokens; ++t) groups.push_back(static_cast<std::int32_t>(t % 5));
  expect_gradients(
      grouped,
      {{"gate", &gate, weight_of}, {"noise", &noise, &moe::RouterGradients<double>::noise_weight}},
      {.training = true, .seed = 8, .token_groups = groups}, both_losses);
}

TEST(RouterBackward, OfATypeWithFewerChoices) {
  // One of K = 1 whose single choice keeps its weight, beside one of K = 2.
  Matrix<double> a = random(4, d_model, 1);
  Matrix<double> b = random(2, d_model, 2);
  const auto make = [&](const Matrix<double>& weight, Index top_k) {
    return moe::TopKRouter<double>(
        {.d_model = d_model,
         .num_experts = weight.rows(),
         .top_k = top_k,
         .rule = {.renormalization = {.kind = moe::Renormalization::sum, .at_top_1 = false}}},
        {.weight = weight});
  };
  const auto both = [&] {
    return moe::ModalityRouter<moe::TopKRouter<double>>(experts,
                                                        {{make(a, 2), 0}, {make(b, 1), 4}});
  };
  std::vector<std::int32_t> types;
  for (Index t = 0; t < tokens; ++t) types.push_back(t % 3 == 0 ? 1 : 0);
  for (const moe::Capacity& capacity : {moe::Capacity{}, small})
    expect_gradients(both, {{"type 0", &a, weight_of, 0}, {"type 1", &b, weight_of, 1}},
                     {.token_types = types}, both_losses, capacity);
}

TEST(RouterBackward, RefusesTheGradientsOfOtherRoutersOfRouters) {
  TopK make;
  const moe::ModalityRouter<moe::TopKRouter<double>> modality(experts, {{make(), 0}, {make(), 0}});
  auto gradients = modality.gradients();
  EXPECT_NO_THROW(modality.check_backward("here", gradients));
  gradients.of_type.pop_back();
  EXPECT_THROW(modality.check_backward("here", gradients), moe::ShapeError);
  const moe::GroupRouter group(make());
  auto of_group = group.gradients();
  of_group.weight.resize(experts, d_model + 1);
  EXPECT_THROW(group.check_backward("here", of_group), moe::ShapeError);
}

// The routing does not move with x: dx is through the experts and the jitter of their inputs.
TEST(RouterBackward, EndsAtTheWeightsOfARouterOfAnyType) {
  const auto make = [](Index size, std::uint64_t seed) {
    return moe::TopKRouter<double>(
        {.d_model = d_model,
         .num_experts = size,
         .top_k = 2,
         .rule = {.weights_from = moe::WeightSource::one,
                  .jitter = {.target = moe::JitterTarget::hidden_states, .epsilon = 0.3}}},
        {.weight = random(size, d_model, seed)});
  };
  const moe::AnyRouter<double> router =
      moe::ModalityRouter<moe::TopKRouter<double>>(experts, {{make(4, 1), 0}, {make(2, 2), 4}});
  std::vector<std::int32_t> types;
  for (Index t = 0; t < tokens; ++t) types.push_back(t % 3 == 0 ? 1 : 0);
  for (const bool training : {false, true}) {
    const RouteOptions options{.training = training, .seed = 3, .token_types = types};
    moe::SparseMoe layer{router, make_bank()};
    Matrix<double> x = random(tokens, d_model, 50);
    const Matrix<double> dy = random(tokens, d_model, 51);
    Matrix<double> y(tokens, d_model);
    Matrix<double> dx(tokens, d_model);
    moe::Tape<double> tape;
    layer.forward(x, y, tape, options);
    auto gradients = layer.gradients();
    layer.backward(x, tape, dy, dx, gradients);
    expect_some_slopes("x", x.data(), dx.data(), static_cast<std::size_t>(x.size()), [&] {
      layer.forward(x, y, options);
      return (y.array() * dy.array()).sum();
    });
  }
}

TEST(RouterBackward, TheExpertsSeeNoJitterOnARoutingOfTheCallers) {
  TopK make;
  const moe::TopKRouter<double> calm = make();
  make.rule.jitter = {.target = moe::JitterTarget::hidden_states, .epsilon = 0.3};
  const moe::TopKRouter<double> shaky = make();
  const Matrix<double> x = random(tokens, d_model, 50);
  const Matrix<double> dy = random(tokens, d_model, 51);
  moe::Routing<double> routing;
  calm.route(x, {}, routing);
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  const auto run = [&](const moe::TopKRouter<double>& router, moe::TapePolicy policy) {
    const moe::SparseMoe layer{router, make_bank()};
    Matrix<double> y(tokens, d_model);
    Matrix<double> dx(tokens, d_model);
    moe::Workspace<double> workspace;
    moe::Tape<double> tape{.policy = policy};
    layer.forward(x, routing, plan, y, tape, workspace, {.training = true, .seed = 4});
    auto gradients = layer.gradients();
    layer.backward(x, tape, dy, dx, gradients, workspace);
    const auto up = gradients.experts.values()[0];
    return std::pair(std::vector<double>(up.begin(), up.end()), dx);
  };
  for (const auto policy : {moe::TapePolicy::keep_preactivations, moe::TapePolicy::recompute})
    EXPECT_EQ(run(shaky, policy), run(calm, policy));
}

TEST(RouterBackward, GoesOnFromARoutingOfTheCallers) {
  TopK make;
  const moe::TopKRouter<double> router = make();
  moe::SparseMoe layer{router, make_bank()};
  const Matrix<double> x = random(tokens, d_model, 50);
  const Matrix<double> dy = random(tokens, d_model, 51);
  Matrix<double> y(tokens, d_model);
  Matrix<double> dx(tokens, d_model);
  moe::Workspace<double> workspace;
  moe::Tape<double> tape;
  layer.forward(x, y, tape, workspace);
  auto gradients = layer.gradients();
  layer.backward(x, tape, dy, dx, gradients, workspace);

  Matrix<double> again(tokens, d_model);
  moe::Tape<double> replayed;
  const moe::Routing<double> routing = tape.routing;
  const moe::DispatchPlan plan = tape.plan;
  layer.forward(x, routing, plan, again, replayed, workspace);
  EXPECT_EQ(y, again);
  auto by_hand = layer.gradients();
  Matrix<double> dx_by_hand(tokens, d_model);
  layer.backward(x, replayed, dy, dx_by_hand, by_hand, workspace);
  EXPECT_TRUE(by_hand.router.weight.isZero(0)) << "the routing was the caller's";
  router.backward({.x = x,
                   .options = {},
                   .routing = routing,
                   .plan = plan,
                   .d_weights = replayed.d_weights_used,
                   .d_logits = replayed.d_logits,
                   .dx = dx_by_hand},
                  by_hand.router);
  EXPECT_EQ(by_hand.router.weight, gradients.router.weight);
  EXPECT_EQ(dx_by_hand, dx);
}

TEST(RouterBackward, RefusesWhatDoesNotFit) {
  TopK make;
  const moe::TopKRouter<double> router = make();
  const Matrix<double> x = random(tokens, d_model, 50);
  OwnCall own(router, x);
  moe::Routing<double>& routing = own.routing;
  const Matrix<double> slope = random(tokens, 2, 54);
  auto gradients = router.gradients();
  const auto call = [&](const Matrix<double>& d_weights) {
    router.backward(own.with(d_weights), gradients);
  };
  router.route(x, {.keep_scores = false}, routing);
  EXPECT_THROW(call(slope), moe::ShapeError) << "without scores";
  router.route(x, {.keep_logits = false}, routing);
  EXPECT_THROW(call(slope), moe::ShapeError) << "without logits";
  router.route(x, {}, routing);
  EXPECT_THROW(call(random(tokens, 3, 1)), moe::ShapeError);
  const moe::Routing<double> right = routing;
  routing.num_experts = experts - 1;
  EXPECT_THROW(call(slope), moe::ShapeError) << "fewer experts";
  routing = right;
  routing.experts(1, 0) = experts;
  EXPECT_THROW(call(slope), std::invalid_argument) << "no such expert";
  routing = right;
  routing.weights.resize(tokens, 1);
  EXPECT_THROW(call(slope), moe::ShapeError) << "too few weights";
  routing = right;
  EXPECT_NO_THROW(call(slope));
  gradients.weight.resize(experts, d_model + 1);
  EXPECT_THROW(call(slope), moe::ShapeError) << "of another router";
}

/// The backward of a router of two choices on a routing of one.
template <class Router>
void expect_two_choices(const Router& router, const RouteOptions& options) {
  const moe::TopKRouter<double> of_one({.d_model = d_model, .num_experts = experts, .top_k = 1},
                                       {.weight = random(experts, d_model, 3)});
  const Matrix<double> x = random(tokens, d_model, 50);
  OwnCall call(of_one, x);
  call.options = options;
  const Matrix<double> slope = random(tokens, 1, 54);
  auto gradients = router.gradients();
  EXPECT_THROW(router.backward(call.with(slope), gradients), moe::ShapeError);
}

TEST(RouterBackward, OfTwoChoicesRefusesOne) {
  const moe::SparseMixerRouter<double> mixer({.d_model = d_model, .num_experts = experts},
                                             random(experts, d_model, 1));
  const moe::GShardRouter<double> gshard(TopK{}());
  expect_two_choices(mixer, {});
  expect_two_choices(mixer, {.training = true});
  expect_two_choices(gshard, {.training = true});
}

}  // namespace router_backward_test
