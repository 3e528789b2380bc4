// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The active level's kernels for a format of quantised weights.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/kernels/coded/table.hpp"

namespace moe::inline MOE_ABI::kernels {

/// A template, so that only programs with quantised weights compile all of these.
template <class Format = WeightFormat>
const CodedKernels& coded_kernels(Format format);

}  // namespace moe::inline MOE_ABI::kernels

#if !defined(MOE_EXTERN_INSTANCES)
#include "moe/kernels/coded/levels.hpp"
#endif
