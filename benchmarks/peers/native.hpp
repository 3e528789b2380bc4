// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Loops that are compiled for the machine that they run on.
#pragma once

#include <cstddef>

namespace benchmarks::native {

/// y = x W^T with Eigen.
///
/// Shapes  x (rows, inner), w (outputs, inner), y (rows, outputs).
void eigen_product(const float* x, std::ptrdiff_t rows, std::ptrdiff_t inner, const float* w,
                   std::ptrdiff_t outputs, float* y);
void eigen_threads(int threads);

/// up = silu(gate) * up, and up = max(up, 0).
void swiglu(const float* gate, float* up, std::ptrdiff_t n);
void relu(float* up, std::ptrdiff_t n);

}  // namespace benchmarks::native
