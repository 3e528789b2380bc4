// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Quantised weights: products with activations in eight bits, and the weights as floats.
//
// Uses: Vec and its functions; IntVec, `lanes` sums of 32 bits; Operand, the codes of as many
// outputs at four inner values each; load_quads<code, v>(p), those of vector v of a panel;
// signed_codes, the same as signed numbers, with dot(sum, operand, activations),
// widen_quad<j>(operand) the numbers at inner value j of four; start_of(code), what products of
// codes that are not signed begin with; coded_rows(grouped), coded_pass(rows): rows and vectors of
// a tile.

using moe::detail::FormatTraits;
using moe::detail::scale_bytes;
using moe::detail::ScaleKind;
using moe::detail::traits_of;

/// Codes of four bits lie in the low halves of bytes for the first half of a panel's outputs.
constexpr std::ptrdiff_t quad_bytes(WeightCode code) noexcept {
  return code == WeightCode::int8 ? 4 * panel_width : 2 * panel_width;
}

inline constexpr std::ptrdiff_t coded_vectors = panel_width / Vec::lanes;

/// The scales of vector v of a group.
template <ScaleKind kind>
MOE_ALWAYS_INLINE Vec load_scales(const std::byte* record, std::ptrdiff_t v) noexcept {
  if constexpr (kind == ScaleKind::half) {
    return Vec::load(reinterpret_cast<const half*>(record) + v * Vec::lanes);
  } else if constexpr (kind == ScaleKind::single) {
    return Vec::load(reinterpret_cast<const float*>(record) + v * Vec::lanes);
  } else {
    const IntVec bytes = load_bytes(reinterpret_cast<const std::uint8_t*>(record) + v * Vec::lanes);
    return kind == ScaleKind::exponent ? power_of_byte(bytes) : to_float(bytes);
  }
}

/// Sums of one group of a tile, times the scales.
template <WeightCode code, bool grouped, int rows, int count>
MOE_ALWAYS_INLINE void coded_pass_of(const CodedRows& a, const std::byte* panel,
                                     std::ptrdiff_t groups, std::ptrdiff_t quads,
                                     std::ptrdiff_t first, float* sums, const char* next,
                                     std::ptrdiff_t step) noexcept {
  constexpr FormatTraits traits = traits_of(code, grouped);
  constexpr std::ptrdiff_t scale_size = panel_width * scale_bytes(traits.scale);
  constexpr std::ptrdiff_t zero_size = traits.has_zeros ? panel_width : 0;
  const auto* const outputs = reinterpret_cast<const float*>(panel);
  if constexpr (traits.has_output_scale) panel += panel_width * sizeof(float);
  const std::int8_t* x = a.codes;
  Vec total[rows][count];
  MOE_UNROLL
  for (int r = 0; r < rows; ++r) {
    MOE_UNROLL
    for (int v = 0; v < count; ++v) total[r][v] = Vec::zero();
  }
  for (std::ptrdiff_t g = 0; g < groups; ++g) {
    const std::ptrdiff_t at = g * a.stride;
    IntVec sum[rows][count];
    MOE_UNROLL
    for (int r = 0; r < rows; ++r) {
      MOE_UNROLL
      for (int v = 0; v < count; ++v) sum[r][v] = IntVec::broadcast(a.starts + at + r);
    }
    const std::byte* codes = panel + scale_size + zero_size;
    for (std::ptrdiff_t q = 0; q < quads; ++q) {
      if constexpr (rows <= few_coded_rows) {
        __builtin_prefetch(codes + coded_bytes_ahead);
        if constexpr (quad_bytes(code) > 64) __builtin_prefetch(codes + coded_bytes_ahead + 64);
      } else {
        __builtin_prefetch(next, 0, 2);
        next += step;
      }
      Operand weights[count];
      MOE_UNROLL
      for (int v = 0; v < count; ++v) weights[v] = load_quads<code>(codes, first + v);
      MOE_UNROLL
      for (int r = 0; r < rows; ++r) {
        MOE_UNROLL
        for (int v = 0; v < count; ++v)
          sum[r][v] = dot(sum[r][v], weights[v], x + std::ptrdiff_t{4} * r);
      }
      x += 4 * a.stride;
      codes += quad_bytes(code);
    }
    if constexpr (grouped) {
      Vec scale[count];
      MOE_UNROLL
      for (int v = 0; v < count; ++v) scale[v] = load_scales<traits.scale>(panel, first + v);
      MOE_UNROLL
      for (int r = 0; r < rows; ++r) {
        const Vec of_row = Vec::broadcast(a.scales[at + r]);
        MOE_UNROLL
        for (int v = 0; v < count; ++v)
          total[r][v] = multiply_add(multiply(to_float(sum[r][v]), of_row), scale[v], total[r][v]);
      }
      if constexpr (traits.has_zeros) {
        MOE_UNROLL
        for (int v = 0; v < count; ++v) {
          const IntVec zeros = load_bytes(reinterpret_cast<const std::uint8_t*>(panel) +
                                          scale_size + (first + v) * Vec::lanes);
          const Vec offset = multiply(scale[v], to_float(zeros));
          MOE_UNROLL
          for (int r = 0; r < rows; ++r)
            total[r][v] = multiply_add(Vec::broadcast(-a.sums[at + r]), offset, total[r][v]);
        }
      }
      panel = codes;
    } else {
      MOE_UNROLL
      for (int r = 0; r < rows; ++r) {
        MOE_UNROLL
        for (int v = 0; v < count; ++v)
          total[r][v] = multiply(to_float(sum[r][v]), Vec::broadcast(a.scales[r]));
      }
    }
  }
  MOE_UNROLL
  for (int r = 0; r < rows; ++r) {
    MOE_UNROLL
    for (int v = 0; v < count; ++v) {
      const std::ptrdiff_t column = (first + v) * Vec::lanes;
      if constexpr (traits.has_output_scale)
        total[r][v] = multiply(total[r][v], Vec::load(outputs + column));
      if constexpr (code == WeightCode::mxfp4)  // Its values are halves.
        total[r][v] = multiply(total[r][v], Vec::broadcast(0.5F));
      total[r][v].store(sums + r * panel_width + column);
    }
  }
}

