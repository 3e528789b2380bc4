// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// From the sums of the up step to hidden values.
#pragma once

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/panels.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/hidden_dropout.hpp"
#include "moe/experts/staged_bank.hpp"
#include "moe/kernels/dispatch.hpp"

namespace moe::inline MOE_ABI::detail {

/// Hidden values that one panel of the up step gives.
template <class ActivationT, class Scalar>
inline constexpr Index hidden_width_of =
    GatedActivation<ActivationT, Scalar> ? kernels::gated_width : kernels::panel_width;

/// Shapes  sums (count, 32), bias (32) or null, hidden (hidden values of a panel, count); with a
///         stride above 0 (count, hidden values) instead, rows `stride` values apart.
template <class Scalar, class ActivationT>
void activate(const ActivationT& activation, const Scalar* sums, const Scalar* bias, Index count,
              Scalar* hidden, Index stride = 0) {
  constexpr bool is_gated = GatedActivation<ActivationT, Scalar>;
  if constexpr (KernelOf<ActivationT>::exists) {
    kernels::activation_kernel<Scalar, KernelOf<ActivationT>::kind, is_gated>()(
        kernel_rule<Scalar>(activation), sums, bias, count, hidden, stride);
  } else {
    constexpr Index width = hidden_width_of<ActivationT, Scalar>;
    for (Index r = 0; r < count; ++r) {
      const auto value = [&](Index o) {
        const Scalar sum = sums[r * kernels::panel_width + o];
        return bias == nullptr ? sum : sum + bias[o];
      };
      for (Index i = 0; i < width; ++i) {
        Scalar& to = hidden[stride > 0 ? r * stride + i : i * count + r];
        if constexpr (is_gated) {
          to = activation(value(i), value(width + i));
        } else {
          to = activation(value(i));
        }
      }
    }
  }
}

/// Drops hidden values in training.
///
/// Shapes  hidden (width, count), of rows first .. first + count - 1 of the slice's expert.
template <class Scalar>
void drop_hidden(const StageSlice<Scalar>& slice, Index panel, Index first, Index count,
                 Index width, Index d_ff, Scalar* hidden) {
  Scalar factor[kernels::panel_width];
  for (Index r = 0; r < count; ++r) {
    dropout_factors(slice.dropout, slice.choices[first + r], slice.top_k, d_ff, panel * width,
                    width, factor);
    for (Index i = 0; i < width; ++i) hidden[i * count + r] *= factor[i];
  }
}

}  // namespace moe::inline MOE_ABI::detail
