// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Loops that are compiled for the machine that they run on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace benchmarks::native {

/// y = x W^T with Eigen.
///
/// Shapes  x (rows, inner), w (outputs, inner), y (rows, outputs).
void eigen_product(const float* x, std::ptrdiff_t rows, std::ptrdiff_t inner, const float* w,
                   std::ptrdiff_t outputs, float* y);
void eigen_threads(int threads);

/// hidden = silu(gate) * up; hidden may be up's memory.
void swiglu(const float* gate, const float* up, float* hidden, std::ptrdiff_t n);
/// up = max(up, 0).
void relu(float* up, std::ptrdiff_t n);

/// Codes of rows, the largest of each 127, and their scales.
///
/// Shapes  x, codes (rows, inner), scales (rows).
void to_int8(const float* x, std::ptrdiff_t rows, std::ptrdiff_t inner, std::int8_t* codes,
             float* scales);
/// y *= by.
void scale(float by, float* y, std::ptrdiff_t n);

}  // namespace benchmarks::native
