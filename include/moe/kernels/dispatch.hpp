// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The kernels of the active level. Where a program has them compiled once, by moe/instances.cpp,
// no other file reads their bodies and the intrinsics under them.
#pragma once

#include "moe/core/config.hpp"
#include "moe/kernels/kernel_table.hpp"

namespace moe::inline MOE_ABI::kernels {

/// The tile products of the active level, for weights stored as `Storage`.
template <class Scalar, class Storage>
const TileKernels<Scalar, Storage>& tile_kernels();

/// The products of columns of the active level.
template <class Scalar>
const ColumnKernels<Scalar>& column_kernels();

/// Loops over rows and over experts of the active level.
template <class Scalar>
const RowKernels<Scalar>& row_kernels();

/// An activation of the active level.
template <class Scalar, ActivationKind kind, bool gated>
ActivationKernel<Scalar> activation_kernel();

/// Its reverse.
template <class Scalar, ActivationKind kind, bool gated>
ActivationGradientKernel<Scalar> activation_gradient_kernel();

/// The transposition of the active level.
template <class Scalar>
TransposeKernel<Scalar> transpose_kernel();

/// A function of the active level.
template <class Scalar, MapKind kind>
MapKernel<Scalar> map_kernel();

}  // namespace moe::inline MOE_ABI::kernels

#if !defined(MOE_EXTERN_INSTANCES)
#include "moe/kernels/levels.hpp"
#endif
