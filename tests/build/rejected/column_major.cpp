// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <moe/moe.hpp>

using Layer = moe::SparseMoe<moe::TopKRouter<float>, moe::SwiGluExperts<float>>;

void run(Layer& layer, const moe::Matrix<float>& x) {
#ifdef REJECTED
  Eigen::MatrixXf y(x.rows(), x.cols());  // (T, D), column by column
#else
  moe::Matrix<float> y(x.rows(), x.cols());  // (T, D)
#endif
  layer.forward(x, y);
}
