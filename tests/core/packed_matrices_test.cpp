// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstdint>

#include <gtest/gtest.h>

#include <moe/core/numeric.hpp>
#include <moe/core/packed_matrices.hpp>
#include <moe/core/types.hpp>

namespace packed_matrices_test {

using moe::Index;
using moe::Matrix;
using moe::detail::PackedMatrices;
using moe::detail::PanelRole;

Matrix<float> numbered(Index rows, Index cols, float first) {
  Matrix<float> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = first + static_cast<float>(i);
  return m;
}

TEST(PackedMatrices, PutsThirtyTwoOutputsSideBySide) {
  PackedMatrices<float> packed(2, 40, 5);
  ASSERT_EQ(packed.panels(), 2);
  EXPECT_EQ(packed.panel_bytes(), 5 * 32 * sizeof(float));
  const Matrix<float> w = numbered(40, 5, 1);
  packed.pack<float>(1, PanelRole::plain, w);
  for (Index p = 0; p < 2; ++p) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(packed.panel(1, p)) % 64, 0U);
    for (Index k = 0; k < 5; ++k)
      for (Index o = 0; o < 32; ++o)
        EXPECT_EQ(packed.panel(1, p)[k * 32 + o], p * 32 + o < 40 ? w(p * 32 + o, k) : 0);
  }
  EXPECT_EQ(packed.panel(0, 0)[0], 0) << "another matrix was written";
}

TEST(PackedMatrices, PutsGatesBeforeTheirUps) {
  PackedMatrices<float> packed(1, 64, 3);  // 20 hidden values fill up to 32.
  const Matrix<float> gate = numbered(20, 3, 1);
  const Matrix<float> up = numbered(20, 3, 1001);
  packed.pack<float>(0, PanelRole::gate, gate);
  packed.pack<float>(0, PanelRole::up, up);
  for (Index f = 0; f < 20; ++f) {
    for (Index k = 0; k < 3; ++k) {
      EXPECT_EQ(packed.panel(0, f / 16)[k * 32 + f % 16], gate(f, k));
      EXPECT_EQ(packed.panel(0, f / 16)[k * 32 + 16 + f % 16], up(f, k));
    }
  }
  Matrix<float> back(20, 3);
  packed.unpack<float>(0, PanelRole::gate, back);
  EXPECT_EQ(back, gate);
  packed.unpack<float>(0, PanelRole::up, back);
  EXPECT_EQ(back, up);
}

TEST(PackedMatrices, RoundsToWhatItStores) {
  PackedMatrices<moe::bfloat16> packed(1, 32, 2);
  Matrix<float> w = numbered(32, 2, 1);
  w(0, 0) = 1.001F;
  packed.pack<float>(0, PanelRole::plain, w);
  Matrix<float> back(32, 2);
  packed.unpack<float>(0, PanelRole::plain, back);
  EXPECT_EQ(back(0, 0), 1);
  EXPECT_EQ(back(31, 1), w(31, 1));
}

}  // namespace packed_matrices_test
