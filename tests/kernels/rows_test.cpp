// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/aligned_buffer.hpp>
#include <moe/experts/activation.hpp>
#include <moe/kernels/dispatch.hpp>

#include "support/levels.hpp"

namespace rows_test {

using moe::kernels::ActivationKind;
using moe::kernels::gated_width;
using moe::kernels::panel_width;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

const moe::kernels::RowKernels<float>& kernels() {
  return moe::kernels::row_kernels<float>();
}

std::vector<float> uniform(std::ptrdiff_t n, unsigned seed, float scale) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<float> draw(-scale, scale);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& v : values) v = draw(rng);
  return values;
}

class Rows : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(Rows);

/// Compares the plain and the gated kernel of an activation with its function object.
template <ActivationKind kind, class Activation>
void check_activation(const Activation& activation) {
  const moe::kernels::ActivationRule<float> rule;
  for (const std::ptrdiff_t rows : {1, 2, 7, 14}) {
    std::vector<float> sums = uniform(rows * panel_width, 1, 12);
    const float special[] = {0, -0.0F, infinity, -infinity, nan, 1e30F, -1e30F, -100};
    for (std::size_t i = 0; i < 8; ++i) sums[i] = special[i];
    const std::vector<float> bias = uniform(panel_width, 2, 1);
    const auto expect = [&](float got, double z, double factor) {
      const double expected = activation(z) * factor;
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(got)) << z;
      } else if (std::isinf(expected)) {
        EXPECT_EQ(got, expected);
      } else {
        // Of z, whose rounding before the product the tail of a gelu shows.
        const double size = std::isinf(z) ? 1 : std::max(std::fabs(z), 1e-30);
        EXPECT_NEAR(got, expected,
                    16 * std::numeric_limits<float>::epsilon() * size * std::fabs(factor))
            << z;
      }
    };
    for (const float* const added : {static_cast<const float*>(nullptr), bias.data()}) {
      const auto sum = [&](std::ptrdiff_t r, std::ptrdiff_t o) {
        const float s = sums[static_cast<std::size_t>(r * panel_width + o)];
        return static_cast<double>(added == nullptr ? s : s + added[o]);
      };
      // Nothing behind the last value is written to.
      std::vector<float> hidden(static_cast<std::size_t>(rows * panel_width) + 16, -7.0F);
      const auto is_whole = [&](std::ptrdiff_t values) {
        return std::all_of(hidden.begin() + values, hidden.end(), [](float v) { return v == -7; });
      };
      moe::kernels::activation_kernel<float, kind, false>()(rule, sums.data(), added, rows,
                                                            hidden.data(), 0);
      EXPECT_TRUE(is_whole(rows * panel_width));
      for (std::ptrdiff_t r = 0; r < rows; ++r)
        for (std::ptrdiff_t i = 0; i < panel_width; ++i)
          expect(hidden[static_cast<std::size_t>(i * rows + r)], sum(r, i), 1);
      std::fill(hidden.begin(), hidden.end(), -7.0F);
      moe::kernels::activation_kernel<float, kind, true>()(rule, sums.data(), added, rows,
                                                           hidden.data(), 0);
      EXPECT_TRUE(is_whole(rows * gated_width));
      for (std::ptrdiff_t r = 0; r < rows; ++r)
        for (std::ptrdiff_t i = 0; i < gated_width; ++i)
          expect(hidden[static_cast<std::size_t>(i * rows + r)], sum(r, i),
                 sum(r, gated_width + i));
      // A row's values side by side: the same bits, and nothing between rows.
      const auto bits_of = [](float value) { return std::bit_cast<std::uint32_t>(value); };
      const auto expect_rows = [&](auto kernel, std::ptrdiff_t width) {
        const std::ptrdiff_t stride = width + 3;
        std::vector<float> by_row(static_cast<std::size_t>(rows * stride), -7.0F);
        kernel(rule, sums.data(), added, rows, by_row.data(), stride);
        kernel(rule, sums.data(), added, rows, hidden.data(), 0);
        for (std::ptrdiff_t r = 0; r < rows; ++r)
          for (std::ptrdiff_t i = 0; i < stride; ++i)
            EXPECT_EQ(bits_of(by_row[static_cast<std::size_t>(r * stride + i)]),
                      bits_of(i < width ? hidden[static_cast<std::size_t>(i * rows + r)] : -7.0F));
      };
      expect_rows(moe::kernels::activation_kernel<float, kind, false>(), panel_width);
      expect_rows(moe::kernels::activation_kernel<float, kind, true>(), gated_width);
    }
  }
}