template <WeightCode code, bool grouped, int rows>
void coded_product(const CodedRows& a, const std::byte* panel, std::ptrdiff_t groups,
                   std::ptrdiff_t quads, float* sums, const char* next,
                   std::ptrdiff_t step) noexcept {
  constexpr int count = coded_pass(rows);
  if constexpr (count == coded_vectors) {
    coded_pass_of<code, grouped, rows, count>(a, panel, groups, quads, 0, sums, next, step);
  } else {
    for (std::ptrdiff_t first = 0; first < coded_vectors; first += count)
      coded_pass_of<code, grouped, rows, count>(a, panel, groups, quads, first, sums, next, step);
  }
}

/// The value of vector v of a panel at one inner value, of codes that do not lie in quads. Those of
/// e4m3 are 256 times too small: with one more bit of exponent they are halves, subnormal ones,
/// too.
template <WeightCode code>
MOE_ALWAYS_INLINE Vec load_single(const std::byte* row, std::ptrdiff_t v) noexcept {
  const std::ptrdiff_t first = v * Vec::lanes;
  if constexpr (code == WeightCode::bfloat16) {
    return Vec::load(reinterpret_cast<const bfloat16*>(row) + first);
  } else if constexpr (code == WeightCode::half) {
    return Vec::load(reinterpret_cast<const half*>(row) + first);
  } else if constexpr (code == WeightCode::fp8_e4m3) {
    return load_e4m3_as_half(reinterpret_cast<const std::uint8_t*>(row) + first);
  } else {
    return load_e5m2_as_half(reinterpret_cast<const std::uint8_t*>(row) + first);
  }
}

/// How far ahead codes are asked for while others are widened: further than the page, where the
/// hardware's prefetcher stops while the product is busy.
inline constexpr std::ptrdiff_t decoded_bytes_ahead = 4096;
inline constexpr std::ptrdiff_t widened_bytes_ahead = 2048;

/// What the codes of a group are multiplied by, and their zero points, where there are any.
template <WeightCode code, bool grouped>
MOE_ALWAYS_INLINE void load_group(const std::byte* record, const float* outputs,
                                  Vec (&scale)[coded_vectors],
                                  Vec (&zero)[coded_vectors]) noexcept {
  constexpr FormatTraits traits = traits_of(code, grouped);
  constexpr std::ptrdiff_t scale_size = panel_width * scale_bytes(traits.scale);
  MOE_UNROLL_8
  for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) {
    scale[v] = Vec::broadcast(1);
    if constexpr (traits.scale != ScaleKind::none) scale[v] = load_scales<traits.scale>(record, v);
    if constexpr (traits.has_output_scale)
      scale[v] = multiply(scale[v], Vec::load(outputs + v * Vec::lanes));
    if constexpr (code == WeightCode::mxfp4)  // Its values are halves.
      scale[v] = multiply(scale[v], Vec::broadcast(0.5F));
    if constexpr (code == WeightCode::fp8_e4m3) scale[v] = multiply(scale[v], Vec::broadcast(256));
    zero[v] = Vec::zero();
    if constexpr (traits.has_zeros)
      zero[v] = to_float(
          load_bytes(reinterpret_cast<const std::uint8_t*>(record) + scale_size + v * Vec::lanes));
  }
}

