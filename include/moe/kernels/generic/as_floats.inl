// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Quantised weights as floats, and products with them.
//
// Uses: Vec and its functions; IntVec with load_bytes, power_of_byte and to_float;
// load_signed<code>(p, v), the codes of vector v of a panel at four inner values each, as signed
// numbers; widen_quad(codes, quad), the numbers at each of the four; load_e4m3_as_half and
// load_e5m2_as_half; QuickRows<code>, where it exists with are_quick, whether a line of each panel
// has only codes that its load widens, in an order of its own, reorder and restore;
// widened_side_panels, those that one row streams side by side; SideLines.

using moe::detail::FormatTraits;
using moe::detail::scale_bytes;
using moe::detail::ScaleKind;
using moe::detail::traits_of;

/// Whether weights are multiplied by their scales before they meet activations.
constexpr bool scales_weights(FormatTraits traits) noexcept {
  return !traits.scales_sums && (traits.scale != ScaleKind::none || traits.has_output_scale);
}

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

/// The value of vector v of a panel at one inner value, of codes that do not lie in quads. Those of
/// e4m3 are 256 times too small, here and in QuickRows: with one more bit of exponent they are
/// halves, subnormal ones, too.
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

/// Those of all vectors of a panel, at once where the level can.
template <WeightCode code, class Values>
MOE_ALWAYS_INLINE void load_row(const std::byte* row, Values& value) noexcept {
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(row);
  if constexpr (code == WeightCode::fp8_e4m3 && requires { load_e4m3_as_half(bytes, value); }) {
    load_e4m3_as_half(bytes, value);
  } else if constexpr (code == WeightCode::fp8_e5m2 &&
                       requires { load_e5m2_as_half(bytes, value); }) {
    load_e5m2_as_half(bytes, value);
  } else {
    MOE_UNROLL_8
    for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) value[v] = load_single<code>(row, v);
  }
}

/// How far ahead codes are asked for while others are widened: further than the page, where the
/// hardware's prefetcher stops while the product is busy.
inline constexpr std::ptrdiff_t decoded_bytes_ahead = 4096;
inline constexpr std::ptrdiff_t widened_bytes_ahead = 2048;

/// The same of each of two panels side by side. One token of Mixtral in fp8 on Zen 5, where memory
/// gives 80 GB/s (50 GB/s): 2 KiB took 5.5 ms (7.5), 4 KiB 4.7 (7.7), 5 KiB 4.8 (7.9), 8 KiB 5.1
/// (8.0).
inline constexpr std::ptrdiff_t pair_bytes_ahead = 4096;

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
        Vec value[coded_vectors];
        load_row<code>(codes, value);
        MOE_UNROLL_8
        for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) {
          if constexpr (scales_weights(traits)) value[v] = multiply(value[v], scale[v]);
          value[v].store(to + v * Vec::lanes);
        }
        codes += row_bytes;
        to += panel_width;
      }
    }
    record = codes;
  }
}

/// See GroupAdder.
template <WeightCode code>
void add_group(const float* of_group, const std::byte* record, std::ptrdiff_t count,
               float* sums) noexcept {
  Vec scale[coded_vectors];
  Vec zero[coded_vectors];
  load_group<code, true>(record, nullptr, scale, zero);
  for (std::ptrdiff_t r = 0; r < count; ++r) {
    MOE_UNROLL_8
    for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) {
      const std::ptrdiff_t at = r * panel_width + v * Vec::lanes;
      multiply_add(Vec::load(of_group + at), scale[v], Vec::load(sums + at)).store(sums + at);
    }
  }
}

template <int panels, int rows, int vectors>
MOE_ALWAYS_INLINE void set_zero(Vec (&sums)[panels][rows][vectors]) noexcept {
  MOE_UNROLL
  for (int p = 0; p < panels; ++p) {
    MOE_UNROLL
    for (int r = 0; r < rows; ++r) {
      MOE_UNROLL_8
      for (int v = 0; v < vectors; ++v) sums[p][r][v] = Vec::zero();
    }
  }
}

