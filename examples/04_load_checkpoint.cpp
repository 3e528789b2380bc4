// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// One MoE layer of a published checkpoint, by its family's own tensor names.
#include <cstdio>
#include <exception>

#include <moe/io/checkpoint.hpp>
#include <moe/moe.hpp>

int main(int argc, char** argv) {
  try {
    const auto checkpoint =
        moe::io::Checkpoint::open(argc > 1 ? argv[1] : MOE_EXAMPLE_DATA "/jargon-moe.safetensors");
    auto layer = checkpoint.layer<float>(2);  // layers count from 0

    const auto& router = layer.router();
    std::printf("layer 3 of %d: %td experts, %td of them for each token\n",
                checkpoint.config().at("num_hidden_layers").get<int>(), router.num_experts(),
                router.top_k());

    const moe::Matrix<float> x = moe::Matrix<float>::Random(4, layer.d_model());  // (T, D)
    moe::Matrix<float> y(x.rows(), x.cols());                                     // (T, D)
    const auto& routing = layer.forward(x, y);
    for (moe::Index t = 0; t < x.rows(); ++t) {
      std::printf("token %td:", t);
      for (moe::Index k = 0; k < routing.top_k(); ++k)
        std::printf(" expert %d with weight %.3f", routing.experts(t, k),
                    static_cast<double>(routing.weights(t, k)));
      std::printf("\n");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
