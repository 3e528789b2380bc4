// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <random>
#include <set>
#include <type_traits>
#include <utility>
#include <vector>

#include <Eigen/Core>
#include <gtest/gtest.h>

#include <moe/core/view.hpp>

namespace view_test {

using moe::Index;
using moe::Matrix;
using moe::MatrixView;
using moe::Vector;
using ColumnMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic>;

template <class Object, class T>
constexpr bool views = std::is_constructible_v<MatrixView<T>, Object>;

static_assert(views<Matrix<float>&, float> && views<Matrix<float>&, const float>);
static_assert(views<const Matrix<float>&, const float>);
static_assert(!views<const Matrix<float>&, float>, "a view that writes needs a matrix that may be");
static_assert(!views<Matrix<double>&, const float>, "views convert no scalars");
static_assert(!views<ColumnMajor&, const float>, "column-major memory is not row-major");
static_assert(views<Vector<float>&, float>, "a column vector is one column");
static_assert(views<Eigen::Map<Matrix<float>>, float>);
static_assert(views<Eigen::Map<Matrix<float>, 0, Eigen::OuterStride<>>, float>);
static_assert(views<Eigen::Ref<Matrix<float>>&, float>);
static_assert(views<Eigen::Block<Matrix<float>>, float>);
static_assert(!views<Eigen::Map<Matrix<float>, 0, Eigen::InnerStride<>>, float>,
              "columns that are apart");
static_assert(!views<decltype(std::declval<Matrix<float>&>().col(0)), const float>,
              "a column of a row-major matrix has its elements apart");
static_assert(
    !views<decltype(std::declval<Matrix<float>&>() + std::declval<Matrix<float>&>()), const float>,
    "a sum has no memory");
static_assert(views<MatrixView<float>, const float> && !views<MatrixView<const float>, float>);

Matrix<float> counted(Index rows, Index cols) {
  Matrix<float> matrix(rows, cols);
  for (Index i = 0; i < matrix.size(); ++i) matrix.data()[i] = static_cast<float>(i);
  return matrix;
}

TEST(MatrixView, DefaultIsEmpty) {
  const MatrixView<float> view;
  EXPECT_EQ(view.rows(), 0);
  EXPECT_EQ(view.cols(), 0);
  EXPECT_TRUE(view.empty());
}

TEST(MatrixView, SeesAMatrixWhereItLies) {
  Matrix<float> matrix = counted(3, 4);
  const MatrixView<float> view = matrix;
  EXPECT_EQ(view.data(), matrix.data());
  EXPECT_EQ(view.rows(), 3);
  EXPECT_EQ(view.cols(), 4);
  EXPECT_EQ(view.row_stride(), 4);
  EXPECT_FALSE(view.empty());
  view(2, 1) = -1;
  EXPECT_EQ(matrix(2, 1), -1);
  EXPECT_EQ(view.row(1), matrix.data() + 4);
}

TEST(MatrixView, SeesABlockWithItsStride) {
  Matrix<float> matrix = counted(5, 7);
  const MatrixView<float> view = matrix.block(1, 2, 3, 4);
  EXPECT_EQ(view.rows(), 3);
  EXPECT_EQ(view.cols(), 4);
  EXPECT_EQ(view.row_stride(), 7);
  for (Index r = 0; r < 3; ++r)
    for (Index c = 0; c < 4; ++c) EXPECT_EQ(view(r, c), matrix(r + 1, c + 2));
}

TEST(MatrixView, SeesAVectorAsOneColumn) {
  Vector<float> vector(3);
  vector << 1, 2, 3;
  const MatrixView<const float> view = vector;
  EXPECT_EQ(view.rows(), 3);
  EXPECT_EQ(view.cols(), 1);
  for (Index r = 0; r < 3; ++r) EXPECT_EQ(view(r, 0), vector[r]);
  const MatrixView<const float> segment = vector.segment(1, 2);
  EXPECT_EQ(segment.rows(), 2);
  EXPECT_EQ(segment(1, 0), 3);
}

TEST(MatrixView, SeesARowAsOneRow) {
  Matrix<float> matrix = counted(3, 4);
  const MatrixView<const float> view = matrix.row(1);
  EXPECT_EQ(view.rows(), 1);
  EXPECT_EQ(view.cols(), 4);
  EXPECT_EQ(view(0, 3), 7);
}

TEST(MatrixView, MiddleRowsKeepTheStride) {
  Matrix<float> matrix = counted(5, 7);
  const MatrixView<float> view = MatrixView<float>(matrix.leftCols(3)).middle_rows(2, 2);
  EXPECT_EQ(view.rows(), 2);
  EXPECT_EQ(view.cols(), 3);
  EXPECT_EQ(view(1, 2), matrix(3, 2));
  EXPECT_TRUE(view.middle_rows(2, 0).empty());
}

TEST(MatrixView, MapIsTheSameMemory) {
  Matrix<float> matrix = counted(4, 5);
  const MatrixView<float> view = matrix.rightCols(2);
  view.map().setConstant(9);
  for (Index r = 0; r < 4; ++r)
    for (Index c = 0; c < 5; ++c)
      EXPECT_EQ(matrix(r, c), c < 3 ? static_cast<float>(r * 5 + c) : 9.0F);
  const MatrixView<const float> reads = view;
  EXPECT_EQ(reads.data(), view.data());
  EXPECT_EQ(reads.row_stride(), view.row_stride());
  EXPECT_EQ(Matrix<float>(reads.map()), Matrix<float>(matrix.rightCols(2)));
}

TEST(MatrixView, EmptySizesNeedNoMemory) {
  EXPECT_TRUE(MatrixView<float>(nullptr, 0, 5).empty());
  EXPECT_TRUE(MatrixView<float>(nullptr, 5, 0).empty());
  Matrix<float> none(0, 6);
  EXPECT_EQ(MatrixView<float>(none).cols(), 6);
}

TEST(MatrixView, RejectsWhatIsNoMatrix) {
  float values[12] = {};
  EXPECT_THROW(MatrixView<float>(values, -1, 2), moe::ShapeError);
  EXPECT_THROW(MatrixView<float>(values, 2, -1), moe::ShapeError);
  EXPECT_THROW(MatrixView<float>(values, 2, 4, 3), moe::ShapeError);
  EXPECT_THROW(MatrixView<float>(values, 2, 4, -4), moe::ShapeError);
  EXPECT_THROW(MatrixView<float>(nullptr, 1, 1), std::invalid_argument);
  EXPECT_NO_THROW(MatrixView<float>(values, 1, 4, 0)) << "one row has no next one";
  EXPECT_NO_THROW(MatrixView<float>(values, 3, 4, 4));
}

TEST(Overlap, ColumnBlocksOfOneMatrixDoNot) {
  Matrix<float> wide(4, 10);
  const MatrixView<float> left = wide.leftCols(5);
  const MatrixView<float> right = wide.rightCols(5);
  const MatrixView<float> middle = wide.middleCols(4, 2);
  EXPECT_FALSE(moe::detail::overlap(left, right));
  EXPECT_FALSE(moe::detail::overlap(right, left));
  EXPECT_TRUE(moe::detail::overlap(left, middle));
  EXPECT_TRUE(moe::detail::overlap(middle, right));
  EXPECT_TRUE(moe::detail::overlap(left, left));
}

TEST(Overlap, EmptyViewsDoNot) {
  Matrix<float> matrix(4, 4);
  const MatrixView<float> all = matrix;
  EXPECT_FALSE(moe::detail::overlap(all, all.middle_rows(1, 0)));
  EXPECT_FALSE(moe::detail::overlap(MatrixView<const float>(), all));
}

// Any two views into one buffer against the sets of their elements.
TEST(Overlap, AgreesWithSetsOfElements) {
  std::vector<float> buffer(60);
  std::mt19937 bits(7);
  const auto draw = [&](std::size_t limit) { return static_cast<Index>(bits() % limit); };
  const auto random_view = [&] {
    const Index cols = draw(6);
    const Index stride = cols + draw(6);
    const Index rows = draw(5);
    return MatrixView<float>(buffer.data() + draw(10), rows, cols, stride);
  };
  const auto elements = [](MatrixView<float> view) {
    std::set<const float*> all;
    for (Index r = 0; r < view.rows(); ++r)
      for (Index c = 0; c < view.cols(); ++c) all.insert(&view(r, c));
    return all;
  };
  int overlapping = 0;
  for (int round = 0; round < 2000; ++round) {
    const MatrixView<float> a = random_view();
    const MatrixView<float> b = random_view();
    bool expected = false;
    for (const float* p : elements(a)) expected = expected || elements(b).contains(p);
    overlapping += expected ? 1 : 0;
    ASSERT_EQ(moe::detail::overlap(a, b), expected) << "round " << round;
    ASSERT_EQ(moe::detail::overlap(b, a), expected) << "round " << round;
  }
  EXPECT_GT(overlapping, 200);
  EXPECT_LT(overlapping, 1800);
}

}  // namespace view_test