/// Four weights of each output of vector v.
template <WeightCode code>
MOE_ALWAYS_INLINE void load_weights(const std::byte* codes, std::ptrdiff_t v, Vec scale, Vec zero,
                                    Vec (&quad)[4]) noexcept {
  widen_quad(load_signed<code>(codes, v), quad);
  MOE_UNROLL
  for (Vec& weight : quad) {
    if constexpr (traits_of(code, true).has_zeros) weight = subtract(weight, zero);
    weight = multiply(weight, scale);
  }
}

template <WeightCode code, bool grouped>
void decode(const std::byte* record, const float* outputs, std::ptrdiff_t groups,
            std::ptrdiff_t group, float* to) noexcept {
  constexpr FormatTraits traits = traits_of(code, grouped);
  constexpr std::ptrdiff_t scale_size = panel_width * scale_bytes(traits.scale);
  constexpr std::ptrdiff_t zero_size = traits.has_zeros ? panel_width : 0;
  constexpr bool is_scaled = traits.scale != ScaleKind::none || traits.has_output_scale;
  for (std::ptrdiff_t g = 0; g < groups; ++g) {
    Vec scale[coded_vectors];
    Vec zero[coded_vectors];
    load_group<code, grouped>(record, outputs, scale, zero);
    const std::byte* codes = record + scale_size + zero_size;
    if constexpr (traits.in_quads) {
      for (std::ptrdiff_t k = 0; k < group; k += 4) {
        __builtin_prefetch(codes + decoded_bytes_ahead);
        if constexpr (quad_bytes(code) > 64) __builtin_prefetch(codes + decoded_bytes_ahead + 64);
        MOE_UNROLL_8
        for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) {
          Vec quad[4];
          load_weights<code>(codes, v, scale[v], zero[v], quad);
          MOE_UNROLL
          for (int j = 0; j < 4; ++j) quad[j].store(to + j * panel_width + v * Vec::lanes);
        }
        codes += quad_bytes(code);
        to += 4 * panel_width;
      }
    } else {
      constexpr std::ptrdiff_t row_bytes = panel_width * traits.bits / 8;
      for (std::ptrdiff_t k = 0; k < group; ++k) {
        __builtin_prefetch(codes + decoded_bytes_ahead);
        MOE_UNROLL_8
        for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) {
          Vec value = load_single<code>(codes, v);
          if constexpr (is_scaled) value = multiply(value, scale[v]);
          value.store(to + v * Vec::lanes);
        }
        codes += row_bytes;
        to += panel_width;
      }
    }
    record = codes;
  }
}

/// Products of one or two rows with a panel, without the detour by memory: the same sums, in the
/// same order, as of the widened weights.
template <WeightCode code, bool grouped, int rows>
void widened_product(const float* a, const std::byte* record, const float* outputs,
                     std::ptrdiff_t inner, std::ptrdiff_t group, float* sums) noexcept {
  constexpr FormatTraits traits = traits_of(code, grouped);
  constexpr std::ptrdiff_t scale_size = panel_width * scale_bytes(traits.scale);
  constexpr std::ptrdiff_t zero_size = traits.has_zeros ? panel_width : 0;
  constexpr bool is_scaled = traits.scale != ScaleKind::none || traits.has_output_scale;
  Vec sum[rows][coded_vectors];
  MOE_UNROLL
  for (int r = 0; r < rows; ++r) {
    MOE_UNROLL_8
    for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) sum[r][v] = Vec::zero();
  }
  for (std::ptrdiff_t begin = 0; begin < inner; begin += group) {
    const std::ptrdiff_t count = inner - begin < group ? inner - begin : group;
    Vec scale[coded_vectors];
    Vec zero[coded_vectors];
    load_group<code, grouped>(record, outputs, scale, zero);
    const std::byte* codes = record + scale_size + zero_size;
    if constexpr (traits.in_quads) {
      for (std::ptrdiff_t k = 0; k < count; k += 4) {
        __builtin_prefetch(codes + widened_bytes_ahead);
        if constexpr (quad_bytes(code) > 64) __builtin_prefetch(codes + widened_bytes_ahead + 64);
        const std::ptrdiff_t left = count - k < 4 ? count - k : 4;
        MOE_UNROLL_8
        for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) {
          Vec quad[4];
          load_weights<code>(codes, v, scale[v], zero[v], quad);
          MOE_UNROLL
          for (int j = 0; j < 4; ++j) {
            if (j >= left) break;
            MOE_UNROLL
            for (int r = 0; r < rows; ++r)
              sum[r][v] = multiply_add(Vec::broadcast(a[j * rows + r]), quad[j], sum[r][v]);
          }
        }
        a += left * rows;
        codes += quad_bytes(code);
      }
      record += scale_size + zero_size + group / 4 * quad_bytes(code);
    } else {
      constexpr std::ptrdiff_t row_bytes = panel_width * traits.bits / 8;
      for (std::ptrdiff_t k = 0; k < count; ++k) {
        __builtin_prefetch(codes + widened_bytes_ahead);
        MOE_UNROLL_8
        for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) {
          Vec value = load_single<code>(codes, v);
          if constexpr (is_scaled) value = multiply(value, scale[v]);
          MOE_UNROLL
          for (int r = 0; r < rows; ++r)
            sum[r][v] = multiply_add(Vec::broadcast(a[r]), value, sum[r][v]);
        }
        a += rows;
        codes += row_bytes;
      }
      record = codes;
    }
  }
  MOE_UNROLL
  for (int r = 0; r < rows; ++r) {
    MOE_UNROLL_8
    for (std::ptrdiff_t v = 0; v < coded_vectors; ++v)
      sum[r][v].store(sums + r * panel_width + v * Vec::lanes);
  }
}

