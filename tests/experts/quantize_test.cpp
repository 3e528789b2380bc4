// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Quantisers: errors against those of plain grids, written down here by themselves.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/experts/coded_matrix.hpp>
#include <moe/experts/quantize.hpp>

#include "support/plain_grids.hpp"

namespace quantize_test {

using moe::Index;
using moe::MatrixLayout;
using moe::ScaleSearch;
using test_support::plain_int4;
using test_support::plain_int8;

constexpr Index inner = 512;

/// Weights as trained ones are: near a normal distribution, some outputs larger than others.
std::vector<float> weights_of(std::uint64_t seed) {
  std::vector<float> weights(inner);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    double sum = 0;
    for (std::uint64_t j = 0; j < 12; ++j) sum += moe::detail::uniform(seed, 12 * i + j) - 0.5;
    weights[i] = static_cast<float>(0.02 * sum * (1 + static_cast<double>(seed % 5)));
  }
  return weights;
}

double squared_error(const std::vector<float>& a, const std::vector<float>& b,
                     const std::vector<float>& importance = {}) {
  double error = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    error +=
        difference * difference * (importance.empty() ? 1 : static_cast<double>(importance[i]));
  }
  return error;
}

/// Weights that a format makes of others.
std::vector<float> rounded(const char* format, const std::vector<float>& weights,
                           ScaleSearch search, const std::vector<float>& importance = {}) {
  const MatrixLayout layout(moe::format_of(format), 32, inner);
  std::vector<float> result(weights.size());
  moe::detail::decode_output(layout, moe::quantize_output(layout, weights, importance, search),
                             result.data());
  return result;
}

/// The relative error over some outputs.
double error_of(const char* format, ScaleSearch search) {
  double error = 0;
  double size = 0;
  for (std::uint64_t seed = 1; seed <= 16; ++seed) {
    const std::vector<float> weights = weights_of(seed);
    error += squared_error(weights, rounded(format, weights, search));
    size += squared_error(weights, std::vector<float>(weights.size(), 0));
  }
  return std::sqrt(error / size);
}

template <class Plain>
double error_of_plain(const Plain& plain) {
  double error = 0;
  double size = 0;
  for (std::uint64_t seed = 1; seed <= 16; ++seed) {
    const std::vector<float> weights = weights_of(seed);
    error += squared_error(weights, plain(weights));
    size += squared_error(weights, std::vector<float>(weights.size(), 0));
  }
  return std::sqrt(error / size);
}

TEST(Quantize, IsNoWorseThanThePlainGridsOfAsManyBits) {
  EXPECT_LE(error_of("int8-g32", ScaleSearch::nearest), 1.001 * error_of_plain(plain_int8));
  EXPECT_LE(error_of("int4-g32", ScaleSearch::nearest), 1.001 * error_of_plain(plain_int4));
  EXPECT_LT(error_of("int8-g32", ScaleSearch::least_error), error_of_plain(plain_int8));
  EXPECT_LT(error_of("int4-g32", ScaleSearch::least_error), 0.95 * error_of_plain(plain_int4));
}

TEST(Quantize, SearchedScalesLowerTheError) {
  for (const char* format : {"int8", "int8-g128", "int4-g32", "int4-g64", "int4-g128", "int4z-g32",
                             "nl4-g32", "nl4-g128", "mxfp4", "fp8"}) {
    const double plain = error_of(format, ScaleSearch::nearest);
    const double searched = error_of(format, ScaleSearch::least_error);
    EXPECT_LT(searched, plain) << format;
  }
}

TEST(Quantize, TheCodebookLowersTheErrorAtFewerBits) {
  // 4.25 bits with their scales against 4.5.
  EXPECT_LT(error_of("nl4-g32", ScaleSearch::least_error),
            0.995 * error_of("int4-g32", ScaleSearch::least_error));
  EXPECT_LT(error_of("nl4-g32", ScaleSearch::least_error), 0.92 * error_of_plain(plain_int4));
}

TEST(Quantize, ErrorsFallWithBitsAndWithGroups) {
  const auto error = [](const char* format) { return error_of(format, ScaleSearch::least_error); };
  EXPECT_LT(error("int4-g32"), error("int4-g64"));
  EXPECT_LT(error("int4-g64"), error("int4-g128"));
  EXPECT_LT(error("int8-g32"), error("int8-g128"));
  EXPECT_LT(error("int8-g128"), error("int8"));
  EXPECT_LT(error("int8"), 0.1 * error("int4-g128"));
  EXPECT_LT(error("fp8"), error("int4-g32"));
  EXPECT_LT(error("bf16"), error("fp8"));
  EXPECT_LT(error("f16"), error("bf16"));
}

TEST(Quantize, WhatIsImportantIsKeptBetter) {
  std::vector<float> importance(inner, 1);
  for (std::size_t i = 0; i < importance.size(); i += 4) importance[i] = 100;
  double with = 0;
  double without = 0;
  for (std::uint64_t seed = 1; seed <= 16; ++seed) {
    const std::vector<float> weights = weights_of(seed);
    with += squared_error(
        weights, rounded("int4-g32", weights, ScaleSearch::least_error, importance), importance);
    without +=
        squared_error(weights, rounded("int4-g32", weights, ScaleSearch::least_error), importance);
  }
  EXPECT_LT(with, 0.95 * without);
}

