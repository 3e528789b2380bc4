// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What coded/dispatch.hpp declares, of the kernels of every level.
#pragma once

#include "moe/core/config.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/kernels/active_isa.hpp"
#include "moe/kernels/coded/avx2.hpp"
#include "moe/kernels/coded/avx512.hpp"
#include "moe/kernels/coded/neon.hpp"
#include "moe/kernels/coded/scalar.hpp"
#include "moe/kernels/coded/table.hpp"
#include "moe/kernels/isa.hpp"
#include "moe/kernels/target.hpp"

namespace moe::inline MOE_ABI::kernels {

template <WeightCode code, bool grouped>
const CodedKernels& coded_kernels_of() {
  switch (active_isa()) {
#if MOE_ARCH_X86_64
    case Isa::avx512_vnni:
      return avx512::vnni::coded<code, grouped>;
    case Isa::avx512:
      return avx512::pairs::coded<code, grouped>;
    case Isa::avx2:
      return avx2::coded<code, grouped>;
#elif MOE_ARCH_AARCH64
#if MOE_ARM_DOTPROD
    case Isa::neon_dotprod:
      return neon::dotprod::coded<code, grouped>;
#endif
    case Isa::neon:
      return neon::products::coded<code, grouped>;
#endif
    default:
      return scalar::of_float::coded<code, grouped>;
  }
}

template <class Format>
const CodedKernels& coded_kernels(Format format) {
  switch (format.code) {
    case WeightCode::int8:
      return format.group == 0 ? coded_kernels_of<WeightCode::int8, false>()
                               : coded_kernels_of<WeightCode::int8, true>();
    case WeightCode::int4:
      return coded_kernels_of<WeightCode::int4, true>();
    case WeightCode::int4_zeros:
      return coded_kernels_of<WeightCode::int4_zeros, true>();
    case WeightCode::nl4:
      return coded_kernels_of<WeightCode::nl4, true>();
    case WeightCode::mxfp4:
      return coded_kernels_of<WeightCode::mxfp4, true>();
    case WeightCode::fp8_e4m3:
      return coded_kernels_of<WeightCode::fp8_e4m3, true>();
    case WeightCode::fp8_e5m2:
      return coded_kernels_of<WeightCode::fp8_e5m2, true>();
    case WeightCode::bfloat16:
      return coded_kernels_of<WeightCode::bfloat16, false>();
    case WeightCode::half:
      break;
  }
  return coded_kernels_of<WeightCode::half, false>();
}

}  // namespace moe::inline MOE_ABI::kernels
