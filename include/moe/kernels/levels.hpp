// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What dispatch.hpp declares, of the kernels of every level.
#pragma once

#include <type_traits>

#include "moe/core/config.hpp"
#include "moe/kernels/active_isa.hpp"
#include "moe/kernels/avx2.hpp"
#include "moe/kernels/avx512.hpp"
#include "moe/kernels/isa.hpp"
#include "moe/kernels/kernel_table.hpp"
#include "moe/kernels/neon.hpp"
#include "moe/kernels/scalar.hpp"
#include "moe/kernels/target.hpp"

namespace moe::inline MOE_ABI::kernels {

/// `name` of the active level's namespace.
#if MOE_ARCH_X86_64
#define MOE_OF_LEVEL(...)                                           \
  switch (active_isa()) {                                           \
    case Isa::avx512:                                               \
    case Isa::avx512_vnni: /* Which differs in integer products. */ \
      return avx512::__VA_ARGS__;                                   \
    case Isa::avx2:                                                 \
      return avx2::__VA_ARGS__;                                     \
    default:                                                        \
      return scalar::of_float::__VA_ARGS__;                         \
  }
#elif MOE_ARCH_AARCH64
#define MOE_OF_LEVEL(...) \
  return active_isa() == Isa::scalar ? scalar::of_float::__VA_ARGS__ : neon::__VA_ARGS__;
#else
#define MOE_OF_LEVEL(...) return scalar::of_float::__VA_ARGS__;
#endif

template <class Scalar, class Storage>
const TileKernels<Scalar, Storage>& tile_kernels() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return scalar::of_double::tiles<Storage>;
  } else {
    MOE_OF_LEVEL(tiles<Storage>)
  }
}

template <class Scalar>
const ColumnKernels<Scalar>& column_kernels() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return scalar::of_double::columns<ColumnKernels<double>>;
  } else {
    MOE_OF_LEVEL(columns<ColumnKernels<float>>)
  }
}

template <class Scalar>
const RowKernels<Scalar>& row_kernels() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return scalar::of_double::rows;
  } else {
    MOE_OF_LEVEL(rows)
  }
}

template <class Scalar, ActivationKind kind, bool gated>
ActivationKernel<Scalar> activation_kernel() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return &scalar::of_double::activation<kind, gated>;
  } else {
    MOE_OF_LEVEL(activation<kind, gated>)
  }
}

template <class Scalar, ActivationKind kind, bool gated>
ActivationGradientKernel<Scalar> activation_gradient_kernel() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return &scalar::of_double::activation_gradient<kind, gated>;
  } else {
    MOE_OF_LEVEL(activation_gradient<kind, gated>)
  }
}

template <class Scalar>
TransposeKernel<Scalar> transpose_kernel() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return &scalar::of_double::transpose_block;
  } else {
    MOE_OF_LEVEL(transpose_block)
  }
}

template <class Scalar, MapKind kind>
MapKernel<Scalar> map_kernel() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return &scalar::of_double::map<kind>;
  } else {
    MOE_OF_LEVEL(map<kind>)
  }
}

#undef MOE_OF_LEVEL

}  // namespace moe::inline MOE_ABI::kernels
