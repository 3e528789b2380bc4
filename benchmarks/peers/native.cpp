// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Eigen under another name: with two sets of flags under one, the linker would keep either's code
// for both.
#define Eigen EigenForThisMachine
#include "peers/native.hpp"

#include <Eigen/Core>

namespace benchmarks::native {

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void eigen_product(const float* x, std::ptrdiff_t rows, std::ptrdiff_t inner, const float* w,
                   std::ptrdiff_t outputs, float* y) {
  const Eigen::Map<const Rows> weights(w, outputs, inner);
  if (rows == 1) {  // A product with a vector has kernels of its own.
    Eigen::Map<Eigen::VectorXf>(y, outputs).noalias() =
        weights * Eigen::Map<const Eigen::VectorXf>(x, inner);
  } else {
    Eigen::Map<Rows>(y, rows, outputs).noalias() =
        Eigen::Map<const Rows>(x, rows, inner) * weights.transpose();
  }
}

void eigen_threads(int threads) {
  Eigen::setNbThreads(threads);
}

void swiglu(const float* gate, const float* up, float* hidden, std::ptrdiff_t n) {
  const Eigen::Map<const Eigen::ArrayXf> u(up, n);
  const Eigen::Map<const Eigen::ArrayXf> g(gate, n);
  Eigen::Map<Eigen::ArrayXf>(hidden, n) = u * (g / (1 + (-g).exp()));
}

void relu(float* up, std::ptrdiff_t n) {
  Eigen::Map<Eigen::ArrayXf> h(up, n);
  h = h.max(0.0F);
}

void to_int8(const float* x, std::ptrdiff_t rows, std::ptrdiff_t inner, std::int8_t* codes,
             float* scales) {
  for (std::ptrdiff_t r = 0; r < rows; ++r) {
    const float* const row = x + r * inner;
    const float largest = Eigen::Map<const Eigen::ArrayXf>(row, inner).abs().maxCoeff();
    const float inverse = largest > 0 ? 127 / largest : 0;
    scales[r] = largest / 127;
    for (std::ptrdiff_t i = 0; i < inner; ++i)
      codes[r * inner + i] = static_cast<std::int8_t>(__builtin_rintf(row[i] * inverse));
  }
}

void scale(float by, float* y, std::ptrdiff_t n) {
  Eigen::Map<Eigen::ArrayXf>(y, n) *= by;
}

}  // namespace benchmarks::native
