// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include <gtest/gtest.h>

#include <moe/core/growing_matrix.hpp>
#include <moe/core/view.hpp>

namespace growing_matrix_test {

using moe::GrowingMatrix;
using moe::Matrix;

TEST(GrowingMatrix, IsAMatrix) {
  GrowingMatrix<float> m(2, 3);
  m << 1, 2, 3, 4, 5, 6;
  EXPECT_EQ(m(1, 2), 6);
  EXPECT_EQ(m.row(1).sum(), 15);
  const Matrix<float> copy = m;
  EXPECT_EQ(copy, m);
  const moe::MatrixView<const float> view = m;
  EXPECT_EQ(view.row_stride(), 3);
  EXPECT_EQ(view(1, 0), 4);
}

TEST(GrowingMatrix, KeepsItsMemoryWhenItGetsSmaller) {
  GrowingMatrix<double> m(20, 30);
  const double* const memory = m.data();
  m.resize(3, 4);
  EXPECT_EQ(m.rows(), 3);
  EXPECT_EQ(m.cols(), 4);
  EXPECT_EQ(m.data(), memory);
  m.resize(30, 20);
  EXPECT_EQ(m.data(), memory);
  m.reserve(601);
  EXPECT_EQ(m.size(), 0);
}

TEST(GrowingMatrix, IsEmptyAfterAGrowthThatFailed) {
  moe::GrowingMatrix<float> m(2, 2);
  EXPECT_THROW(m.resize(moe::Index{1} << 58, 4), std::bad_alloc);
  EXPECT_EQ(m.size(), 0);
  EXPECT_THROW(m.resize(moe::Index{1} << 62, 4), std::invalid_argument);
  EXPECT_THROW(m.resize(-1, 4), std::invalid_argument);
  m.resize(3, 3);
  m.setConstant(1);
  EXPECT_EQ(m.sum(), 9);
}

TEST(GrowingMatrix, TakesExpressionsAndTheirSize) {
  GrowingMatrix<int> m(2, 2);
  m << 1, 2, 3, 4;
  m = m.transpose().eval();
  EXPECT_EQ(m(0, 1), 3);
  m = m.topRows(1) * 2;  // Of another size, and of itself.
  ASSERT_EQ(m.rows(), 1);
  EXPECT_EQ(m(0, 0), 2);
  EXPECT_EQ(m(0, 1), 6);
  m = Matrix<int>::Constant(3, 5, 7);
  EXPECT_EQ(m.sum(), 105);
  m.conservativeResize(2, 6);
  EXPECT_EQ(m(1, 4), 7);
}

TEST(GrowingMatrix, CopiesAndMoves) {
  GrowingMatrix<int> m = Matrix<int>::Constant(2, 2, 1);
  GrowingMatrix<int> copy = m;
  copy(0, 0) = 5;
  EXPECT_EQ(m(0, 0), 1);
  const int* const memory = m.data();
  GrowingMatrix<int> moved = std::move(m);
  EXPECT_EQ(moved.data(), memory);
  EXPECT_EQ(moved.sum(), 4);
  moved = copy;
  EXPECT_EQ(moved.sum(), 8);
  copy = std::move(moved);
  EXPECT_EQ(copy.sum(), 8);
}

}  // namespace growing_matrix_test