inline void code_row(const float* x, float factor, std::ptrdiff_t n, std::ptrdiff_t group,
                     std::ptrdiff_t groups, std::int32_t start, std::ptrdiff_t stride,
                     std::int8_t* codes, float* scales, std::int32_t* starts,
                     float* sums) noexcept {
  for (std::ptrdiff_t g = 0; g < groups; ++g) {
    const std::ptrdiff_t begin = g * group;
    const std::ptrdiff_t count = n - begin < group ? n - begin : group;
    const float* const values = x + begin;
    const Vec by = Vec::broadcast(factor);
    // Magnitudes compare as their bits do, NaN above all.
    IntVec most = IntVec::zero();
    std::ptrdiff_t i = 0;
    for (; i + Vec::lanes <= count; i += Vec::lanes)
      most = larger_magnitude(most, multiply(Vec::load(values + i), by));
    alignas(64) float rest[Vec::lanes] = {};
    for (std::ptrdiff_t j = i; j < count; ++j) rest[j - i] = values[j];
    if (i < count) most = larger_magnitude(most, multiply(Vec::load(rest), by));
    const float largest = largest_lane(most);
    const float inverse = largest < 1e-30F ? 0.0F : 127 / largest;
    const Vec up = Vec::broadcast(inverse);
    IntVec total = IntVec::zero();
    std::int8_t* to = codes + begin * stride;
    std::ptrdiff_t k = 0;
    for (; k + code_step <= count; k += code_step, to += code_step * stride)
      total = store_codes(values + k, by, up, stride, to, total);
    auto sum = static_cast<unsigned>(sum_of_lanes(total));  // What is no number may wrap around.
    if (k < group) {                                        // What is left, and zeros.
      alignas(64) float last[code_step];
      for (; k < group; k += code_step, to += code_step * stride) {
        for (std::ptrdiff_t j = 0; j < code_step; ++j) last[j] = k + j < count ? values[k + j] : 0;
        const std::ptrdiff_t quads = (group - k < code_step ? group - k : code_step) / 4;
        alignas(64) std::int8_t bytes[code_step];
        sum += static_cast<unsigned>(
            sum_of_lanes(store_codes(last, by, up, 1, bytes, IntVec::zero())));
        for (std::ptrdiff_t q = 0; q < quads; ++q)
          for (std::ptrdiff_t j = 0; j < 4; ++j) to[q * 4 * stride + j] = bytes[q * 4 + j];
      }
    }
    scales[g * stride] = largest / 127;
    starts[g * stride] = static_cast<std::int32_t>(static_cast<unsigned>(start) * sum);
    sums[g * stride] = largest / 127 * static_cast<float>(static_cast<std::int32_t>(sum));
  }
}

template <WeightCode code, bool grouped, int rows>
constexpr void add_coded(CodedKernels& table) noexcept {
  table.of_rows[rows - 1] = &coded_product<code, grouped, rows>;
  if constexpr (rows > 1) add_coded<code, grouped, rows - 1>(table);
}

template <WeightCode code, bool grouped>
constexpr CodedKernels make_coded() noexcept {
  CodedKernels table;
  table.decode = &decode<code, grouped>;
  table.code_row = &code_row;
  table.widened[0] = &widened_product<code, grouped, 1>;
  table.widened[1] = &widened_product<code, grouped, 2>;
  if constexpr (traits_of(code, grouped).is_integer) {
    table.start = start_of(code);
    table.most_rows = most_coded_rows(code, grouped);
    add_coded<code, grouped, most_coded_rows(code, grouped)>(table);
  }
  return table;
}

template <WeightCode code, bool grouped>
inline constexpr CodedKernels coded = make_coded<code, grouped>();
