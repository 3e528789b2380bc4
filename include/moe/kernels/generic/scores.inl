// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Loops over the experts of one token.
//
// Uses: Scalar, Vec, `exponential`, `error_function`, `lowest`, `second_lowest`,
// `infinity`, `any_above`.

/// Applies `function` to n values; the rest goes through the same instructions, in a vector of its
/// own that is filled up with `filling`.
template <class Function>
MOE_ALWAYS_INLINE void map_values(const Scalar* value, std::ptrdiff_t n, Scalar filling,
                                  Scalar* out, Function function) noexcept {
  std::ptrdiff_t i = 0;
  for (; i + Vec::lanes <= n; i += Vec::lanes) function(Vec::load(value + i)).store(out + i);
  if (i == n) return;
  Scalar part[Vec::lanes];
  for (std::ptrdiff_t j = 0; j < Vec::lanes; ++j) part[j] = i + j < n ? value[i + j] : filling;
  function(Vec::load(part)).store(part);
  for (std::ptrdiff_t j = 0; i + j < n; ++j) out[i + j] = part[j];
}

inline Scalar exponentials(const Scalar* logit, std::ptrdiff_t n, Scalar largest,
                           Scalar* score) noexcept {
  const Vec top = Vec::broadcast(largest);
  Vec sums = Vec::zero();
  map_values(logit, n, -infinity, score, [&](Vec z) {
    // NaN is the first operand, so the second wins.
    const Vec e = maximum(exponential(subtract(z, top)), Vec::zero());
    sums = add(sums, e);
    return e;
  });
  Scalar lane[Vec::lanes];
  sums.store(lane);
  for (std::ptrdiff_t width = Vec::lanes / 2; width > 0; width /= 2)
    for (std::ptrdiff_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

inline Scalar largest(const Scalar* value, std::ptrdiff_t n) noexcept {
  Vec best = Vec::broadcast(-infinity);
  std::ptrdiff_t i = 0;
  for (; i + Vec::lanes <= n; i += Vec::lanes) best = maximum(Vec::load(value + i), best);
  Scalar lane[Vec::lanes];
  best.store(lane);
  Scalar result = -infinity;
  for (const Scalar of_lane : lane) result = of_lane > result ? of_lane : result;
  for (; i < n; ++i) result = value[i] > result ? value[i] : result;
  return result;
}

inline void sigmoids(const Scalar* logit, std::ptrdiff_t n, Scalar* score) noexcept {
  map_values(logit, n, Scalar(0), score, [](Vec z) {
    const Vec e = exponential(subtract(Vec::zero(), z));
    return maximum(divide(Vec::broadcast(1), add(Vec::broadcast(1), e)), Vec::zero());
  });
}

inline void divide_all(Scalar* score, std::ptrdiff_t n, Scalar divisor) noexcept {
  const Vec d = Vec::broadcast(divisor);
  map_values(score, n, Scalar(0), score, [&](Vec s) { return divide(s, d); });
}

inline void selection_keys(const Scalar* logit, const Scalar* score, const Scalar* bias,
                           std::ptrdiff_t n, Scalar* key) noexcept {
  const auto keys = [](Vec z, Vec s) {
    // NaN fails both compares, -infinity the second and infinity the first.
    const Vec least = Vec::broadcast(lowest);
    const Vec k = maximum(s, Vec::broadcast(second_lowest));
    const Vec finite = select_less(z, Vec::broadcast(infinity), k, least);
    return select_less(least, z, k, finite);
  };
  std::ptrdiff_t i = 0;
  for (; i + Vec::lanes <= n; i += Vec::lanes) {
    const Vec s = Vec::load(score + i);
    keys(Vec::load(logit + i), bias == nullptr ? s : add(s, Vec::load(bias + i))).store(key + i);
  }
  if (i == n) return;
  Scalar z[Vec::lanes] = {};
  Scalar s[Vec::lanes] = {};
  for (std::ptrdiff_t j = 0; i + j < n; ++j) {
    z[j] = logit[i + j];
    s[j] = bias == nullptr ? score[i + j] : score[i + j] + bias[i + j];
  }
  keys(Vec::load(z), Vec::load(s)).store(s);
  for (std::ptrdiff_t j = 0; i + j < n; ++j) key[i + j] = s[j];
}

template <MapKind kind>
void map(const Scalar* x, std::ptrdiff_t n, Scalar* y) noexcept {
  map_values(x, n, Scalar(0), y, [](Vec v) {
    if constexpr (kind == MapKind::exponential) {
      return exponential(v);
    } else {
      return error_function(v);
    }
  });
}

inline std::ptrdiff_t find_above(const Scalar* key, std::ptrdiff_t begin, std::ptrdiff_t n,
                                 Scalar bound) noexcept {
  const Vec limit = Vec::broadcast(bound);
  std::ptrdiff_t i = begin;
  for (; i + Vec::lanes <= n && !any_above(Vec::load(key + i), limit); i += Vec::lanes) {
  }
  for (; i < n && !(key[i] > bound); ++i) {
  }
  return i;
}

inline constexpr RowKernels<Scalar> rows{
    .finish = &finish<false>,
    .finish_past_caches = &finish<true>,
    .weighted_sum = &weighted_sum,
    .pack = &pack,
    .exponentials = &exponentials,
    .largest = &largest,
    .divide_all = &divide_all,
    .selection_keys = &selection_keys,
    .sigmoids = &sigmoids,
    .find_above = &find_above,
};