/// A row of panels whose codes do not lie in quads, times activations (rows).
template <WeightCode code, bool grouped, bool is_quick, int panels, int rows>
MOE_ALWAYS_INLINE void add_row(const float* a, const std::byte* codes, std::ptrdiff_t stride,
                               const Vec (&scale)[panels][coded_vectors],
                               Vec (&sum)[panels][rows][coded_vectors]) noexcept {
  MOE_UNROLL
  for (int p = 0; p < panels; ++p) {
    Vec value[coded_vectors];
    if constexpr (is_quick) {
      QuickRows<code>::load(codes + p * stride, value);
    } else {
      load_row<code>(codes + p * stride, value);
      if constexpr (QuickRows<code>::exist) QuickRows<code>::reorder(value);
    }
    MOE_UNROLL_8
    for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) {
      if constexpr (scales_weights(traits_of(code, grouped)))
        value[v] = multiply(value[v], scale[p][v]);
      MOE_UNROLL
      for (int r = 0; r < rows; ++r)
        sum[p][r][v] = multiply_add(Vec::broadcast(a[r]), value[v], sum[p][r][v]);
    }
  }
}

/// The rows of a line of each panel, of which `count` are left.
template <WeightCode code, bool grouped, bool is_quick, int panels, int rows>
MOE_ALWAYS_INLINE void add_line(const float* a, const std::byte* codes, std::ptrdiff_t stride,
                                std::ptrdiff_t count, const Vec (&scale)[panels][coded_vectors],
                                Vec (&sum)[panels][rows][coded_vectors]) noexcept {
  constexpr std::ptrdiff_t row_bytes = panel_width * traits_of(code, grouped).bits / 8;
  static_assert(row_bytes == 32 || row_bytes == 64);
  add_row<code, grouped, is_quick>(a, codes, stride, scale, sum);
  if constexpr (row_bytes == 32) {
    if (count > 1)
      add_row<code, grouped, is_quick>(a + rows, codes + row_bytes, stride, scale, sum);
  }
}

/// Products of a few rows with panels that lie `stride` bytes apart, without the detour by memory:
/// the same sums, in the same order, as of the widened weights, and the same ends of groups where
/// scales multiply sums. Several panels ask for lines `bytes_ahead`, one widened_bytes_ahead.
///
/// Shapes  sums (panels, rows, 32)
template <WeightCode code, bool grouped, int rows, int panels,
          std::ptrdiff_t bytes_ahead = side_bytes_ahead>
MOE_ALWAYS_INLINE void widened_pass(const float* a, const std::byte* record, const float* outputs,
                                    std::ptrdiff_t stride, std::ptrdiff_t inner,
                                    std::ptrdiff_t group, float* sums) noexcept {
  constexpr FormatTraits traits = traits_of(code, grouped);
  constexpr std::ptrdiff_t scale_size = panel_width * scale_bytes(traits.scale);
  constexpr std::ptrdiff_t zero_size = traits.has_zeros ? panel_width : 0;
  SideLines ahead{record, record + stride, stride};
  Vec sum[panels][rows][coded_vectors];
  Vec total[panels][rows][coded_vectors];  // of the groups before, where scales multiply sums
  set_zero(sum);
  if constexpr (traits.scales_sums) set_zero(total);
  for (std::ptrdiff_t begin = 0; begin < inner; begin += group) {
    const std::ptrdiff_t count = inner - begin < group ? inner - begin : group;
    Vec scale[panels][coded_vectors];
    Vec zero[panels][coded_vectors];
    MOE_UNROLL
    for (int p = 0; p < panels; ++p) {
      const float* of_panel = outputs;
      if constexpr (traits.has_output_scale)
        of_panel += p * stride / static_cast<std::ptrdiff_t>(sizeof(float));
      load_group<code, grouped>(record + p * stride, of_panel, scale[p], zero[p]);
      if constexpr (QuickRows<code>::exist) QuickRows<code>::reorder(scale[p]);
    }
    const std::byte* codes = record + scale_size + zero_size;
    ahead.skip(scale_size + zero_size);
    if constexpr (traits.in_quads) {
      for (std::ptrdiff_t k = 0; k < count; k += 4) {
        const std::ptrdiff_t left = count - k < 4 ? count - k : 4;
        if constexpr (panels > 1) {
          ahead.ask<panels, quad_bytes(code), bytes_ahead>();
        } else {
          __builtin_prefetch(codes + widened_bytes_ahead);
          if constexpr (quad_bytes(code) > 64) __builtin_prefetch(codes + widened_bytes_ahead + 64);
        }
        MOE_UNROLL
        for (int p = 0; p < panels; ++p) {
          const std::byte* const from = codes + p * stride;
          MOE_UNROLL_8
          for (std::ptrdiff_t v = 0; v < coded_vectors; ++v) {
            Vec quad[4];
            load_weights<code>(from, v, scale[p][v], zero[p][v], quad);
            MOE_UNROLL
            for (int j = 0; j < 4; ++j) {
              if (j >= left) break;
              MOE_UNROLL
              for (int r = 0; r < rows; ++r)
                sum[p][r][v] = multiply_add(Vec::broadcast(a[j * rows + r]), quad[j], sum[p][r][v]);
            }
          }
        }
        a += left * rows;
        codes += quad_bytes(code);
      }
      record += scale_size + zero_size + group / 4 * quad_bytes(code);
    } else {
      constexpr std::ptrdiff_t row_bytes = panel_width * traits.bits / 8;
      constexpr std::ptrdiff_t rows_of_line = 64 / row_bytes;
      for (std::ptrdiff_t k = 0; k < count; k += rows_of_line) {
        const std::ptrdiff_t left = count - k < rows_of_line ? count - k : rows_of_line;
        if constexpr (panels > 1) {
          ahead.ask<panels, rows_of_line * row_bytes, bytes_ahead>();
        } else {
          __builtin_prefetch(codes + widened_bytes_ahead);
        }
        bool is_quick = false;
        if constexpr (QuickRows<code>::exist) {
          is_quick = QuickRows<code>::template are_quick<panels>(codes, stride);
          if (is_quick) add_line<code, grouped, true>(a, codes, stride, left, scale, sum);
        }
        if (!is_quick) add_line<code, grouped, false>(a, codes, stride, left, scale, sum);
        a += left * rows;
        codes += left * row_bytes;
      }
      record = codes;
    }
    if constexpr (traits.scales_sums) {
      MOE_UNROLL
      for (int p = 0; p < panels; ++p) {
        MOE_UNROLL
        for (int r = 0; r < rows; ++r) {
          MOE_UNROLL_8
          for (std::ptrdiff_t v = 0; v < coded_vectors; ++v)
            total[p][r][v] = multiply_add(sum[p][r][v], scale[p][v], total[p][r][v]);
        }
      }
      set_zero(sum);
    }
  }
  MOE_UNROLL
  for (int p = 0; p < panels; ++p) {
    MOE_UNROLL
    for (int r = 0; r < rows; ++r) {
      auto& result = (traits.scales_sums ? total : sum)[p][r];
      if constexpr (QuickRows<code>::exist) QuickRows<code>::restore(result);
      MOE_UNROLL_8
      for (std::ptrdiff_t v = 0; v < coded_vectors; ++v)
        result[v].store(sums + (p * rows + r) * panel_width + v * Vec::lanes);
    }
  }
}

