// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The same bodies with one lane, for the baseline of the program: they define what every level
// means, to rounding. Products and sums are rounded apart here, with or without a fused
// multiply-add in the baseline. Double precision has no other level.
#pragma once

#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "moe/core/config.hpp"
#include "moe/core/numeric.hpp"
#include "moe/kernels/kernel_table.hpp"
#include "moe/kernels/target.hpp"

namespace moe::inline MOE_ABI::kernels::scalar {

/// A vector of one lane.
template <class ScalarT>
struct Lane {
  static constexpr std::ptrdiff_t lanes = 1;
  ScalarT value;

  static MOE_ALWAYS_INLINE Lane zero() noexcept { return {0}; }
  static MOE_ALWAYS_INLINE Lane broadcast(ScalarT x) noexcept { return {x}; }
  template <class Storage>
  static MOE_ALWAYS_INLINE Lane load(const Storage* p) noexcept {
    return {static_cast<ScalarT>(
        moe::detail::load_as<std::conditional_t<sizeof(Storage) == 2, float, ScalarT>>(*p))};
  }
  MOE_ALWAYS_INLINE void store(ScalarT* p) const noexcept { *p = value; }
  MOE_ALWAYS_INLINE void stream(ScalarT* p) const noexcept { *p = value; }
  static MOE_ALWAYS_INLINE void end_stream() noexcept {}
};

template <class S>
MOE_ALWAYS_INLINE Lane<S> add(Lane<S> a, Lane<S> b) noexcept {
  return {a.value + b.value};
}
template <class S>
MOE_ALWAYS_INLINE Lane<S> subtract(Lane<S> a, Lane<S> b) noexcept {
  return {a.value - b.value};
}
template <class S>
MOE_ALWAYS_INLINE Lane<S> divide(Lane<S> a, Lane<S> b) noexcept {
  return {a.value / b.value};
}
/// Kept apart from an add that follows, which the compiler may otherwise fuse with it.
template <class S>
MOE_ALWAYS_INLINE Lane<S> multiply(Lane<S> a, Lane<S> b) noexcept {
  S product = a.value * b.value;
#if MOE_ARCH_X86_64
  __asm__("" : "+x"(product));
#elif MOE_ARCH_AARCH64
  __asm__("" : "+w"(product));
#else
  volatile S kept = product;
  product = kept;
#endif
  return {product};
}
template <class S>
MOE_ALWAYS_INLINE Lane<S> multiply_add(Lane<S> a, Lane<S> b, Lane<S> c) noexcept {
  return add(multiply(a, b), c);
}
/// a > b ? a : b, so that b wins where one is NaN.
template <class S>
MOE_ALWAYS_INLINE Lane<S> maximum(Lane<S> a, Lane<S> b) noexcept {
  return a.value > b.value ? a : b;
}
template <class S>
MOE_ALWAYS_INLINE Lane<S> minimum(Lane<S> a, Lane<S> b) noexcept {
  return a.value < b.value ? a : b;
}
template <class S>
MOE_ALWAYS_INLINE Lane<S> absolute(Lane<S> a) noexcept {
  return {std::fabs(a.value)};
}
/// a < b ? x : y.
template <class S>
MOE_ALWAYS_INLINE Lane<S> select_less(Lane<S> a, Lane<S> b, Lane<S> x, Lane<S> y) noexcept {
  return a.value < b.value ? x : y;
}
template <class S>
MOE_ALWAYS_INLINE bool any_above(Lane<S> a, Lane<S> b) noexcept {
  return a.value > b.value;
}
/// 2^n, where n + 1.5 * 2^23 is given.
MOE_ALWAYS_INLINE Lane<float> power_of_two(Lane<float> biased_n) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(biased_n.value) << 23;
  return {std::bit_cast<float>(bits + (127U << 23))};
}
/// Turns rows into columns.
template <class Scalar>
MOE_ALWAYS_INLINE void transpose(Lane<Scalar> (&/*m*/)[1]) noexcept {}

inline constexpr int most_rows = 3;
inline constexpr int side_sums = 0;
constexpr std::ptrdiff_t pass_width(int /*rows*/) noexcept {
  return 4;
}
constexpr int memory_factors(int /*rows*/, int /*vectors*/) noexcept {
  return 0;
}

/// One lane has no pairs.
template <class Storage>
inline constexpr bool widens_in_pairs = false;

namespace of_float {

using Scalar = float;
using Vec = Lane<float>;
inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr float lowest = std::numeric_limits<float>::lowest();
inline constexpr float second_lowest = -0x1.fffffcp127F;

#include "moe/kernels/generic/accumulate.inl"
#include "moe/kernels/generic/columns.inl"
#include "moe/kernels/generic/exponential.inl"
#include "moe/kernels/generic/rows.inl"
#include "moe/kernels/generic/scores.inl"
#include "moe/kernels/generic/slopes.inl"
#include "moe/kernels/generic/tile.inl"

}  // namespace of_float

namespace of_double {

using Scalar = double;
using Vec = Lane<double>;
inline constexpr double infinity = std::numeric_limits<double>::infinity();
inline constexpr double lowest = std::numeric_limits<double>::lowest();
inline constexpr double second_lowest = -0x1.ffffffffffffep1023;

MOE_ALWAYS_INLINE Vec exponential(Vec x) noexcept {
  return {std::exp(x.value)};
}
MOE_ALWAYS_INLINE Vec error_function(Vec x) noexcept {
  return {std::erf(x.value)};
}

#include "moe/kernels/generic/accumulate.inl"
#include "moe/kernels/generic/columns.inl"
#include "moe/kernels/generic/rows.inl"
#include "moe/kernels/generic/scores.inl"
#include "moe/kernels/generic/slopes.inl"
#include "moe/kernels/generic/tile.inl"

}  // namespace of_double

}  // namespace moe::inline MOE_ABI::kernels::scalar
