// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The reverse of every activation: in double against central differences of the activation, in
// float, at every level, against double.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/activation.hpp>
#include <moe/kernels/active_isa.hpp>
#include <moe/kernels/dispatch.hpp>

#include "support/levels.hpp"

namespace activation_gradient_test {

using moe::kernels::gated_width;
using moe::kernels::panel_width;

template <class Scalar>
struct Tile {
  std::vector<Scalar> sums;
  std::vector<Scalar> d_hidden;
  std::vector<Scalar> hidden;
  std::vector<Scalar> d_sums;
};

constexpr std::ptrdiff_t rows = 5;

/// Gates and ups from -9 to 9, no two alike, and gradients from -1 to 1.
template <class Scalar, class ActivationT, bool gated>
Tile<Scalar> run(const ActivationT& activation) {
  Tile<Scalar> tile;
  for (std::ptrdiff_t i = 0; i < rows * panel_width; ++i) {
    const double place = static_cast<double>((i * 67) % (rows * panel_width));
    tile.sums.push_back(static_cast<Scalar>(-9 + 18 * (place + 0.5) / (rows * panel_width)));
  }
  for (std::ptrdiff_t i = 0; i < rows * panel_width; ++i)
    tile.d_hidden.push_back(static_cast<Scalar>(std::sin(static_cast<double>(i))));
  tile.hidden.resize(static_cast<std::size_t>(rows * panel_width));
  tile.d_sums.resize(static_cast<std::size_t>(rows * panel_width));
  moe::kernels::activation_gradient_kernel<Scalar, moe::detail::KernelOf<ActivationT>::kind,
                                           gated>()(moe::detail::kernel_rule<Scalar>(activation),
                                                    tile.sums.data(), tile.d_hidden.data(), rows,
                                                    tile.hidden.data(), tile.d_sums.data());
  return tile;
}

/// sum of d_hidden times hidden of a row, as the activation has it.
template <class ActivationT, bool gated>
double loss(const ActivationT& activation, const double* sums, const double* d_hidden) {
  double total = 0;
  for (std::ptrdiff_t i = 0; i < (gated ? gated_width : panel_width); ++i) {
    if constexpr (gated) {
      total += d_hidden[i] * activation(sums[i], sums[gated_width + i]);
    } else {
      total += d_hidden[i] * activation(sums[i]);
    }
  }
  return total;
}

template <class ActivationT, bool gated>
void check(const ActivationT& activation = {}) {
  Tile<double> exact = run<double, ActivationT, gated>(activation);
  constexpr double h = 1e-6;
  for (std::ptrdiff_t r = 0; r < rows; ++r) {
    double* const sums = exact.sums.data() + r * panel_width;
    const double* const d_hidden = exact.d_hidden.data() + r * panel_width;
    for (std::ptrdiff_t o = 0; o < panel_width; ++o) {
      const double kept = sums[o];
      sums[o] = kept + h;
      const double above = loss<ActivationT, gated>(activation, sums, d_hidden);
      sums[o] = kept - h;
      const double below = loss<ActivationT, gated>(activation, sums, d_hidden);
      sums[o] = kept;
      // A value of up to 200 of 1e-16 precision over 2e-6.
      ASSERT_NEAR(exact.d_sums[static_cast<std::size_t>(r * panel_width + o)],
                  (above - below) / (2 * h), 1e-7)
          << "row " << r << ", sum " << o << " = " << kept;
    }
  }
  for (const moe::Isa isa : moe::available_isas()) {
    const moe::ScopedIsa level(isa);
    const Tile<float> tile = run<float, ActivationT, gated>(activation);
    for (std::size_t i = 0; i < tile.hidden.size(); ++i)
      ASSERT_NEAR(static_cast<double>(tile.hidden[i]), exact.hidden[i],
                  1e-6 * std::max(1.0, std::fabs(exact.hidden[i])))
          << moe::isa_name(isa);
    // Two products of values of up to 9, each rounded a few times.
    for (std::size_t i = 0; i < tile.d_sums.size(); ++i)
      ASSERT_NEAR(static_cast<double>(tile.d_sums[i]), exact.d_sums[i], 1e-5) << moe::isa_name(isa);
  }
}

TEST(ActivationGradient, OfPlainActivations) {
  check<moe::Relu, false>();
  check<moe::Silu, false>();
  check<moe::Gelu, false>();
  check<moe::GeluTanh, false>();
}

TEST(ActivationGradient, OfGatedActivations) {
  check<moe::ReGlu, true>();
  check<moe::SwiGlu, true>();
  check<moe::GeGlu, true>();
  check<moe::GeGluTanh, true>();
}

TEST(ActivationGradient, OfClampedActivations) {
  check<moe::ClampedSwiGlu, true>();
  check<moe::ClampedSwiGlu, true>({.alpha = 1, .limit = 5, .offset = 0});
  check<moe::ClampedSwiGlu, true>(
      {.alpha = 1.702, .limit = 4, .offset = 1, .clamps_gate_below = true});
}

TEST(Transposition, IsThatOfABlock) {
  for (const moe::Isa isa : moe::available_isas()) {
    const moe::ScopedIsa level(isa);
    for (const std::ptrdiff_t stride : {panel_width, panel_width + 1}) {
      std::vector<float> from(panel_width * panel_width);
      std::vector<float> to(static_cast<std::size_t>(panel_width * stride), -1);
      for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i);
      moe::kernels::transpose_kernel<float>()(from.data(), to.data(), stride);
      for (std::ptrdiff_t i = 0; i < panel_width; ++i)
        for (std::ptrdiff_t j = 0; j < stride; ++j)
          ASSERT_EQ(to[static_cast<std::size_t>(i * stride + j)],
                    j < panel_width ? from[static_cast<std::size_t>(j * panel_width + i)] : -1)
              << moe::isa_name(isa);
    }
  }
}

}  // namespace activation_gradient_test