TEST_P(Rows, ActivationsAgreeWithTheirFunctionObjects) {
  check_activation<ActivationKind::relu>(moe::Relu{});
  check_activation<ActivationKind::silu>(moe::Silu{});
  check_activation<ActivationKind::gelu>(moe::Gelu{});
  check_activation<ActivationKind::gelu_tanh>(moe::GeluTanh{});
}

TEST_P(Rows, ClampedActivationAgreesWithItsFunctionObject) {
  for (const bool below : {false, true}) {
    const moe::ClampedSwiGlu activation{1.702, 7, 1, below};
    const auto rule = moe::detail::kernel_rule<float>(activation);
    std::vector<float> sums = uniform(3 * panel_width, 4, 12);
    const float special[] = {infinity, -infinity, nan, 7, -7, -90};
    for (std::size_t i = 0; i < 6; ++i) {
      sums[i] = special[i];                              // gates
      sums[panel_width + gated_width + i] = special[i];  // ups
    }
    std::vector<float> hidden(3 * gated_width);
    moe::kernels::activation_kernel<float, ActivationKind::clamped, true>()(
        rule, sums.data(), nullptr, 3, hidden.data(), 0);
    for (std::size_t r = 0; r < 3; ++r) {
      for (std::size_t i = 0; i < gated_width; ++i) {
        const float gate = sums[r * panel_width + i];
        const float up = sums[r * panel_width + gated_width + i];
        const double expected = activation(static_cast<double>(gate), static_cast<double>(up));
        if (std::isnan(expected)) {
          EXPECT_TRUE(std::isnan(hidden[i * 3 + r])) << gate << ", " << up;
        } else {
          EXPECT_NEAR(hidden[i * 3 + r], expected,
                      16 * std::numeric_limits<float>::epsilon() * 7 * 8)
              << gate << ", " << up;
        }
      }
    }
  }
}

TEST_P(Rows, FinishAddsTheBiasThenMultipliesByTheWeight) {
  const std::vector<float> sums = uniform(5 * panel_width, 5, 1);
  const std::vector<float> bias = uniform(panel_width, 6, 1);
  const std::vector<float> weight = uniform(5, 7, 1);
  for (const std::ptrdiff_t columns : {1, 7, 16, 31, 32}) {
    std::vector<float> out(5 * 40, nan);
    kernels().finish(sums.data(), bias.data(), weight.data(), 5, columns, out.data(), 40);
    for (std::size_t r = 0; r < 5; ++r) {
      for (std::size_t o = 0; o < 40; ++o) {
        if (o < static_cast<std::size_t>(columns)) {
          EXPECT_EQ(out[r * 40 + o], weight[r] * (sums[r * panel_width + o] + bias[o]));
        } else {
          EXPECT_TRUE(std::isnan(out[r * 40 + o])) << "written outside";
        }
      }
    }
    kernels().finish(sums.data(), nullptr, nullptr, 5, columns, out.data(), 40);
    for (std::size_t r = 0; r < 5; ++r)
      for (std::size_t o = 0; o < static_cast<std::size_t>(columns); ++o)
        EXPECT_EQ(out[r * 40 + o], sums[r * panel_width + o]);
  }
}

TEST_P(Rows, FinishGivesTheSamePastTheCaches) {
  const std::vector<float> sums = uniform(5 * panel_width, 5, 1);
  const std::vector<float> bias = uniform(panel_width, 6, 1);
  const std::vector<float> weight = uniform(5, 7, 1);
  for (const std::ptrdiff_t columns : {5, 32}) {
    moe::AlignedBuffer<float> out(5 * 48);
    moe::AlignedBuffer<float> expected(5 * 48);
    kernels().finish(sums.data(), bias.data(), weight.data(), 5, columns, expected.data(), 48);
    kernels().finish_past_caches(sums.data(), bias.data(), weight.data(), 5, columns, out.data(),
                                 48);
    EXPECT_TRUE(std::equal(out.data(), out.data() + 5 * 48, expected.data()));
  }
}

