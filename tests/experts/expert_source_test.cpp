// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>

#include <gtest/gtest.h>

#include <moe/experts/expert_source.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/fwd.hpp>

#include "support/layers.hpp"

namespace expert_source_test {

using moe::ExpertSource;
using moe::GateUpOrder;
using moe::Index;
using moe::Matrix;
using moe::Orientation;
using test_support::random_matrix;

constexpr Index D = 5;
constexpr Index F = 3;

struct Parts {
  Matrix<float> gate = random_matrix<float>(F, D, 1);
  Matrix<float> up = random_matrix<float>(F, D, 2);
  Matrix<float> down = random_matrix<float>(D, F, 3);
  Matrix<float> gate_bias = random_matrix<float>(F, 1, 4);
  Matrix<float> up_bias = random_matrix<float>(F, 1, 5);
  Matrix<float> down_bias = random_matrix<float>(D, 1, 6);

  void expect(const ExpertSource<float>& source) const {
    const auto m = moe::separate(source);
    EXPECT_EQ(m.gate, gate);
    EXPECT_EQ(m.up, up);
    EXPECT_EQ(m.down, down);
    EXPECT_EQ(m.gate_bias, gate_bias);
    EXPECT_EQ(m.up_bias, up_bias);
    EXPECT_EQ(m.down_bias, down_bias);
  }
};

TEST(ExpertSource, EveryLayoutGivesTheSameExpert) {
  const Parts p;
  p.expect({.gate = p.gate,
            .up = p.up,
            .down = p.down,
            .gate_bias = p.gate_bias,
            .up_bias = p.up_bias,
            .down_bias = p.down_bias});
  Matrix<float> halves(2 * F, D);
  halves << p.gate, p.up;
  Matrix<float> halves_bias(2 * F, 1);
  halves_bias << p.gate_bias, p.up_bias;
  p.expect(
      {.gate_up = halves, .down = p.down, .gate_up_bias = halves_bias, .down_bias = p.down_bias});
  Matrix<float> mixed(2 * F, D);
  Matrix<float> mixed_bias(2 * F, 1);
  for (Index f = 0; f < F; ++f) {
    mixed.row(2 * f) = p.gate.row(f);
    mixed.row(2 * f + 1) = p.up.row(f);
    mixed_bias(2 * f, 0) = p.gate_bias(f, 0);
    mixed_bias(2 * f + 1, 0) = p.up_bias(f, 0);
  }
  const Matrix<float> transposed = mixed.transpose();
  const Matrix<float> down = p.down.transpose();
  p.expect({.gate_up = transposed,
            .down = down,
            .gate_up_bias = mixed_bias,
            .down_bias = p.down_bias,
            .orientation = Orientation::in_out,
            .down_orientation = Orientation::in_out,
            .gate_up_order = GateUpOrder::interleaved});
}

TEST(ExpertSource, RefusesWhatDoesNotFit) {
  const Parts p;
  const Matrix<float> odd(2 * F + 1, D);
  EXPECT_THROW(moe::separate<float>({.gate_up = odd, .down = p.down}), moe::ShapeError);
  const Matrix<float> even(2 * F, D);
  EXPECT_THROW(moe::separate<float>({.gate = p.gate, .gate_up = even, .down = p.down}),
               std::invalid_argument);
  moe::SwiGluExperts<float> bank({.num_experts = 1, .d_model = D, .d_ff = F});
  EXPECT_NO_THROW(bank.set_expert_from(0, {.gate = p.gate, .up = p.up, .down = p.down}));
  EXPECT_EQ(bank.expert(0).up, p.up);
  EXPECT_THROW(bank.set_expert_from(0, {.up = p.up, .down = p.down}), moe::ShapeError);
}

}  // namespace expert_source_test
