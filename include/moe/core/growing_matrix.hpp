// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A matrix that keeps its memory when it gets smaller.
#pragma once

#include <cstddef>
#include <new>
#include <utility>

#include <Eigen/Core>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// Owning, row-major and contiguous like Matrix, and a matrix to Eigen. A resize leaves the values
/// undefined and takes memory only beyond the most values that were ever asked for.
template <class ScalarT>
class GrowingMatrix : public Eigen::Map<Matrix<ScalarT>> {
 public:
  using Scalar = ScalarT;
  using Base = Eigen::Map<Matrix<Scalar>>;

  GrowingMatrix() : Base(nullptr, 0, 0) {}
  GrowingMatrix(Index rows, Index cols) : GrowingMatrix() { resize(rows, cols); }
  GrowingMatrix(const GrowingMatrix& other) : GrowingMatrix() { *this = other; }
  GrowingMatrix(GrowingMatrix&& other) noexcept : GrowingMatrix() { swap(other); }
  template <class Derived>
  GrowingMatrix(const Eigen::DenseBase<Derived>& other)  // NOLINT(google-explicit-constructor)
      : GrowingMatrix() {
    *this = other;
  }
  ~GrowingMatrix() = default;

  GrowingMatrix& operator=(const GrowingMatrix& other) {
    if (this == &other) return *this;
    resize(other.rows(), other.cols());
    Base::operator=(other);
    return *this;
  }
  GrowingMatrix& operator=(GrowingMatrix&& other) noexcept {
    swap(other);
    return *this;
  }
  /// Takes over the other's size.
  template <class Derived>
  GrowingMatrix& operator=(const Eigen::DenseBase<Derived>& other) {
    if (other.rows() == this->rows() && other.cols() == this->cols()) {
      Base::operator=(other.derived());
    } else {
      // A copy, since the other may refer to this one.
      // NOLINTNEXTLINE(performance-unnecessary-copy-initialization)
      const Matrix<Scalar> values(other.derived());
      resize(values.rows(), values.cols());
      Base::operator=(values);
    }
    return *this;
  }

  /// Makes room for `size` values. Where that takes new memory, the matrix has no rows after it.
  void reserve(Index size) {
    if (static_cast<std::size_t>(size) <= values_.size()) return;
    map(0, 0);  // Before the old memory goes, since taking new memory may throw.
    values_.grow(static_cast<std::size_t>(size));
    map(0, 0);
  }

  /// Throws  std::invalid_argument if a size is negative or their product exceeds Index.
  void resize(Index rows, Index cols) {
    detail::check(rows >= 0 && cols >= 0, "GrowingMatrix::resize", "a size is negative");
    reserve(detail::product("GrowingMatrix::resize", rows, cols));
    map(rows, cols);
  }

  /// A resize that keeps what both sizes have in common.
  void conservativeResize(Index rows, Index cols) {  // NOLINT(readability-identifier-naming)
    Matrix<Scalar> values = *this;
    values.conservativeResize(rows, cols);
    *this = values;
  }

 private:
  void map(Index rows, Index cols) noexcept {
    new (static_cast<Base*>(this)) Base(values_.data(), rows, cols);  // As Eigen documents.
  }

  void swap(GrowingMatrix& other) noexcept {
    const Index rows = this->rows();
    const Index cols = this->cols();
    const Index other_rows = other.rows();
    const Index other_cols = other.cols();
    std::swap(values_, other.values_);
    map(other_rows, other_cols);
    other.map(rows, cols);
  }

  AlignedBuffer<Scalar> values_;
};

}  // namespace moe::inline MOE_ABI