template <WeightCode code, bool grouped, int rows>
void widened_product(const float* a, const std::byte* record, const float* outputs,
                     std::ptrdiff_t inner, std::ptrdiff_t group, float* sums) noexcept {
  widened_pass<code, grouped, rows, 1>(a, record, outputs, 0, inner, group, sums);
}

/// One row with panels that are streamed side by side (see tiles_side_by_side). Of what memory
/// reads, decode in e4m3, as halves, reached 0.50 to 0.57 with one stream, 0.58 to 0.64 with 4
/// panels and 32 codes an instruction, and on a Xeon of the fifth generation 1.12 to 1.18 times
/// that with scales that multiply the sums of groups, and a request a line.
template <WeightCode code, bool grouped>
void widened_side_by_side(const float* a, const std::byte* record, const float* outputs,
                          std::ptrdiff_t stride, std::ptrdiff_t inner, std::ptrdiff_t group,
                          float* sums) noexcept {
  widened_pass<code, grouped, 1, widened_side_panels>(a, record, outputs, stride, inner, group,
                                                      sums);
}

/// One row with two panels, for codes that widen so fast that the sums of one wait for each other,
/// since every output is one accumulator. From the caches of a Zen 5, e4m3 gave 64 GB/s converted
/// from halves, 68 by QuickRows with one panel, 96 with two, 98 with four. One token of Mixtral,
/// Qwen3 and OLMoE there, where memory gives 80 GB/s, took 6.6, 0.79 and 1.03 ms from halves, 5.7,
/// 0.69 and 0.92 with one panel, 4.7, 0.59 and 0.80 with two, 5.3, 0.64 and 0.81 with four; where
/// it gives 50, Mixtral 7.5, 7.6, 7.7 and 8.1. In int8 two panels took 1.06 to 1.3 times as long as
/// one at 50 GB/s, in four bits, whose widening takes longer, 0.95.
template <WeightCode code, bool grouped>
void widened_pair(const float* a, const std::byte* record, const float* outputs,
                  std::ptrdiff_t stride, std::ptrdiff_t inner, std::ptrdiff_t group,
                  float* sums) noexcept {
  widened_pass<code, grouped, 1, 2, pair_bytes_ahead>(a, record, outputs, stride, inner, group,
                                                      sums);
}
