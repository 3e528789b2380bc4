// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What happens to finished sums: bias, activation, weight; gathering rows and adding them up.
//
// Uses: Scalar, Vec, `exponential`, `error_function`, `lowest`, `transpose`.

MOE_ALWAYS_INLINE Vec silu(Vec z) noexcept {
  // A number in place of -infinity, whose quotient would be NaN: the limit is 0.
  z = maximum(Vec::broadcast(lowest), z);
  return divide(z, add(Vec::broadcast(1), exponential(subtract(Vec::zero(), z))));
}

MOE_ALWAYS_INLINE Vec gelu(Vec z) noexcept {
  z = maximum(Vec::broadcast(lowest), z);
  const Vec e = error_function(multiply(z, Vec::broadcast(Scalar(0.70710678118654752440))));
  return multiply(multiply(Vec::broadcast(Scalar(0.5)), z), add(Vec::broadcast(1), e));
}

MOE_ALWAYS_INLINE Vec gelu_tanh(Vec z) noexcept {
  // z / 2 (1 + tanh u) = z / (1 + exp(-2 u)).
  z = maximum(Vec::broadcast(lowest), z);
  const Vec cubic =
      multiply_add(multiply(z, z), Vec::broadcast(Scalar(0.044715)), Vec::broadcast(1));
  const Vec u = multiply(multiply(z, Vec::broadcast(Scalar(-2 * 0.79788456080286535588))), cubic);
  return divide(z, add(Vec::broadcast(1), exponential(u)));
}

template <ActivationKind kind>
MOE_ALWAYS_INLINE Vec activate(Vec z) noexcept {
  if constexpr (kind == ActivationKind::relu) {
    return select_less(z, Vec::zero(), Vec::zero(), z);
  } else if constexpr (kind == ActivationKind::silu) {
    return silu(z);
  } else if constexpr (kind == ActivationKind::gelu) {
    return gelu(z);
  } else {
    return gelu_tanh(z);
  }
}

MOE_ALWAYS_INLINE Vec activate_clamped(const ActivationRule<Scalar>& rule, Vec gate,
                                       Vec up) noexcept {
  const Vec limit = Vec::broadcast(rule.limit);
  const Vec least = subtract(Vec::zero(), limit);
  Vec g = minimum(limit, gate);
  g = maximum(rule.clamps_gate_below ? least : Vec::broadcast(lowest), g);
  const Vec u = maximum(least, minimum(limit, up));
  const Vec e = exponential(multiply(Vec::broadcast(-rule.alpha), g));
  return multiply(add(u, Vec::broadcast(rule.offset)), divide(g, add(Vec::broadcast(1), e)));
}

MOE_ALWAYS_INLINE Vec biased(const Scalar* sums, const Scalar* bias) noexcept {
  const Vec sum = Vec::load(sums);
  return bias == nullptr ? sum : add(sum, Vec::load(bias));
}

/// Applies `function(sums, bias)`, which gives `lanes` hidden values, to a tile.
template <std::ptrdiff_t width, class Function>
MOE_ALWAYS_INLINE void for_hidden(const Scalar* sums, const Scalar* bias, std::ptrdiff_t rows,
                                  Scalar* hidden, std::ptrdiff_t stride,
                                  Function function) noexcept {
  // One row needs no transposing: with it, that takes eight times as long.
  if (rows == 1 || stride > 0) {
    for (std::ptrdiff_t r = 0; r < rows; ++r)
      for (std::ptrdiff_t i = 0; i < width; i += Vec::lanes)
        function(sums + r * panel_width + i, bias == nullptr ? nullptr : bias + i)
            .store(hidden + r * stride + i);
    return;
  }
  for (std::ptrdiff_t i = 0; i < width; i += Vec::lanes) {
    // Lanes rows at a time, the last first: as in `pack`, a store may reach into the next column.
    for (std::ptrdiff_t first = (rows - 1) / Vec::lanes * Vec::lanes; first >= 0;
         first -= Vec::lanes) {
      const std::ptrdiff_t count = rows - first < Vec::lanes ? rows - first : Vec::lanes;
      Scalar values[Vec::lanes * Vec::lanes] = {};
      for (std::ptrdiff_t r = 0; r < count; ++r)
        function(sums + (first + r) * panel_width + i, bias == nullptr ? nullptr : bias + i)
            .store(values + r * Vec::lanes);
      Vec column[Vec::lanes];
      MOE_UNROLL
      for (std::ptrdiff_t j = 0; j < Vec::lanes; ++j)
        column[j] = Vec::load(values + j * Vec::lanes);
      transpose(column);
      MOE_UNROLL
      for (std::ptrdiff_t j = 0; j < Vec::lanes; ++j) {
        Scalar* const to = hidden + (i + j) * rows + first;
        if ((width - i - j) * rows - first >= Vec::lanes) {
          column[j].store(to);
        } else {
          column[j].store(values);
          for (std::ptrdiff_t r = 0; r < count; ++r) to[r] = values[r];
        }
      }
    }
  }
}

