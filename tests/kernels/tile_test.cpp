// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/aligned_buffer.hpp>
#include <moe/core/numeric.hpp>
#include <moe/kernels/dispatch.hpp>

#include "support/levels.hpp"

namespace tile_test {

using moe::AlignedBuffer;
using moe::kernels::panel_width;

/// Rows and a panel with values, and room behind both that holds NaN.
template <class Scalar, class Storage>
struct Case {
  std::ptrdiff_t rows;
  std::ptrdiff_t inner;
  std::vector<Scalar> a;         // (inner, rows), one value off its alignment
  AlignedBuffer<Storage> panel;  // (inner, 32)

  Case(std::ptrdiff_t its_rows, std::ptrdiff_t its_inner)
      : rows(its_rows),
        inner(its_inner),
        a(static_cast<std::size_t>(rows * inner) + 65, std::numeric_limits<Scalar>::quiet_NaN()),
        panel(static_cast<std::size_t>(inner * panel_width) + 64) {
    std::mt19937 rng(static_cast<unsigned>(rows * 1000 + inner));
    std::uniform_real_distribution<double> uniform(-1, 1);
    for (std::ptrdiff_t i = 0; i < rows * inner; ++i)
      a[static_cast<std::size_t>(i) + 1] = static_cast<Scalar>(uniform(rng));
    const auto nan = moe::detail::store_as<Storage>(std::numeric_limits<Scalar>::quiet_NaN());
    for (std::size_t i = 0; i < panel.size(); ++i)
      panel.data()[i] = i < static_cast<std::size_t>(inner * panel_width)
                            ? moe::detail::store_as<Storage>(static_cast<Scalar>(uniform(rng)))
                            : nan;
  }

  Scalar value(std::ptrdiff_t k, std::ptrdiff_t r) const {
    return a[static_cast<std::size_t>(k * rows + r) + 1];
  }
  double weight(std::ptrdiff_t k, std::ptrdiff_t o) const {
    return static_cast<double>(moe::detail::load_as<Scalar>(panel.data()[k * panel_width + o]));
  }

