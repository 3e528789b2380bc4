// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Prints a number for the bits of some layers' outputs at each level that this machine has, so that
// builds with different flags can be compared.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <utility>

#include <moe/moe.hpp>

namespace {

template <class Experts>
void print(const char* name, moe::Isa isa) {
  std::mt19937_64 rng(1);
  auto router = moe::TopKRouter<float>::random({.d_model = 40, .num_experts = 8, .top_k = 2}, rng);
  auto experts = Experts::random({.num_experts = 8, .d_model = 40, .d_ff = 72}, rng);
  auto shared = Experts::random({.num_experts = 1, .d_model = 40, .d_ff = 24}, rng);
  moe::Matrix<float> gate(1, 40);
  moe::detail::fill_uniform(gate.data(), gate.size(), 40, 5);
  moe::Matrix<float> x(60, 40);
  moe::detail::fill_uniform(x.data(), x.size(), 3, 4);
  moe::SparseMoe layer(std::move(router), std::move(experts),
                       moe::SharedExperts(std::move(shared), std::move(gate)));
  moe::Matrix<float> y(60, 40);
  layer.forward(x, y);
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (moe::Index i = 0; i < y.size(); ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, y.data() + i, sizeof bits);
    hash = (hash ^ bits) * 0x100000001b3U;
  }
  std::printf("%s %s %016llx\n", std::string(moe::isa_name(isa)).c_str(), name,
              static_cast<unsigned long long>(hash));
}

}  // namespace

int main() {
  for (const moe::Isa isa : moe::available_isas()) {
    const moe::ScopedIsa scope(isa);
    print<moe::SwiGluExperts<float>>("swiglu", isa);
    print<moe::GeluExperts<float>>("gelu", isa);
    print<moe::GeluTanhExperts<float>>("gelu_tanh", isa);
    print<moe::ReluExperts<float, moe::bfloat16>>("relu bf16", isa);
  }
}