template <ActivationKind kind, bool gated>
void activation(const ActivationRule<Scalar>& rule, const Scalar* sums, const Scalar* bias,
                std::ptrdiff_t rows, Scalar* hidden, std::ptrdiff_t stride) noexcept {
  static_assert(gated || kind != ActivationKind::clamped);
  constexpr std::ptrdiff_t width = gated ? gated_width : panel_width;
  for_hidden<width>(sums, bias, rows, hidden, stride, [&](const Scalar* s, const Scalar* b) {
    const Vec z = biased(s, b);
    if constexpr (!gated) {
      return activate<kind>(z);
    } else {
      const Vec up = biased(s + gated_width, b == nullptr ? nullptr : b + gated_width);
      if constexpr (kind == ActivationKind::clamped) {
        return activate_clamped(rule, z, up);
      } else {
        return multiply(activate<kind>(z), up);
      }
    }
  });
}

template <bool streams>
void finish(const Scalar* sums, const Scalar* bias, const Scalar* weight, std::ptrdiff_t rows,
            std::ptrdiff_t columns, Scalar* out, std::ptrdiff_t stride) noexcept {
  for (std::ptrdiff_t r = 0; r < rows; ++r) {
    const Vec w = Vec::broadcast(weight == nullptr ? Scalar(1) : weight[r]);
    Scalar row[panel_width];
    Scalar* const to = columns == panel_width ? out + r * stride : row;
    for (std::ptrdiff_t i = 0; i < panel_width; i += Vec::lanes) {
      const Vec sum = biased(sums + r * panel_width + i, bias == nullptr ? nullptr : bias + i);
      const Vec result = weight == nullptr ? sum : multiply(w, sum);
      if (streams && columns == panel_width) {
        result.stream(to + i);
      } else {
        result.store(to + i);
      }
    }
    if (columns != panel_width)
      for (std::ptrdiff_t i = 0; i < columns; ++i) out[r * stride + i] = row[i];
  }
  if constexpr (streams) Vec::end_stream();
}

/// The sum of `count` rows of n values, each times its weight, where there are weights.
inline void weighted_sum(const Scalar* const* rows, const Scalar* weight, std::ptrdiff_t count,
                         std::ptrdiff_t n, Scalar* out) noexcept {
  const auto term = [&](std::ptrdiff_t i, Vec value, Vec sum) {
    return weight == nullptr ? add(sum, value)
                             : multiply_add(Vec::broadcast(weight[i]), value, sum);
  };
  std::ptrdiff_t d = 0;
  for (; d + Vec::lanes <= n; d += Vec::lanes) {
    Vec sum = Vec::zero();
    for (std::ptrdiff_t i = 0; i < count; ++i) sum = term(i, Vec::load(rows[i] + d), sum);
    sum.store(out + d);
  }
  if (d == n) return;
  // The rest goes through the same instructions, in a vector of its own.
  Vec sum = Vec::zero();
  Scalar part[Vec::lanes] = {};
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    for (std::ptrdiff_t j = 0; j < n - d; ++j) part[j] = rows[i][d + j];
    sum = term(i, Vec::load(part), sum);
  }
  sum.store(part);
  for (std::ptrdiff_t j = 0; j < n - d; ++j) out[d + j] = part[j];
}

inline void pack(const Scalar* const* rows, const Scalar* scale, std::ptrdiff_t count,
                 std::ptrdiff_t n, Scalar* packed) noexcept {
  std::ptrdiff_t k = 0;
  // As many columns as lanes at a time. Where rows fill no whole vector, its store reaches into
  // the column behind it, which is written later; the last columns are left for the loop below.
  for (; k + Vec::lanes <= n && (n - k - Vec::lanes) * count >= Vec::lanes; k += Vec::lanes) {
    for (std::ptrdiff_t first = (count - 1) / Vec::lanes * Vec::lanes; first >= 0;
         first -= Vec::lanes) {
      Vec column[Vec::lanes];
      MOE_UNROLL
      for (std::ptrdiff_t i = 0; i < Vec::lanes; ++i) {
        const std::ptrdiff_t r = first + i;
        if (r >= count) {
          column[i] = Vec::zero();
        } else {
          const Vec values = Vec::load(rows[r] + k);
          column[i] = scale == nullptr ? values : multiply(Vec::broadcast(scale[r]), values);
        }
      }
      transpose(column);
      MOE_UNROLL
      for (std::ptrdiff_t i = 0; i < Vec::lanes; ++i)
        column[i].store(packed + (k + i) * count + first);
    }
  }
  for (std::ptrdiff_t r = 0; r < count; ++r) {
    const Scalar factor = scale == nullptr ? Scalar(1) : scale[r];
    for (std::ptrdiff_t c = k; c < n; ++c) packed[c * count + r] = factor * rows[r][c];
  }
}
