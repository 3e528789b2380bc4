// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>

#include <gtest/gtest.h>

#include <moe/core/product.hpp>

#include "support/reference.hpp"
#include "support/threads.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using moe::detail::padded_rows;
using moe::detail::tile_rows;

// Around the vector lengths of either scalar, and long enough for the product to be blocked.
constexpr Index inner_sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 16, 19, 33, 67, 300, 1111};
constexpr Index output_sizes[] = {1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 35, 67};

/// Uniform in [-1, 1).
template <class Scalar>
Matrix<Scalar> random_matrix(Index rows, Index cols, std::uint64_t seed) {
  std::mt19937_64 bits(seed);
  Matrix<Scalar> matrix(rows, cols);
  for (Index i = 0; i < matrix.size(); ++i)
    matrix.data()[i] = static_cast<Scalar>(std::ldexp(static_cast<double>(bits() >> 11), -52) - 1);
  return matrix;
}

TEST(PaddedRows, RoundsUpToFoursWithinATile) {
  for (const Index inner : inner_sizes) {
    for (const Index outputs : output_sizes) {
      for (Index rows = 1; rows <= tile_rows; ++rows) {
        const Index padded = padded_rows(rows, inner, outputs);
        ASSERT_EQ(padded % 4, 0);
        ASSERT_GE(padded, rows);
        ASSERT_LE(padded, tile_rows);
        ASSERT_GE(padded + inner + outputs, 20);
        ASSERT_LT(padded, inner + outputs >= 20 ? rows + 4 : tile_rows + 1);
      }
    }
  }
}

template <class Scalar>
class TileProduct : public testing::Test {
 protected:
  /// The product of the rows of x, padded with zeros.
  static Matrix<Scalar> product(const Matrix<Scalar>& x, const Matrix<Scalar>& w) {
    const Index padded = padded_rows(x.rows(), x.cols(), w.rows());
    Matrix<Scalar> tile = Matrix<Scalar>::Zero(padded, x.cols());
    tile.topRows(x.rows()) = x;
    Matrix<Scalar> y =
        Matrix<Scalar>::Constant(padded, w.rows(), std::numeric_limits<Scalar>::quiet_NaN());
    moe::detail::tile_product(tile.data(), padded, x.cols(), w.data(), w.rows(), y.data());
    return y.topRows(x.rows());
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TileProduct, Scalars);

TYPED_TEST(TileProduct, IsTheSumOfProducts) {
  constexpr double eps = std::numeric_limits<TypeParam>::epsilon();
  for (const Index inner : inner_sizes) {
    for (const Index outputs : output_sizes) {
      const auto x = random_matrix<TypeParam>(11, inner, 1);
      const auto w = random_matrix<TypeParam>(outputs, inner, 2);
      const reference::MatrixD weights = w.template cast<double>();
      const Matrix<TypeParam> y = this->product(x, w);
      for (Index r = 0; r < 11; ++r) {
        const reference::Values expected = reference::linear(weights, reference::row_of(x, r));
        const reference::Values size =
            reference::linear(weights.cwiseAbs(), reference::row_of(x.cwiseAbs(), r));
        for (Index o = 0; o < outputs; ++o) {
          const auto out = static_cast<std::size_t>(o);
          // A sum of n products in any order, and the reference's own with an error no larger.
          ASSERT_NEAR(static_cast<double>(y(r, o)), expected[out],
                      2 * static_cast<double>(inner) * eps * size[out])
              << inner << " x " << outputs;
        }
      }
    }
  }
}

// A row by itself, at every place in tiles of every height.
TYPED_TEST(TileProduct, BitsOfARowDependOnNoOtherRow) {
  for (const Index inner : inner_sizes) {
    for (const Index outputs : output_sizes) {
      if (inner * outputs > 2000 && outputs != 17 && outputs != 1)
        continue;  // Seconds, unoptimised.
      const auto x = random_matrix<TypeParam>(tile_rows, inner, 3);
      const auto w = random_matrix<TypeParam>(outputs, inner, 4);
      Matrix<TypeParam> alone(tile_rows, outputs);
      for (Index r = 0; r < tile_rows; ++r) alone.row(r) = this->product(x.row(r), w);
      for (Index rows = 2; rows <= tile_rows; ++rows) {
        const Index first = (rows * 7) % (tile_rows - rows + 1);
        ASSERT_EQ(this->product(x.middleRows(first, rows), w), alone.middleRows(first, rows))
            << inner << " x " << outputs << ", " << rows << " rows";
      }
    }
  }
}

TYPED_TEST(TileProduct, BitsDoNotDependOnTheThreads) {
  const auto x = random_matrix<TypeParam>(tile_rows, 1111, 5);
  const auto w = random_matrix<TypeParam>(67, 1111, 6);
  Matrix<TypeParam> expected;
  {
    const test_support::ScopedThreads one(1);
    expected = this->product(x, w);
  }
  for (const int count : test_support::thread_counts) {
    const test_support::ScopedThreads threads(count);
    EXPECT_EQ(this->product(x, w), expected) << count << " threads";
  }
}

TYPED_TEST(TileProduct, NanStaysInItsRow) {
  for (const Index inner : {3, 40}) {
    for (const Index outputs : {1, 3, 40}) {
      auto x = random_matrix<TypeParam>(7, inner, 7);
      const auto w = random_matrix<TypeParam>(outputs, inner, 8);
      const Matrix<TypeParam> clean = this->product(x, w);
      x(2, inner - 1) = std::numeric_limits<TypeParam>::quiet_NaN();
      x(5, 0) = std::numeric_limits<TypeParam>::infinity();
      const Matrix<TypeParam> y = this->product(x, w);
      for (Index o = 0; o < outputs; ++o) {
        EXPECT_TRUE(std::isnan(y(2, o)));
        EXPECT_FALSE(std::isfinite(y(5, o)));
        for (const Index r : {0, 1, 3, 4, 6}) EXPECT_EQ(y(r, o), clean(r, o));
      }
    }
  }
}

TYPED_TEST(TileProduct, EmptySizes) {
  const Matrix<TypeParam> y = this->product(Matrix<TypeParam>(5, 0), Matrix<TypeParam>(3, 0));
  EXPECT_EQ(y, (Matrix<TypeParam>::Zero(5, 3)));
  EXPECT_EQ(this->product(Matrix<TypeParam>::Ones(5, 4), Matrix<TypeParam>(0, 4)).size(), 0);
  EXPECT_EQ(this->product(Matrix<TypeParam>(0, 24), Matrix<TypeParam>::Ones(3, 24)).size(), 0);
}

}  // namespace