TEST(Quantize, KeepsZerosAndConstants) {
  for (const moe::WeightFormat& format : moe::weight_formats) {
    for (const ScaleSearch search : {ScaleSearch::nearest, ScaleSearch::least_error}) {
      const std::string name = moe::format_name(format);
      const std::vector<float> zeros(inner, 0);
      EXPECT_EQ(rounded(name.c_str(), zeros, search), zeros) << name;
      const std::vector<float> ones(inner, 0.5F);
      for (const float value : rounded(name.c_str(), ones, search))
        EXPECT_NEAR(value, 0.5F, 0.5F / 200) << name;
      std::vector<float> mixed(inner, 0);  // A group of zeros beside others.
      // nl4 has no zero: its nearest value is a sixtieth of the largest.
      const float beside_a_large_one = format.code == moe::WeightCode::nl4 ? 1.0F / 25 : 1.0F / 100;
      mixed[200] = -1;
      const std::vector<float> back = rounded(name.c_str(), mixed, search);
      for (std::size_t i = 0; i < mixed.size(); ++i)
        EXPECT_NEAR(back[i], mixed[i], beside_a_large_one) << name << " at " << i;
    }
  }
}

TEST(Quantize, TakesWeightsOfAnySize) {
  for (const moe::WeightFormat& format : moe::weight_formats) {
    if (format.code == moe::WeightCode::half) continue;  // Its range ends at 65504.
    for (const float size : {1e-6F, 1e-3F, 1e3F, 1e5F}) {
      const std::string name = moe::format_name(format);
      std::vector<float> weights = weights_of(3);
      for (float& weight : weights) weight *= size;
      const std::vector<float> back = rounded(name.c_str(), weights, ScaleSearch::least_error);
      const double all = squared_error(weights, std::vector<float>(weights.size(), 0));
      const bool is_small = size < 1e-5F;  // Below what the scale's half resolves well.
      EXPECT_LE(squared_error(weights, back), (is_small ? 1 : 0.03) * all) << name << ", " << size;
    }
  }
}

TEST(Quantize, RefusesWeightsBeyondTheFormat) {
  std::vector<float> weights = weights_of(3);
  const auto quantized = [&](const char* format, float weight) {
    weights[100] = weight;
    return rounded(format, weights, ScaleSearch::nearest)[100];
  };
  EXPECT_EQ(quantized("f16", -65504), -65504);
  EXPECT_THROW(quantized("f16", 70000), std::invalid_argument);
  EXPECT_THROW(quantized("bf16", 3.4e38F), std::invalid_argument);
  EXPECT_EQ(quantized("int8-g32", 127.0F * 65504), 127.0F * 65504);
  EXPECT_THROW(quantized("int8-g32", 127.1F * 65504), std::invalid_argument);
  EXPECT_EQ(quantized("int4-g64", -8.0F * 65504), -8.0F * 65504);
  EXPECT_THROW(quantized("int4-g64", -8.1F * 65504), std::invalid_argument);
  EXPECT_THROW(quantized("int4z-g32", 1e6F), std::invalid_argument);
  EXPECT_EQ(quantized("int8", 1e30F), 1e30F);
}

TEST(Quantize, WeightsTooSmallForAScaleAreZeros) {
  for (const moe::WeightFormat& format : moe::weight_formats) {
    for (const ScaleSearch search : {ScaleSearch::nearest, ScaleSearch::least_error}) {
      for (const float size : {1e-44F, 1e-40F, 1e-38F, 1e-36F}) {
        const std::string name = moe::format_name(format);
        std::vector<float> weights = weights_of(3);
        float largest = 0;
        for (float& weight : weights) {
          weight *= size;
          largest = std::fmax(largest, std::fabs(weight));
        }
        const std::vector<float> back = rounded(name.c_str(), weights, search);
        for (std::size_t i = 0; i < weights.size(); ++i)
          ASSERT_LE(std::fabs(back[i]), 1.2F * largest) << name << ", " << size;
      }
    }
  }
}

TEST(Quantize, SmallWeightsKeepTheirValuesWhileAScaleHasThem) {
  struct Case {
    const char* format;
    float size;
  };
  for (const Case& at : {Case{"fp8-e5m2", 1e-32F}, Case{"fp8", 1e-33F}, Case{"int8", 1e-33F},
                         Case{"nl4-g32", 1e-32F}, Case{"mxfp4", 1e-35F}, Case{"int8-g32", 3e-4F},
                         Case{"int4-g32", 1e-4F}}) {
    std::vector<float> weights = weights_of(3);
    for (float& weight : weights) weight *= at.size;
    const std::vector<float> back = rounded(at.format, weights, ScaleSearch::nearest);
    const double all = squared_error(weights, std::vector<float>(weights.size(), 0));
    EXPECT_LE(squared_error(weights, back), 0.03 * all) << at.format;
  }
}

TEST(Quantize, RefusesWhatDoesNotFit) {
  const MatrixLayout layout(moe::format_of("int8"), 32, 8);
  const std::vector<float> weights(8, 1);
  EXPECT_THROW(moe::quantize_output(layout, std::vector<float>(7, 1), {}, ScaleSearch::nearest),
               moe::ShapeError);
  EXPECT_THROW(
      moe::quantize_output(layout, weights, std::vector<float>(7, 1), ScaleSearch::nearest),
      moe::ShapeError);
  EXPECT_THROW(
      moe::quantize_output(layout, std::vector<float>(8, INFINITY), {}, ScaleSearch::nearest),
      std::invalid_argument);
}

}  // namespace quantize_test
