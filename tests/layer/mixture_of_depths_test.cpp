// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/layer/mixture_of_depths.hpp>

#include "support/differences.hpp"
#include "support/layers.hpp"

namespace mixture_of_depths_test {

using moe::Index;
using moe::Matrix;
using test_support::random_matrix;
using Depths = moe::MixtureOfDepths<double>;

const moe::Vector<double> weight = random_matrix<double>(6, 1, 1).col(0);

TEST(MixtureOfDepths, TheBestOfEachSequencePassThrough) {
  const Depths depths({.d_model = 6, .capacity = .25, .sequence_tokens = 8}, weight);
  const auto x = random_matrix<double>(20, 6, 2);
  Matrix<double> y(20, 6);
  Index rows = 0;
  const auto chosen = depths.forward(x, y, [&](auto in, auto out) {
    rows = in.rows();
    out.map() = 2 * in.map();
  });
  EXPECT_EQ(rows, 5);  // 2 of 8, 2 of 8, 1 of 4.
  EXPECT_TRUE(std::is_sorted(chosen.begin(), chosen.end()));
  const moe::Vector<double> r = x * weight;
  for (Index t = 0; t < 20; ++t) {
    const Index begin = t / 8 * 8;
    const Index end = std::min<Index>(begin + 8, 20);
    Index better = 0;
    for (Index other = begin; other < end; ++other) better += r[other] > r[t] ? 1 : 0;
    const bool expected = better < (end - begin) / 4;
    EXPECT_EQ(std::find(chosen.begin(), chosen.end(), t) != chosen.end(), expected);
    const double factor = expected ? 1 + 2 * r[t] : 1;
    EXPECT_TRUE(y.row(t).isApprox(factor * x.row(t), 1e-13));
  }
}

TEST(MixtureOfDepths, DecodesByAThreshold) {
  const Depths depths({.d_model = 6}, weight);
  const moe::Vector<double> r = (moe::Vector<double>(4) << -1, 2, 0, 1e-9).finished();
  EXPECT_EQ(depths.choose(r, moe::DepthsChoice::threshold), (std::vector<Index>{1, 3}));
  EXPECT_EQ(depths.choose(r), (std::vector<Index>{1})) << "at least one";
}

TEST(MixtureOfDepths, TiesAndNan) {
  const Depths depths({.d_model = 6, .capacity = .5}, weight);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const moe::Vector<double> r = (moe::Vector<double>(4) << nan, 1, 1, 1).finished();
  EXPECT_EQ(depths.choose(r), (std::vector<Index>{1, 2}));
}

TEST(MixtureOfDepths, ChoiceLossIsACrossEntropy) {
  const moe::Vector<double> r = (moe::Vector<double>(3) << 0, 2, -1).finished();
  const auto sigmoid = [](double z) { return 1 / (1 + std::exp(-z)); };
  EXPECT_NEAR(Depths::choice_loss(r, {1}),
              -(std::log(sigmoid(-0.0)) + std::log(sigmoid(2)) + std::log(sigmoid(1))) / 3, 1e-15);
  EXPECT_NEAR(Depths::choice_loss(moe::Vector<double>::Zero(5), {0}), std::log(2.0), 1e-15);
  const std::vector<std::uint8_t> mask{0, 1, 1};
  EXPECT_NEAR(Depths::choice_loss(r, {1}, mask), -(std::log(sigmoid(2)) + std::log(sigmoid(1))) / 2,
              1e-15);
  moe::Vector<double> d_r = moe::Vector<double>::Zero(3);
  EXPECT_THROW(Depths::choice_loss(r, {1}, {}, &d_r, NAN), std::invalid_argument);
  EXPECT_EQ(Depths::choice_loss(r, {1}, std::vector<std::uint8_t>(3, 0)), 0);
  EXPECT_THROW(Depths::choice_loss(r, {1}, std::vector<std::uint8_t>(2, 1)), moe::ShapeError);
}

TEST(MixtureOfDepths, HasTheGradientsThatDifferencesHave) {
  moe::Vector<double> w = weight;
  Matrix<double> x = random_matrix<double>(20, 6, 2);
  Matrix<double> scale = random_matrix<double>(1, 6, 3);
  const auto dy = random_matrix<double>(20, 6, 4);
  const auto block = [&](auto in, auto out) {
    out.map() = (in.map().array().square().rowwise() * scale.row(0).array()).matrix();
  };
  Matrix<double> y(20, 6);
  Matrix<double> dx(20, 6);
  moe::DepthsTape<double> tape;
  const auto with = [](const moe::Vector<double>& its_weight) {
    return Depths({.d_model = 6, .capacity = .25, .sequence_tokens = 8}, its_weight);
  };
  Depths depths = with(w);
  std::vector<std::uint8_t> mask(20, 1);
  mask[2] = mask[7] = mask[19] = 0;
  const auto run = [&](bool with_gradient) {
    depths = with(w);
    depths.forward(x, y, tape, block);
    moe::Vector<double>* const d_r = with_gradient ? &tape.d_r : nullptr;
    return (y.array() * dy.array()).sum() +
           0.6 * Depths::choice_loss(tape.r, tape.chosen, {}, d_r, 0.6) +
           0.4 * Depths::choice_loss(tape.r, tape.chosen, mask, d_r, 0.4);
  };
  run(true);
  moe::Vector<double> d_weight = moe::Vector<double>::Zero(6);
  Matrix<double> d_scale = Matrix<double>::Zero(1, 6);
  depths.backward(x, tape, dy, dx, d_weight, [&](auto in, auto d_out, auto d_in) {
    d_in.map() = (2 * in.map().array() * d_out.map().array()).rowwise() * scale.row(0).array();
    d_scale += (in.map().array().square() * d_out.map().array()).colwise().sum().matrix();
  });
  const auto loss = [&] { return run(false); };
  test_support::expect_some_slopes("x", x.data(), dx.data(), 120, loss);
  test_support::expect_some_slopes("weight", w.data(), d_weight.data(), 6, loss);
  test_support::expect_some_slopes("scale", scale.data(), d_scale.data(), 6, loss);
  Matrix<double> wrong(19, 6);
  const auto nothing = [](auto, auto, auto) {};
  run(true);
  EXPECT_THROW(depths.backward(wrong, tape, dy, dx, d_weight, nothing), moe::ShapeError);
  EXPECT_THROW(depths.backward(x, tape, wrong, dx, d_weight, nothing), moe::ShapeError);
  moe::Vector<double> short_weight(5);
  EXPECT_THROW(depths.backward(x, tape, dy, dx, short_weight, nothing), moe::ShapeError);
}

TEST(MixtureOfDepths, ATapeServesItsLayerOnce) {
  const Depths depths({.d_model = 6, .capacity = .5, .sequence_tokens = 4}, weight);
  const Depths other({.d_model = 6, .capacity = .5, .sequence_tokens = 4}, weight);
  const auto x = random_matrix<double>(8, 6, 2);
  const auto dy = random_matrix<double>(8, 6, 3);
  Matrix<double> y(8, 6);
  Matrix<double> dx(8, 6);
  moe::Vector<double> d_weight = moe::Vector<double>::Zero(6);
  moe::DepthsTape<double> tape;
  const auto block = [](auto in, auto out) { out.map() = in.map(); };
  const auto reverse = [](auto, auto d_out, auto d_in) { d_in.map() = d_out.map(); };
  const auto backward = [&](const Depths& of) { of.backward(x, tape, dy, dx, d_weight, reverse); };
  EXPECT_THROW(backward(depths), std::invalid_argument) << "no forward";
  depths.forward(x, y, tape, block);
  EXPECT_THROW(backward(other), std::invalid_argument) << "another layer's";
  EXPECT_NO_THROW(backward(depths));
  EXPECT_THROW(backward(depths), std::invalid_argument) << "used";
  depths.forward(x, y, tape, block);
  const auto fails = [](auto, auto) { throw std::runtime_error("the block fails"); };
  EXPECT_THROW(depths.forward(x, y, tape, fails), std::runtime_error);
  EXPECT_THROW(backward(depths), std::invalid_argument) << "of a forward that failed";
}

TEST(MixtureOfDepths, RefusesWhatCannotWork) {
  EXPECT_THROW(Depths({.d_model = 6, .capacity = 0}, weight), std::invalid_argument);
  EXPECT_THROW(Depths({.d_model = 5}, weight), moe::ShapeError);
  const Depths depths({.d_model = 6}, weight);
  Matrix<double> y(2, 6);
  const auto block = [](auto, auto) {};
  EXPECT_THROW(depths.forward(Matrix<double>(2, 5), y, block), moe::ShapeError);
  EXPECT_THROW(depths.forward(y, y, block), std::invalid_argument);
  Matrix<double> none(0, 6);
  EXPECT_TRUE(depths.forward(Matrix<double>(0, 6), none, block).empty());
}

TEST(MixtureOfDepths, TakesTokensThatAPredictorChose) {
  const Depths depths({.d_model = 6}, weight);
  const auto x = random_matrix<double>(4, 6, 2);
  const auto r = depths.scores(x);
  const auto block = [](auto in, auto out) { out.map() = in.map(); };
  Matrix<double> y(4, 6);
  depths.forward(x, y, r, {0, 3}, block);
  for (Index t = 0; t < 4; ++t)
    EXPECT_TRUE(y.row(t).isApprox((t == 0 || t == 3 ? 1 + r[t] : 1) * x.row(t), 1e-13));
  EXPECT_THROW(depths.forward(x, y, r, {3, 0}, block), std::invalid_argument);
  EXPECT_THROW(depths.forward(x, y, r, {4}, block), std::invalid_argument);
  EXPECT_THROW(Depths::choice_loss(r, {4}), std::invalid_argument);
  EXPECT_THROW(Depths::choice_loss(r, {-1}), std::invalid_argument);
}

}  // namespace mixture_of_depths_test
