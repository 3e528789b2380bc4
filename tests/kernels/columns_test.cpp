// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/aligned_buffer.hpp>
#include <moe/kernels/dispatch.hpp>

#include "support/levels.hpp"

namespace columns_test {

using moe::AlignedBuffer;
using moe::kernels::column_stride;
using moe::kernels::panel_width;

/// Columns with values and NaN around them, one of their blocks apart from the next, and a panel.
template <class Scalar>
struct Case {
  static constexpr std::ptrdiff_t gap = 3;

  std::ptrdiff_t columns;
  std::ptrdiff_t inner;
  std::ptrdiff_t stride = (columns + 2) * column_stride + gap;
  std::vector<Scalar> a;
  AlignedBuffer<Scalar> panel;  // (inner, 32)

  Case(std::ptrdiff_t its_columns, std::ptrdiff_t its_inner)
      : columns(its_columns),
        inner(its_inner),
        a(static_cast<std::size_t>((inner / panel_width + 1) * stride),
          std::numeric_limits<Scalar>::quiet_NaN()),
        panel(static_cast<std::size_t>(inner * panel_width) + 64) {
    std::mt19937 rng(static_cast<unsigned>(columns * 1000 + inner));
    std::uniform_real_distribution<Scalar> uniform(-1, 1);
    for (std::ptrdiff_t c = 0; c < columns; ++c)
      for (std::ptrdiff_t k = 0; k < inner; ++k) a[place(c, k)] = uniform(rng);
    for (std::ptrdiff_t i = 0; i < inner * panel_width; ++i) panel.data()[i] = uniform(rng);
  }

  std::size_t place(std::ptrdiff_t c, std::ptrdiff_t k) const {
    return static_cast<std::size_t>(k / panel_width * stride + c * column_stride + k % panel_width);
  }

  /// Inner values begin .. end - 1, on top of `sums`; begin is a multiple of 32.
  void run(AlignedBuffer<Scalar>& sums, std::ptrdiff_t begin, std::ptrdiff_t end,
           std::ptrdiff_t width) const {
    moe::kernels::column_kernels<Scalar>().of_columns[columns - 1](
        a.data() + begin / panel_width * stride, stride, panel.data() + begin * panel_width,
        end - begin, sums.data(), begin > 0, width,
        {reinterpret_cast<const char*>(panel.data()), 64, 128});
  }

  /// The same numbers as rows of a tile, one at a time.
  Scalar expected(std::ptrdiff_t c, std::ptrdiff_t o) const {
    std::vector<Scalar> row;
    for (std::ptrdiff_t k = 0; k < inner; ++k) row.push_back(a[place(c, k)]);
    AlignedBuffer<Scalar> sums(panel_width);
    moe::kernels::tile_kernels<Scalar, Scalar>().of_rows[0](
        row.data(), panel.data(), inner, sums.data(), false,
        reinterpret_cast<const char*>(panel.data()), 0);
    return sums.data()[o];
  }
};

template <class Scalar>
void check_bits() {
  const int most = moe::kernels::column_kernels<Scalar>().most_columns;
  ASSERT_EQ(most, (moe::kernels::tile_kernels<Scalar, Scalar>().most_rows));
  for (std::ptrdiff_t columns = 1; columns <= most; ++columns) {
    for (const std::ptrdiff_t inner : {1, 7, 31, 32, 33, 100}) {
      const Case<Scalar> c(columns, inner);
      const auto size = static_cast<std::size_t>(columns * panel_width);
      AlignedBuffer<Scalar> whole(size);
      c.run(whole, 0, inner, panel_width);
      AlignedBuffer<Scalar> half(size);
      c.run(half, 0, inner, panel_width / 2);
      AlignedBuffer<Scalar> sliced(size);
      c.run(sliced, 0, std::min<std::ptrdiff_t>(inner, 64), panel_width);
      if (inner > 64) c.run(sliced, 64, inner, panel_width);
      for (std::ptrdiff_t i = 0; i < columns; ++i) {
        for (std::ptrdiff_t o = 0; o < panel_width; ++o) {
          const Scalar expected = c.expected(i, o);
          ASSERT_EQ(whole.data()[i * panel_width + o], expected)
              << columns << " columns, inner " << inner << ", column " << i << ", output " << o;
          ASSERT_EQ(sliced.data()[i * panel_width + o], expected);
          if (o < panel_width / 2) {
            ASSERT_EQ(half.data()[i * panel_width + o], expected);
          }
        }
      }
    }
  }
}

class Columns : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(Columns);

TEST_P(Columns, GiveTheBitsOfATilesRows) {
  check_bits<float>();
  check_bits<double>();
}

TEST_P(Columns, AreSetApart) {
  std::vector<float> from(3 * panel_width);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i);
  std::vector<float> to(3 * column_stride, -1);
  moe::kernels::column_kernels<float>().spread(from.data(), 3, to.data());
  for (std::ptrdiff_t c = 0; c < 3; ++c)
    for (std::ptrdiff_t i = 0; i < column_stride; ++i)
      ASSERT_EQ(to[static_cast<std::size_t>(c * column_stride + i)],
                i < panel_width ? from[static_cast<std::size_t>(c * panel_width + i)] : -1);
}

}  // namespace columns_test