  /// The sums of k in begin .. end - 1, on top of `sums`.
  void run(AlignedBuffer<Scalar>& sums, std::ptrdiff_t begin, std::ptrdiff_t end) const {
    moe::kernels::tile_kernels<Scalar, Storage>().of_rows[rows - 1](
        a.data() + 1 + begin * rows, panel.data() + begin * panel_width, end - begin, sums.data(),
        begin > 0, reinterpret_cast<const char*>(panel.data()), 0);
  }
};

template <class Scalar, class Storage>
void check_sums(std::ptrdiff_t rows, std::ptrdiff_t inner) {
  SCOPED_TRACE(testing::Message() << rows << " rows, inner " << inner);
  const Case<Scalar, Storage> c(rows, inner);
  AlignedBuffer<Scalar> sums(static_cast<std::size_t>(rows * panel_width));
  c.run(sums, 0, inner);
  for (std::ptrdiff_t r = 0; r < rows; ++r) {
    for (std::ptrdiff_t o = 0; o < panel_width; ++o) {
      double exact = 0;
      double bound = 0;
      for (std::ptrdiff_t k = 0; k < inner; ++k) {
        const double term = static_cast<double>(c.value(k, r)) * c.weight(k, o);
        exact += term;
        bound += std::fabs(term);
      }
      // A rounding for each product and each sum.
      const double tolerance =
          2 * static_cast<double>(inner) * std::numeric_limits<Scalar>::epsilon() * bound;
      ASSERT_NEAR(static_cast<double>(sums.data()[r * panel_width + o]), exact, tolerance)
          << "row " << r << ", output " << o;
    }
  }
}

template <class Storage>
void check_bits() {
  constexpr std::ptrdiff_t inner = 131;
  const int most = moe::kernels::tile_kernels<float, Storage>().most_rows;
  for (int rows = 1; rows <= most; ++rows) {
    const Case<float, Storage> together(rows, inner);
    AlignedBuffer<float> sums(static_cast<std::size_t>(rows * panel_width));
    together.run(sums, 0, inner);
    AlignedBuffer<float> sliced(static_cast<std::size_t>(rows * panel_width));
    together.run(sliced, 0, 50);
    together.run(sliced, 50, 51);
    together.run(sliced, 51, inner);
    for (int r = 0; r < rows; ++r) {
      Case<float, Storage> alone(1, inner);
      alone.panel = together.panel;
      for (std::ptrdiff_t k = 0; k < inner; ++k)
        alone.a[static_cast<std::size_t>(k) + 1] = together.value(k, r);
      AlignedBuffer<float> row(panel_width);
      alone.run(row, 0, inner);
      for (std::ptrdiff_t o = 0; o < panel_width; ++o) {
        ASSERT_EQ(sums.data()[r * panel_width + o], row.data()[o]) << rows << " rows";
        ASSERT_EQ(sums.data()[r * panel_width + o], sliced.data()[r * panel_width + o]);
      }
    }
  }
}

/// Several panels side by side give what each of them does alone.
template <class Storage>
void check_side_by_side() {
  const auto& tiles = moe::kernels::tile_kernels<float, Storage>();
  for (int rows = 1; rows <= moe::kernels::most_tile_rows; ++rows) {
    const int panels = tiles.side_panels[rows - 1];
    ASSERT_EQ(panels > 0, tiles.side_by_side[rows - 1] != nullptr);
    ASSERT_LE(panels, moe::kernels::most_side_panels);
    if (panels == 0) continue;
    for (const std::ptrdiff_t inner : {0, 1, 67}) {
      const Case<float, Storage> c(rows, panels * inner);  // one panel behind the other
      const std::ptrdiff_t size = rows * panel_width;
      AlignedBuffer<float> together(static_cast<std::size_t>(panels * size));
      tiles.side_by_side[rows - 1](c.a.data() + 1, c.panel.data(), inner, together.data());
      AlignedBuffer<float> alone(static_cast<std::size_t>(size));
      for (int p = 0; p < panels; ++p) {
        const Storage* const panel = c.panel.data() + p * inner * panel_width;
        tiles.of_rows[rows - 1](c.a.data() + 1, panel, inner, alone.data(), false,
                                reinterpret_cast<const char*>(panel), 0);
        for (std::ptrdiff_t i = 0; i < size; ++i)
          ASSERT_EQ(together.data()[p * size + i], alone.data()[i])
              << rows << " rows, panel " << p << ", inner " << inner;
      }
    }
  }
}

/// With other lines asked for, the same bits.
template <class Storage>
void check_in_streams() {
  const auto& tiles = moe::kernels::tile_kernels<float, Storage>();
  for (int rows = 1; rows <= tiles.most_rows; ++rows) {
    ASSERT_NE(tiles.in_streams[rows - 1] == nullptr, tiles.side_by_side[rows - 1] == nullptr);
    if (tiles.in_streams[rows - 1] == nullptr) continue;
    for (const std::ptrdiff_t inner : {0, 1, 67}) {
      const Case<float, Storage> c(rows, inner);
      const auto size = static_cast<std::size_t>(rows * panel_width);
      AlignedBuffer<float> expected(size);
      c.run(expected, 0, inner);
      const auto* const next = reinterpret_cast<const char*>(c.panel.data());
      AlignedBuffer<float> sums(size);
      const std::ptrdiff_t first = inner / 2;
      const auto run = [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        const bool is_first = begin == 0;
        tiles.in_streams[rows - 1](c.a.data() + 1 + begin * rows,
                                   c.panel.data() + begin * panel_width, end - begin, sums.data(),
                                   !is_first, {next, 64, is_first ? 128 : 43}, is_first ? 4096 : 0);
      };
      run(0, first);
      if (first > 0) {
        run(first, inner);
      } else {
        run(0, inner);
      }
      for (std::size_t i = 0; i < size; ++i) ASSERT_EQ(sums.data()[i], expected.data()[i]) << rows;
    }
  }
}

class Tile : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(Tile);

TEST_P(Tile, GivesTheSumsOfEveryNumberOfRows) {
  const int most = moe::kernels::tile_kernels<float, float>().most_rows;
  for (int rows = 1; rows <= most; ++rows) {
    for (const std::ptrdiff_t inner : {0, 1, 7, 15, 16, 17, 67, 257}) {
      check_sums<float, float>(rows, inner);
      check_sums<float, moe::bfloat16>(rows, inner);
      check_sums<float, moe::half>(rows, inner);
    }
  }
  for (int rows = 1; rows <= moe::kernels::tile_kernels<double, double>().most_rows; ++rows)
    for (const std::ptrdiff_t inner : {0, 1, 67}) check_sums<double, double>(rows, inner);
}

TEST_P(Tile, GivesTheSameBitsForEveryNumberOfRowsAndInSlices) {
  check_bits<float>();
  check_bits<moe::bfloat16>();
  check_bits<moe::half>();
}

TEST_P(Tile, GivesTheSameBitsForPanelsSideBySide) {
  check_side_by_side<float>();
  check_side_by_side<moe::bfloat16>();
  check_side_by_side<moe::half>();
}

TEST_P(Tile, GivesTheSameBitsInStreams) {
  check_in_streams<float>();
  check_in_streams<moe::bfloat16>();
  check_in_streams<moe::half>();
}

TEST_P(Tile, WidensStoredWeightsExactly) {
  // One product with 1 for every code of a sixteen-bit weight.
  AlignedBuffer<float> sums(panel_width);
  const float one = 1;
  const auto check = [&]<class Storage>(Storage /*type*/) {
    AlignedBuffer<Storage> panel(panel_width);
    for (std::uint32_t first = 0; first < 0x10000; first += panel_width) {
      for (std::uint32_t o = 0; o < panel_width; ++o)
        panel.data()[o].bits = static_cast<std::uint16_t>(first + o);
      moe::kernels::tile_kernels<float, Storage>().of_rows[0](
          &one, panel.data(), 1, sums.data(), false, reinterpret_cast<const char*>(panel.data()),
          0);
      for (std::uint32_t o = 0; o < panel_width; ++o) {
        const auto expected = moe::detail::load_as<float>(panel.data()[o]);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(sums.data()[o]));
        } else {
          ASSERT_EQ(sums.data()[o], expected);
        }
      }
    }
  };
  check(moe::bfloat16{});
  check(moe::half{});
}

}  // namespace tile_test
