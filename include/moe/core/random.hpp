// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Seeded random weights. A value depends on the seed and its position only, so a matrix is the same
// for any number of threads, compiler and standard library.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>

#include "moe/core/config.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// What std::uniform_random_bit_generator asks for, without <random>, which takes long to compile.
template <class G>
concept BitGenerator = requires(G& generator) {
  { generator() } -> std::unsigned_integral;
  { G::min() } -> std::same_as<decltype(generator())>;
  { G::max() } -> std::same_as<decltype(generator())>;
};

namespace detail {

/// The finaliser of splitmix64: a bijection of 64 bits that passes statistical tests on a counter.
/// Source  Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators".
constexpr std::uint64_t mix_bits(std::uint64_t z) noexcept {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

/// The `position`-th number of the stream `seed`, uniform in [0, 1) in steps of 2^-53.
constexpr double uniform(std::uint64_t seed, std::uint64_t position) noexcept {
  const std::uint64_t bits = mix_bits(mix_bits(seed) + (position + 1) * 0x9e3779b97f4a7c15U);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

/// A seed from four values of any generator. Not by a standard distribution, whose algorithm
/// differs between libraries.
template <BitGenerator Generator>
std::uint64_t draw_seed(Generator& generator) {
  std::uint64_t seed = 0;
  for (int i = 0; i < 4; ++i) seed = mix_bits(seed ^ static_cast<std::uint64_t>(generator()));
  return seed;
}

/// Fills with uniform values of variance 1 / fan_in, which keeps the scale of a unit-variance
/// input.
template <class Scalar>
void fill_uniform(Scalar* values, Index count, Index fan_in, std::uint64_t seed) {
  const double bound = std::sqrt(3.0 / static_cast<double>(fan_in > 0 ? fan_in : 1));
  for (Index i = 0; i < count; ++i)
    values[i] = static_cast<Scalar>(bound * (2 * uniform(seed, static_cast<std::uint64_t>(i)) - 1));
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
