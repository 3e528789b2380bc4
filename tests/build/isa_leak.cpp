// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A program with every kernel, for the test that disassembles it.
#include <random>

#include <moe/moe.hpp>

int main() {
  std::mt19937_64 rng(1);
  const auto run = [&](auto experts) {
    moe::SparseMoe layer(
        moe::TopKRouter<float>::random({.d_model = 8, .num_experts = 2, .top_k = 1}, rng),
        std::move(experts));
    moe::Matrix<float> x = moe::Matrix<float>::Ones(3, 8);
    moe::Matrix<float> y(3, 8);
    layer.forward(x, y);
    moe::Tape<float> tape;
    layer.forward(x, y, tape);
    auto gradients = layer.gradients();
    moe::Matrix<float> dx(3, 8);
    layer.backward(x, tape, y, dx, gradients);
    return y(0, 0) + dx(0, 0);
  };
  const moe::ExpertsConfig config{.num_experts = 2, .d_model = 8, .d_ff = 8};
  const float sum = run(moe::SwiGluExperts<float>::random(config, rng)) +
                    run(moe::GeluExperts<float, moe::bfloat16>::random(config, rng)) +
                    run(moe::ReluExperts<float, moe::half>::random(config, rng)) +
                    run(moe::GeluTanhExperts<float>::random(config, rng)) +
                    run(moe::GeGluExperts<float>::random(config, rng)) +
                    run(moe::FeedForwardExperts<float, moe::ClampedSwiGlu>::random(config, rng));
  float quantized = 0;
  for (const moe::WeightFormat format : moe::weight_formats) {
    for (const auto kind : {moe::ProductKind::integer, moe::ProductKind::widened}) {
      moe::QuantizedExperts<moe::SwiGlu> bank(config, moe::ExpertFormat{format, format});
      bank.set_product(kind);
      moe::SparseMoe layer(
          moe::TopKRouter<float>::random({.d_model = 8, .num_experts = 2, .top_k = 1}, rng),
          std::move(bank));
      moe::Matrix<float> x = moe::Matrix<float>::Ones(3, 8);
      moe::Matrix<float> y(3, 8);
      layer.forward(x, y);
      quantized += y(0, 0);
    }
  }
  // Other scores, groups and a capacity.
  moe::SparseMoe layer(
      moe::TopKRouter<float>::random(
          {.d_model = 8,
           .num_experts = 4,
           .top_k = 2,
           .rule = moe::presets::deepseek_v3({.groups = 2, .groups_kept = 1})},
          rng),
      moe::SwiGluExperts<float>::random({.num_experts = 4, .d_model = 8, .d_ff = 8}, rng), {},
      moe::Capacity{.factor = 1, .order = moe::DropOrder::batch_priority, .reroute = true});
  moe::Matrix<float> x = moe::Matrix<float>::Ones(3, 8);
  moe::Matrix<float> y(3, 8);
  layer.forward(x, y);
  moe::kernels::map_kernel<float, moe::kernels::MapKind::exponential>()(x.data(), 8, y.data());
  moe::kernels::map_kernel<float, moe::kernels::MapKind::error_function>()(x.data(), 8, y.data());
  return sum + quantized + y(0, 0) > 1e9F ? 1 : 0;
}