TEST_P(Rows, WeightedSumAddsInOrder) {
  for (const std::ptrdiff_t n : {0, 1, 15, 16, 17, 67}) {
    for (const std::size_t count : {0U, 1U, 3U}) {
      std::vector<std::vector<float>> rows;
      std::vector<const float*> pointers;
      for (unsigned i = 0; i < count; ++i) rows.push_back(uniform(n, 10 + i, 1));
      for (const auto& row : rows) pointers.push_back(row.data());
      const std::vector<float> weight = uniform(3, 9, 1);
      for (const bool weighted : {false, true}) {
        std::vector<float> out(static_cast<std::size_t>(n) + 1, nan);
        kernels().weighted_sum(pointers.data(), weighted ? weight.data() : nullptr,
                               static_cast<std::ptrdiff_t>(count), n, out.data());
        for (std::size_t d = 0; d < static_cast<std::size_t>(n); ++d) {
          double expected = 0;
          for (std::size_t i = 0; i < count; ++i)
            expected += static_cast<double>(weighted ? weight[i] : 1) * rows[i][d];
          EXPECT_NEAR(out[d], expected, 6 * std::numeric_limits<float>::epsilon() * 3);
        }
        EXPECT_TRUE(std::isnan(out.back()));
      }
    }
  }
}

TEST_P(Rows, WeightedSumKeepsTheOrder) {
  // 1 is lost, unless it comes after the two that cancel.
  for (const std::ptrdiff_t n : {1, 16, 33}) {
    const std::vector<std::vector<float>> rows = {
        std::vector<float>(static_cast<std::size_t>(n), 1e8F),
        std::vector<float>(static_cast<std::size_t>(n), -1e8F),
        std::vector<float>(static_cast<std::size_t>(n), 1)};
    const float* const in_order[] = {rows[0].data(), rows[1].data(), rows[2].data()};
    const float* const reversed[] = {rows[2].data(), rows[1].data(), rows[0].data()};
    const float weight[] = {1, 1, 1};
    std::vector<float> out(static_cast<std::size_t>(n));
    for (const float* const weights : {static_cast<const float*>(nullptr), &weight[0]}) {
      kernels().weighted_sum(in_order, weights, 3, n, out.data());
      EXPECT_EQ(out, std::vector<float>(static_cast<std::size_t>(n), 1));
      kernels().weighted_sum(reversed, weights, 3, n, out.data());
      EXPECT_EQ(out, std::vector<float>(static_cast<std::size_t>(n), 0));
    }
  }
}

TEST_P(Rows, PackTransposesAndScales) {
  for (const std::ptrdiff_t count : {1, 3, 5, 8, 13, 14}) {
    for (const std::ptrdiff_t n : {1, 15, 16, 17, 35, 64, 97}) {
      std::vector<std::vector<float>> rows;
      std::vector<const float*> pointers;
      for (unsigned i = 0; i < static_cast<unsigned>(count); ++i)
        rows.push_back(uniform(n, 20 + i, 1));
      for (const auto& row : rows) pointers.push_back(row.data());
      const std::vector<float> scale = uniform(14, 3, 2);
      for (const bool scaled : {false, true}) {
        // Nothing behind the last value is written to.
        std::vector<float> packed(static_cast<std::size_t>(n * count) + 16, -7.0F);
        kernels().pack(pointers.data(), scaled ? scale.data() : nullptr, count, n, packed.data());
        for (std::size_t k = 0; k < static_cast<std::size_t>(n); ++k)
          for (std::size_t r = 0; r < static_cast<std::size_t>(count); ++r)
            EXPECT_EQ(packed[k * static_cast<std::size_t>(count) + r],
                      (scaled ? scale[r] : 1) * rows[r][k]);
        for (std::size_t i = packed.size() - 16; i < packed.size(); ++i) EXPECT_EQ(packed[i], -7);
      }
    }
  }
}

}  // namespace rows_test
