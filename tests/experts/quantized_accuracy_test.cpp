// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What quantised weights cost a block's output, against the grids of another quantiser of as many
// bits, with activations as they are and rounded to eight bits.
#include <cstddef>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/experts/quantized_experts.hpp>
#include <moe/routing/plan.hpp>

#include "support/layers.hpp"
#include "support/plain_grids.hpp"

namespace quantized_accuracy_test {

using moe::Index;
using moe::Matrix;
using moe::ProductKind;
using moe::ScaleSearch;
using Floats = moe::FeedForwardExperts<float, moe::SwiGlu>;
using Quantized = moe::QuantizedExperts<moe::SwiGlu>;
using Grid = std::vector<float> (*)(const std::vector<float>&);

constexpr moe::ExpertsConfig config{.num_experts = 2, .d_model = 256, .d_ff = 352};
constexpr Index tokens = 24;

/// Normal numbers, as trained weights nearly are.
Matrix<float> normal(Index rows, Index cols, float deviation, std::uint64_t seed) {
  Matrix<float> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i)
    m.data()[i] = deviation * static_cast<float>(moe::detail::draw(moe::Noise::normal, seed,
                                                                   static_cast<std::uint64_t>(i)));
  return m;
}

moe::ExpertMatrices<float> expert(Index e) {
  moe::ExpertMatrices<float> m;
  const auto seed = static_cast<std::uint64_t>(10 * e);
  m.gate = normal(config.d_ff, config.d_model, 1.0F / 16, seed + 1);
  m.up = normal(config.d_ff, config.d_model, 1.0F / 16, seed + 2);
  m.down = normal(config.d_model, config.d_ff, 1.0F / 19, seed + 3);
  return m;
}

Matrix<float> on_grid(const Matrix<float>& m, Grid grid) {
  Matrix<float> result(m.rows(), m.cols());
  for (Index r = 0; r < m.rows(); ++r) {
    const float* const row = m.data() + r * m.cols();
    const std::vector<float> rounded = grid({row, row + m.cols()});
    std::copy(rounded.begin(), rounded.end(), result.data() + r * m.cols());
  }
  return result;
}

template <class Bank>
Matrix<float> run(const Bank& bank, const Matrix<float>& x) {
  moe::DispatchPlan plan;
  moe::make_full_plan(x.rows(), config.num_experts, plan);
  Matrix<float> y(plan.num_rows(), config.d_model);
  moe::Scratch scratch;
  bank.forward({x, plan}, y, scratch);
  return y;
}

Floats floats(Grid grid = nullptr) {
  Floats bank(config);
  for (Index e = 0; e < config.num_experts; ++e) {
    moe::ExpertMatrices<float> m = expert(e);
    for (Matrix<float>* const part : {&m.gate, &m.up, &m.down})
      if (grid != nullptr) *part = on_grid(*part, grid);
    bank.set_expert(e, m.weights());
  }
  return bank;
}

Quantized quantized(const std::string& format, ScaleSearch search, ProductKind product) {
  Quantized bank(config, moe::ExpertFormat{moe::format_of(format), moe::format_of(format)});
  bank.set_product(product);
  for (Index e = 0; e < config.num_experts; ++e) {
    const moe::ExpertMatrices<float> m = expert(e);
    bank.set_expert(e, m.weights(), {.search = search});
  }
  return bank;
}

double relative(const Matrix<float>& y, const Matrix<float>& exact) {
  return static_cast<double>((y - exact).norm() / exact.norm());
}

/// Experts on a grid whose inputs and hidden values are rounded to q8_0, one after the other.
Matrix<float> with_rounded_activations(Grid grid, const Matrix<float>& x) {
  const Matrix<float> codes = on_grid(x, test_support::plain_int8);
  Matrix<float> y(config.num_experts * x.rows(), config.d_model);
  for (Index e = 0; e < config.num_experts; ++e) {
    const moe::ExpertMatrices<float> m = expert(e);
    const Matrix<float> gate = codes * on_grid(m.gate, grid).transpose();
    const Matrix<float> up = codes * on_grid(m.up, grid).transpose();
    const Matrix<float> hidden = gate.array() / (1 + (-gate.array()).exp()) * up.array();
    y.middleRows(e * x.rows(), x.rows()) =
        on_grid(hidden, test_support::plain_int8) * on_grid(m.down, grid).transpose();
  }
  return y;
}

TEST(QuantizedAccuracy, IsNoWorseThanTheGridsOfAsManyBits) {
  const Matrix<float> x = normal(tokens, config.d_model, 1, 99);
  const Matrix<float> exact = run(floats(), x);
  const struct {
    const char* format;
    Grid grid;
    double searched;  // at most so much of the plain grid's error
  } cases[] = {{"int8-g32", test_support::plain_int8, 1},
               {"int4-g32", test_support::plain_int4, 0.95}};
  for (const auto& at : cases) {
    const char* const format = at.format;
    const Grid grid = at.grid;
    const double searched = at.searched;
    const double widened = relative(run(floats(grid), x), exact);
    const double integer = relative(with_rounded_activations(grid, x), exact);
    const auto ours = [&](ScaleSearch search, ProductKind product) {
      return relative(run(quantized(format, search, product), x), exact);
    };
    // Plain scales are the same but for a rounding; searched ones are what one gets.
    EXPECT_NEAR(ours(ScaleSearch::nearest, ProductKind::widened), widened, 0.01 * widened)
        << format;
    EXPECT_NEAR(ours(ScaleSearch::nearest, ProductKind::integer), integer, 0.02 * integer)
        << format;
    EXPECT_LT(ours(ScaleSearch::least_error, ProductKind::widened), searched * widened) << format;
    EXPECT_LT(ours(ScaleSearch::least_error, ProductKind::integer), searched * integer) << format;
  }
}

TEST(QuantizedAccuracy, TheCodebookLowersAnOutputsErrorAtFewerBits) {
  const Matrix<float> x = normal(tokens, config.d_model, 1, 99);
  const Matrix<float> exact = run(floats(), x);
  const auto error = [&](const char* format) {
    return relative(run(quantized(format, ScaleSearch::least_error, ProductKind::widened), x),
                    exact);
  };
  EXPECT_LT(error("nl4-g32"), 0.995 * error("int4-g32"));
}

}  // namespace quantized_accuracy_test
