// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Activation functions as function objects. Plain ones take the hidden value, gated ones the gate
// and the up value.
#pragma once

#include <cmath>
#include <concepts>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/kernels/kernel_table.hpp"

namespace moe::inline MOE_ABI {

/// max(z, 0). NaN stays NaN.
struct Relu {
  template <class Scalar>
  Scalar operator()(Scalar z) const noexcept {
    return z < 0 ? Scalar(0) : z;
  }
};

/// z / (1 + exp(-z)), also called swish; -infinity gives 0.
/// Source  Elfwing, Uchibe and Doya (2017), arXiv:1702.03118.
struct Silu {
  template <class Scalar>
  Scalar operator()(Scalar z) const noexcept {
    // Where exp(-z) overflows, z / infinity is the limit, -0; for an infinite z it would be NaN.
    return std::isinf(z) && z < 0 ? Scalar(0) : z / (1 + std::exp(-z));
  }
};

/// z Phi(z), with the error function; -infinity gives 0.
/// Source  Hendrycks and Gimpel (2016), arXiv:1606.08415.
struct Gelu {
  template <class Scalar>
  Scalar operator()(Scalar z) const noexcept {
    if (std::isinf(z) && z < 0) return 0;
    return z * std::erfc(-z * Scalar(0.70710678118654752440)) / 2;
  }
};

/// The tanh approximation of Gelu: z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))).
/// Source  Hendrycks and Gimpel (2016), arXiv:1606.08415; `gelu_new` of transformers.
struct GeluTanh {
  template <class Scalar>
  Scalar operator()(Scalar z) const noexcept {
    if (std::isinf(z) && z < 0) return 0;
    const Scalar inner = Scalar(0.79788456080286535588) * (z + Scalar(0.044715) * z * z * z);
    return z / 2 * (1 + std::tanh(inner));
  }
};

/// activation(gate) * up.
/// Source  Shazeer (2020), arXiv:2002.05202.
template <class PlainActivationT>
struct GatedBy {
  PlainActivationT activation;

  template <class Scalar>
  Scalar operator()(Scalar gate, Scalar up) const noexcept {
    return activation(gate) * up;
  }
};

/// g sigmoid(alpha g) (u + offset), with the gate g clamped to at most `limit` (and, where asked,
/// to at least -limit) and the up value u to -limit .. limit. NaN stays NaN.
///
/// Source  gpt-oss: alpha 1.702, limit 7, offset 1; OpenAI (2025), gpt-oss `torch/model.py`.
///         DeepSeek-V4: alpha 1, offset 0, limit of the configuration.
struct ClampedSwiGlu {
  double alpha = 1.702;
  double limit = 7;
  double offset = 1;
  bool clamps_gate_below = false;

  template <class Scalar>
  Scalar operator()(Scalar gate, Scalar up) const noexcept {
    const auto most = static_cast<Scalar>(limit);
    // In this order of compares, a NaN passes.
    Scalar g = gate > most ? most : gate;
    if (clamps_gate_below && g < -most) g = -most;
    const Scalar u = up > most ? most : up < -most ? -most : up;
    const Scalar z = static_cast<Scalar>(alpha) * g;
    // A gate of -infinity gives the limit, 0.
    const Scalar gated = std::isinf(g) && g < 0 ? Scalar(0) : g / (1 + std::exp(-z));
    return (u + static_cast<Scalar>(offset)) * gated;
  }
};

namespace detail {

/// The kernel of an activation. Others, such as a user's own, are called value by value.
template <class ActivationT>
struct KernelOf {
  static constexpr bool exists = false;
};
template <kernels::ActivationKind of>
struct KnownKernel {
  static constexpr bool exists = true;
  static constexpr kernels::ActivationKind kind = of;
};
template <>
struct KernelOf<Relu> : KnownKernel<kernels::ActivationKind::relu> {};
template <>
struct KernelOf<Silu> : KnownKernel<kernels::ActivationKind::silu> {};
template <>
struct KernelOf<Gelu> : KnownKernel<kernels::ActivationKind::gelu> {};
template <>
struct KernelOf<GeluTanh> : KnownKernel<kernels::ActivationKind::gelu_tanh> {};
template <>
struct KernelOf<ClampedSwiGlu> : KnownKernel<kernels::ActivationKind::clamped> {};
template <class PlainActivationT>
struct KernelOf<GatedBy<PlainActivationT>> : KernelOf<PlainActivationT> {};

template <class Scalar, class ActivationT>
kernels::ActivationRule<Scalar> kernel_rule(const ActivationT& activation) noexcept {
  if constexpr (std::same_as<ActivationT, ClampedSwiGlu>) {
    return {.alpha = static_cast<Scalar>(activation.alpha),
            .limit = static_cast<Scalar>(activation.limit),
            .offset = static_cast<Scalar>(activation.offset),
            .clamps_gate_below = activation.clamps_gate_below};
  } else {
    return {};
  }
}

}  // namespace detail

using SwiGlu = GatedBy<Silu>;
using GeGlu = GatedBy<Gelu>;
using GeGluTanh = GatedBy<GeluTanh>;
using ReGlu = GatedBy<Relu>;

static_assert(PlainActivation<Relu, float> && PlainActivation<Silu, double>);
static_assert(PlainActivation<Gelu, float> && PlainActivation<GeluTanh, double>);
static_assert(GatedActivation<SwiGlu, float> && GatedActivation<GeGlu, double>);
static_assert(GatedActivation<ClampedSwiGlu, float> && GatedActivation<ClampedSwiGlu, double>);
static_assert(!PlainActivation<SwiGlu, float> && !GatedActivation<Silu, float>);

}  // namespace moe::inline MOE_ABI
