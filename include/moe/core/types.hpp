// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The dimension glossary, the index types and the owning matrix.
//
// | letter | word in code | meaning                                                  |
// |--------|--------------|----------------------------------------------------------|
// | T      | tokens       | rows of the input                                        |
// | D      | d_model      | width of a token                                         |
// | F      | d_ff         | width of one expert's hidden layer                       |
// | E      | num_experts  | routed experts of the layer                              |
// | K      | top_k        | choices, or slots, of one token                          |
// | C      | capacity     | rows that one expert takes at most                       |
// | N      | rows         | rows of one expert, or of all: (token, slot) pairs kept  |
#pragma once

#include <cstddef>
#include <cstdint>

#include <Eigen/Core>

#include "moe/core/config.hpp"

namespace moe::inline MOE_ABI {

/// Sizes and positions of rows and columns.
using Index = std::ptrdiff_t;

/// An expert's number, 0 .. E-1, as stored in a Routing.
using ExpertIndex = std::int32_t;

/// In place of an expert's number: a slot that is not used.
inline constexpr ExpertIndex no_expert = -1;

/// Owning, row-major, contiguous.
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Owning, contiguous.
template <class Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

namespace detail {

/// Row r of a contiguous row-major matrix. Eigen's blocks take long to compile.
template <class M>
auto* row_data(M& m, Index r) noexcept {
  return m.data() + r * m.cols();
}

}  // namespace detail

}  // namespace moe::inline MOE_ABI
