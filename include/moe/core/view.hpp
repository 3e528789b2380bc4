// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Row-major views: how matrices enter and leave the library.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// An Eigen object that lies in memory row by row with neighbouring columns adjacent: a row-major
/// Matrix, Map, Ref or block of one, or a column vector seen as one column.
/// An expression (`a + b`, a transpose) has no memory to view, so it does not model this.
template <class Object, class T>
concept RowMajorObject = requires(Object& object) {
  { object.data() } -> std::convertible_to<T*>;
  { object.outerStride() } -> std::convertible_to<Index>;
  { object.innerStride() } -> std::convertible_to<Index>;
  requires bool(std::remove_cvref_t<Object>::IsRowMajor) ||
      int(std::remove_cvref_t<Object>::ColsAtCompileTime) == 1;
  requires int(std::remove_cvref_t<Object>::InnerStrideAtCompileTime) == 1;
};

/// A non-owning row-major matrix with any row stride. `T` is const for inputs.
///
/// Shapes  (rows, cols); row r begins at data + r * row_stride.
/// Throws  ShapeError if a size is negative or rows would overlap (row_stride < cols).
template <class T>
class MatrixView {
 public:
  using Scalar = std::remove_const_t<T>;

  constexpr MatrixView() = default;

  MatrixView(T* data, Index rows, Index cols) : MatrixView(data, rows, cols, cols) {}

  MatrixView(T* data, Index rows, Index cols, Index row_stride)
      : data_(data), rows_(rows), cols_(cols), row_stride_(row_stride) {
    if (rows < 0) detail::throw_shape("MatrixView", "rows (at least)", 0, rows);
    if (cols < 0) detail::throw_shape("MatrixView", "cols (at least)", 0, cols);
    if (rows > 1 && row_stride < cols)
      detail::throw_shape("MatrixView", "row_stride (at least)", cols, row_stride);
    detail::check(data != nullptr || rows == 0 || cols == 0, "MatrixView",
                  "data is null, the matrix is not empty");
  }

  template <RowMajorObject<T> Object>
  MatrixView(Object&& object)  // NOLINT(bugprone-forwarding-reference-overload)
      : MatrixView(object.data(), object.rows(), object.cols(),
                   std::remove_cvref_t<Object>::IsRowMajor ? object.outerStride() : Index{1}) {}

  /// A view that writes is also one that reads.
  template <std::same_as<Scalar> Mutable>
  requires std::is_const_v<T> MatrixView(const MatrixView<Mutable>& other)
      : data_(other.data()),
        rows_(other.rows()),
        cols_(other.cols()),
        row_stride_(other.row_stride()) {}

  T* data() const noexcept { return data_; }
  Index rows() const noexcept { return rows_; }
  Index cols() const noexcept { return cols_; }
  Index row_stride() const noexcept { return row_stride_; }
  bool empty() const noexcept { return rows_ == 0 || cols_ == 0; }

  T* row(Index r) const noexcept { return data_ + r * row_stride_; }
  T& operator()(Index r, Index c) const noexcept { return data_[r * row_stride_ + c]; }

  /// Rows first .. first + count - 1.
  MatrixView middle_rows(Index first, Index count) const {
    return MatrixView(data_ + first * row_stride_, count, cols_, row_stride_);
  }

  /// The same matrix for Eigen.
  auto map() const {
    using Plain = std::conditional_t<std::is_const_v<T>, const Matrix<Scalar>, Matrix<Scalar>>;
    return Eigen::Map<Plain, Eigen::Unaligned, Eigen::OuterStride<>>(
        data_, rows_, cols_, Eigen::OuterStride<>(row_stride_));
  }

 private:
  T* data_ = nullptr;
  Index rows_ = 0;
  Index cols_ = 0;
  Index row_stride_ = 0;
};

namespace detail {

/// True if the two views share an element. Two column blocks of one wider matrix do not.
template <class A, class B>
bool overlap(MatrixView<A> a, MatrixView<B> b) {
  if (a.empty() || b.empty()) return false;
  const auto address = [](const auto* p) { return reinterpret_cast<std::uintptr_t>(p); };
  const auto begin = [&](const auto& view, Index r) { return address(view.row(r)); };
  const auto end = [&](const auto& view, Index r) { return address(view.row(r) + view.cols()); };
  Index i = 0;
  Index j = 0;
  while (i < a.rows() && j < b.rows()) {  // Rows ascend in both: a merge meets every overlap.
    if (end(a, i) <= begin(b, j)) {
      ++i;
    } else if (end(b, j) <= begin(a, i)) {
      ++j;
    } else {
      return true;
    }
  }
  return false;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
