// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Which level's kernels run. Chosen once, at the first use: the highest that the machine has, or
// the one that the environment variable MOE_ISA names.
#pragma once

#include <atomic>
#include <cstdlib>
#include <type_traits>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/kernels/avx2.hpp"
#include "moe/kernels/avx512.hpp"
#include "moe/kernels/isa.hpp"
#include "moe/kernels/kernel_table.hpp"
#include "moe/kernels/neon.hpp"
#include "moe/kernels/scalar.hpp"

namespace moe::inline MOE_ABI {
namespace detail {

/// The level in use.
inline std::atomic<Isa>& isa_in_use() {
  static std::atomic<Isa> isa{[] {
    const char* const name = std::getenv("MOE_ISA");
    return name != nullptr && *name != 0 ? isa_of(name) : available_isas().back();
  }()};
  return isa;
}

}  // namespace detail

/// The level whose kernels calls use from now on.
///
/// Throws  std::invalid_argument at the first use if MOE_ISA names no level of this machine.
inline Isa active_isa() {
  return detail::isa_in_use().load(std::memory_order_relaxed);
}

/// Forces a level for as long as it lives, for tests and comparisons. Not for use while another
/// thread runs a layer.
///
/// Throws  std::invalid_argument if this machine cannot run the level.
class ScopedIsa {
 public:
  explicit ScopedIsa(Isa isa) : previous_(active_isa()) {
    detail::isa_in_use() = detail::isa_of(isa_name(isa));
  }
  ScopedIsa(const ScopedIsa&) = delete;
  ScopedIsa& operator=(const ScopedIsa&) = delete;
  ~ScopedIsa() { detail::isa_in_use() = previous_; }

 private:
  Isa previous_;
};

namespace kernels {

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

/// The tile products of the active level, for weights stored as `Storage`.
template <class Scalar, class Storage>
const TileKernels<Scalar, Storage>& tile_kernels() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return scalar::of_double::tiles<Storage>;
  } else {
    MOE_OF_LEVEL(tiles<Storage>)
  }
}

/// The products of columns of the active level.
template <class Scalar>
const ColumnKernels<Scalar>& column_kernels() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return scalar::of_double::columns<ColumnKernels<double>>;
  } else {
    MOE_OF_LEVEL(columns<ColumnKernels<float>>)
  }
}

/// Loops over rows and over experts of the active level.
template <class Scalar>
const RowKernels<Scalar>& row_kernels() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return scalar::of_double::rows;
  } else {
    MOE_OF_LEVEL(rows)
  }
}

/// An activation of the active level.
template <class Scalar, ActivationKind kind, bool gated>
ActivationKernel<Scalar> activation_kernel() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return &scalar::of_double::activation<kind, gated>;
  } else {
    MOE_OF_LEVEL(activation<kind, gated>)
  }
}

/// Its reverse.
template <class Scalar, ActivationKind kind, bool gated>
ActivationGradientKernel<Scalar> activation_gradient_kernel() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return &scalar::of_double::activation_gradient<kind, gated>;
  } else {
    MOE_OF_LEVEL(activation_gradient<kind, gated>)
  }
}

/// The transposition of the active level.
template <class Scalar>
TransposeKernel<Scalar> transpose_kernel() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return &scalar::of_double::transpose_block;
  } else {
    MOE_OF_LEVEL(transpose_block)
  }
}

/// A function of the active level.
template <class Scalar, MapKind kind>
MapKernel<Scalar> map_kernel() {
  if constexpr (std::is_same_v<Scalar, double>) {
    return &scalar::of_double::map<kind>;
  } else {
    MOE_OF_LEVEL(map<kind>)
  }
}

#undef MOE_OF_LEVEL

}  // namespace kernels
}  // namespace moe::inline MOE_ABI
