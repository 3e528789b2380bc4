// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A token's output has the same bits for every number of threads and in every batch, at every level
// of instructions.
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/moe.hpp>

#include "support/layers.hpp"
#include "support/levels.hpp"
#include "support/threads.hpp"

namespace invariance_test {

using moe::Index;
using moe::Matrix;
using test_support::random_matrix;

constexpr Index width = 72;

class Invariance : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(Invariance);

/// Runs `check` on layers that differ in their experts' kernels: gated and plain, each kind of
/// weight, d_ff in one slice and in several, with shared experts.
template <class Check>
void for_each_layer(const Check& check) {
  const auto run = [&]<class Bank>(Bank /*type*/, Index d_ff) {
    std::mt19937_64 rng(7);
    auto router =
        moe::TopKRouter<float>::random({.d_model = width, .num_experts = 6, .top_k = 2}, rng);
    auto experts =
        Bank::random({.num_experts = 6, .d_model = width, .d_ff = d_ff, .biases = true}, rng);
    moe::SharedExperts<Bank> shared(
        Bank::random({.num_experts = 1, .d_model = width, .d_ff = 40}, rng),
        random_matrix<float>(1, width, 8));
    moe::SparseMoe layer(std::move(router), std::move(experts), std::move(shared));
    check(layer);
  };
  const auto run_codes = [&](const char* up, const char* down, moe::ProductKind product,
                             Index d_ff) {
    std::mt19937_64 rng(7);
    auto router =
        moe::TopKRouter<float>::random({.d_model = width, .num_experts = 6, .top_k = 2}, rng);
    const auto coded = [&](const moe::ExpertsConfig& sizes) {
      const auto floats = moe::SwiGluExperts<float>::random(sizes, rng);
      moe::QuantizedExperts<moe::SwiGlu> bank(sizes, {moe::format_of(up), moe::format_of(down)});
      for (Index e = 0; e < sizes.num_experts; ++e)
        bank.set_expert(e, floats.expert(e).weights(), {.search = moe::ScaleSearch::nearest});
      bank.set_product(product);
      return bank;
    };
    auto experts = coded({.num_experts = 6, .d_model = width, .d_ff = d_ff, .biases = true});
    moe::SharedExperts<moe::QuantizedExperts<moe::SwiGlu>> shared(
        coded({.num_experts = 1, .d_model = width, .d_ff = 40}), random_matrix<float>(1, width, 8));
    moe::SparseMoe layer(std::move(router), std::move(experts), std::move(shared));
    check(layer);
  };
  run_codes("int8", "int4-g32", moe::ProductKind::integer, 4133);
  run_codes("int4z-g64", "mxfp4", moe::ProductKind::integer, 61);
  run_codes("nl4-g32", "int8-g128", moe::ProductKind::widened, 50);
  run_codes("fp8", "fp8-e5m2", moe::ProductKind::widened, 1213);
  const moe::ExpertsConfig tiny{.num_experts = 1, .d_model = 1, .d_ff = 1};
  run(moe::SwiGluExperts<float>(tiny), 56);
  run(moe::SwiGluExperts<float>(tiny), 4133);
  run(moe::GeluExperts<float, moe::bfloat16>(tiny), 50);
  run(moe::GeGluTanhExperts<float, moe::half>(tiny), 61);
}

TEST_P(Invariance, OfTheNumberOfThreads) {
  for_each_layer([](auto& layer) {
    const auto x = random_matrix<float>(67, width, 3);
    Matrix<float> first;  // (T, D)
    for (int threads = 1; threads <= 7; ++threads) {
      const test_support::ScopedThreads scoped(threads);
      Matrix<float> y(67, width);
      layer.forward(x, y);
      if (threads == 1) first = y;
      ASSERT_EQ(y, first) << threads << " threads";
    }
  });
}

TEST_P(Invariance, OfTheBatch) {
  for_each_layer([](auto& layer) {
    const auto x = random_matrix<float>(1024, width, 4);
    Matrix<float> together(1024, width);
    layer.forward(x, together);
    for (const Index tokens : {1, 3, 64}) {
      for (const Index first : {Index{0}, Index{500}, 1024 - tokens}) {
        Matrix<float> part(tokens, width);
        layer.forward(x.middleRows(first, tokens), part);
        ASSERT_EQ(part, together.middleRows(first, tokens)) << tokens << " tokens";
      }
    }
  });
}

TEST_P(Invariance, OfTheOtherTokensChoices) {
  for_each_layer([](auto& layer) {
    const auto x = random_matrix<float>(200, width, 5);
    moe::Routing<float> routing;
    Matrix<float> first;                // (1, D)
    for (const int skew : {0, 1, 2}) {  // Spread, all to the same, all to others than token 0.
      routing.resize(200, 6, 2, {.keep_logits = false, .keep_scores = false});
      for (Index t = 0; t < 200; ++t) {
        const auto e = static_cast<moe::ExpertIndex>(t == 0 || skew == 1 ? 0
                                                     : skew == 0         ? t % 5
                                                                         : 3);
        routing.experts.row(t) << e, e + 1;
        routing.weights.row(t) << 0.7F, 0.3F;
      }
      Matrix<float> y(200, width);
      layer.forward(x, routing, y);
      if (first.size() == 0) first = y.topRows(1);
      ASSERT_EQ(y.topRows(1), first) << "skew " << skew;
    }
  });
}

TEST_P(Invariance, LowPrecisionWeightsGiveWhatTheirValuesGive) {
  // A bank of bfloat16 and one of the same values as float agree to the bit.
  std::mt19937_64 rng(9);
  const moe::ExpertsConfig config{.num_experts = 3, .d_model = width, .d_ff = 33};
  const auto check = [&](const auto& narrow) {
    moe::SwiGluExperts<float> wide(config);
    for (Index e = 0; e < 3; ++e) wide.set_expert(e, narrow.expert(e).weights());
    const auto x = random_matrix<float>(9, width, 6);
    moe::DispatchPlan plan;
    moe::make_full_plan(9, 3, plan);
    Matrix<float> a(27, width);
    Matrix<float> b(27, width);
    moe::Scratch scratch;
    narrow.forward({x, plan}, a, scratch);
    wide.forward({x, plan}, b, scratch);
    EXPECT_EQ(a, b);
    EXPECT_GT(a.norm(), 0);
  };
  check(moe::SwiGluExperts<float, moe::bfloat16>::random(config, rng));
  check(moe::SwiGluExperts<float, moe::half>::random(config, rng));
}

}  // namespace invariance_test
