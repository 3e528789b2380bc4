// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// An expert of one's own: any type that models moe::Expert, made into a bank by CustomExperts.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include <moe/moe.hpp>

/// Scales a token by one number.
struct ScalingExpert {
  using Scalar = float;
  float factor = 1;

  moe::Index d_model() const { return 16; }

  void forward(moe::MatrixView<const float> x, moe::MatrixView<float> y) const {
    y.map() = factor * x.map();
  }
};

static_assert(moe::Expert<ScalingExpert>);

int main() {
  std::mt19937_64 rng(1);
  auto router = moe::TopKRouter<float>::random({.d_model = 16, .num_experts = 3, .top_k = 2}, rng);
  std::vector<ScalingExpert> experts{{.factor = 1}, {.factor = 2}, {.factor = 4}};
  moe::SparseMoe layer{std::move(router), moe::CustomExperts(std::move(experts))};

  const moe::Matrix<float> x = moe::Matrix<float>::Random(8, 16);  // (T, D)
  moe::Matrix<float> y(x.rows(), x.cols());                        // (T, D)
  const auto& routing = layer.forward(x, y);

  // y[t] = sum over k of weight * factor * x[t]; kernels may fuse a product and a sum.
  float worst = 0;
  for (moe::Index t = 0; t < x.rows(); ++t) {
    for (moe::Index d = 0; d < x.cols(); ++d) {
      float expected = 0;
      for (moe::Index k = 0; k < routing.top_k(); ++k) {
        const ScalingExpert& expert = layer.experts().expert(routing.experts(t, k));
        expected += routing.weights(t, k) * (expert.factor * x(t, d));
      }
      worst = std::max(worst, std::abs(y(t, d) - expected));
    }
  }
  std::printf("%s the closed form to rounding\n", worst < 1e-5F ? "agrees with" : "differs from");
}
