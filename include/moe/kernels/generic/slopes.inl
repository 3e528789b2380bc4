// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The reverse of the activations.
//
// Uses: Scalar, Vec, `exponential`, `error_function`, `lowest`, and what rows.inl defines.

/// An activation's value and its slope. A NaN gives NaN, or the slope of -infinity.
struct ValueAndSlope {
  Vec value;
  Vec slope;
};

/// z q and its slope for q = 1 / (1 + exp(-u)), where u grows by `u_slope` with z.
MOE_ALWAYS_INLINE ValueAndSlope gate_by_sigmoid(Vec z, Vec minus_u, Vec u_slope) noexcept {
  const Vec q = divide(Vec::broadcast(1), add(Vec::broadcast(1), exponential(minus_u)));
  const Vec value = multiply(z, q);
  const Vec rest = multiply(subtract(Vec::broadcast(1), q), u_slope);
  return {value, multiply_add(value, rest, q)};
}

template <ActivationKind kind>
MOE_ALWAYS_INLINE ValueAndSlope activate_with_slope(Vec z) noexcept {
  if constexpr (kind == ActivationKind::relu) {
    return {activate<kind>(z), select_less(Vec::zero(), z, Vec::broadcast(1), Vec::zero())};
  } else if constexpr (kind == ActivationKind::silu) {
    z = maximum(Vec::broadcast(lowest), z);
    return gate_by_sigmoid(z, subtract(Vec::zero(), z), Vec::broadcast(1));
  } else if constexpr (kind == ActivationKind::gelu) {
    // Phi(z) + z phi(z)
    z = maximum(Vec::broadcast(lowest), z);
    const Vec e = error_function(multiply(z, Vec::broadcast(Scalar(0.70710678118654752440))));
    const Vec share = multiply(Vec::broadcast(Scalar(0.5)), add(Vec::broadcast(1), e));
    const Vec density =
        multiply(exponential(multiply(multiply(z, Vec::broadcast(Scalar(-0.5))), z)),
                 Vec::broadcast(Scalar(0.39894228040143267794)));
    return {multiply(z, share), multiply_add(z, density, share)};
  } else {
    // u = 2 sqrt(2 / pi) (z + 0.044715 z^3), which beyond 20 leaves 1 or 0 of z.
    constexpr auto factor = Scalar(2 * 0.79788456080286535588);
    z = maximum(Vec::broadcast(lowest), z);
    const Vec near = maximum(Vec::broadcast(-20), minimum(Vec::broadcast(20), z));
    const Vec square = multiply(near, near);
    const Vec one = Vec::broadcast(1);
    const Vec cubic = multiply_add(square, Vec::broadcast(Scalar(0.044715)), one);
    const Vec u_slope = multiply(Vec::broadcast(factor),
                                 multiply_add(square, Vec::broadcast(Scalar(3 * 0.044715)), one));
    return gate_by_sigmoid(z, multiply(multiply(near, Vec::broadcast(-factor)), cubic), u_slope);
  }
}

/// What a tile's hidden values were, and the gradient with respect to the sums that they came from.
///
/// Shapes  sums, with bias, d_sums (count, 32); hidden, d_hidden (count, 32), or (count, 16) with a
///         gated activation, rows 32 apart.
template <ActivationKind kind, bool gated>
void activation_gradient(const ActivationRule<Scalar>& rule, const Scalar* sums,
                         const Scalar* d_hidden, std::ptrdiff_t count, Scalar* hidden,
                         Scalar* d_sums) noexcept {
  static_assert(gated || kind != ActivationKind::clamped);
  constexpr std::ptrdiff_t width = gated ? gated_width : panel_width;
  for (std::ptrdiff_t r = 0; r < count; ++r) {
    for (std::ptrdiff_t i = 0; i < width; i += Vec::lanes) {
      const std::ptrdiff_t at = r * panel_width + i;
      const Vec z = Vec::load(sums + at);
      const Vec d = Vec::load(d_hidden + at);
      if constexpr (!gated) {
        const ValueAndSlope a = activate_with_slope<kind>(z);
        a.value.store(hidden + at);
        multiply(d, a.slope).store(d_sums + at);
      } else {
        Vec up = Vec::load(sums + at + gated_width);
        Vec d_gate;
        Vec d_up;
        ValueAndSlope a;
        if constexpr (kind == ActivationKind::clamped) {
          const Vec limit = Vec::broadcast(rule.limit);
          const Vec least = subtract(Vec::zero(), limit);
          const Vec gate_least = rule.clamps_gate_below ? least : Vec::broadcast(lowest);
          const Vec g = maximum(gate_least, minimum(limit, z));
          const Vec u = maximum(least, minimum(limit, up));
          a = gate_by_sigmoid(g, multiply(Vec::broadcast(-rule.alpha), g),
                              Vec::broadcast(rule.alpha));
          // Beyond a limit nothing moves.
          a.slope = select_less(limit, z, Vec::zero(), a.slope);
          a.slope = select_less(z, gate_least, Vec::zero(), a.slope);
          d_up = multiply(d, a.value);
          d_up = select_less(limit, up, Vec::zero(), d_up);
          d_up = select_less(up, least, Vec::zero(), d_up);
          up = add(u, Vec::broadcast(rule.offset));
        } else {
          a = activate_with_slope<kind>(z);
          d_up = multiply(d, a.value);
        }
        d_gate = multiply(multiply(d, up), a.slope);
        multiply(a.value, up).store(hidden + at);
        d_gate.store(d_sums + at);
        d_up.store(d_sums + at + gated_width);
      }
    }
  }
}

inline void transpose_block(const Scalar* from, Scalar* to, std::ptrdiff_t stride) noexcept {
  for (std::ptrdiff_t i = 0; i < panel_width; i += Vec::lanes) {
    for (std::ptrdiff_t j = 0; j < panel_width; j += Vec::lanes) {
      Vec block[Vec::lanes];
      MOE_UNROLL
      for (std::ptrdiff_t r = 0; r < Vec::lanes; ++r)
        block[r] = Vec::load(from + (i + r) * panel_width + j);
      transpose(block);
      MOE_UNROLL
      for (std::ptrdiff_t r = 0; r < Vec::lanes; ++r) block[r].store(to + (j + r) * stride + i);
    }
  }
}
