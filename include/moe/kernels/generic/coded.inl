// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Products of quantised weights with activations in eight bits.
//
// Uses: what stands in as_floats.inl; IntVec, `lanes` sums of 32 bits; Operand, the codes of as
// many outputs at four inner values each; load_quads<code>(p, v), those of vector v of a panel;
// dot<rows>(r, sum, operand, activations) for row r of a tile; scaled_sum(sum, scale, excess), a
// sum less sum_excess, times its scale; start_of(code), what products of codes that are not signed
// begin with; most_coded_rows(grouped), coded_pass(rows): rows and vectors of a tile;
// coded_side_panels, those that one row streams side by side.

/// Sums of a tile's rows with panels that lie `stride` bytes apart: group by group in integers,
/// times the scales.
///
/// Shapes  sums (panels, rows, 32)
template <WeightCode code, bool grouped, int rows, int count, int panels = 1>
MOE_ALWAYS_INLINE void coded_pass_of(const CodedRows& a, const std::byte* panel,
                                     std::ptrdiff_t stride, std::ptrdiff_t groups,
                                     std::ptrdiff_t quads, std::ptrdiff_t first, float* sums,
                                     Lines next) noexcept {
  constexpr FormatTraits traits = traits_of(code, grouped);
  constexpr std::ptrdiff_t scale_size = panel_width * scale_bytes(traits.scale);
  constexpr std::ptrdiff_t zero_size = traits.has_zeros ? panel_width : 0;
  const std::byte* const outputs = panel;
  if constexpr (traits.has_output_scale) panel += panel_width * sizeof(float);
  const std::int8_t* x = a.codes;
  SideLines ahead{panel, outputs + stride, stride};
  const char* asked = next.begin;
  std::ptrdiff_t steps = 0;
  Vec total[panels][rows][count];
  set_zero(total);
  // Moves on with the groups: of an index g++ keeps its sum with every row's place on the stack,
  // which cost 7 rows 1 to 4 % of a product's time.
  CodedRows of_group = a;
  for (std::ptrdiff_t g = 0; g < groups; ++g) {
    IntVec sum[panels][rows][count];
    MOE_UNROLL
    for (int p = 0; p < panels; ++p) {
      MOE_UNROLL
      for (int r = 0; r < rows; ++r) {
        MOE_UNROLL
        for (int v = 0; v < count; ++v) sum[p][r][v] = IntVec::broadcast(of_group.starts + r);
      }
    }
    const std::byte* codes = panel + scale_size + zero_size;
    ahead.skip(scale_size + zero_size);
    for (std::ptrdiff_t q = 0; q < quads; ++q) {
      if constexpr (panels > 1) {
        ahead.ask<panels, quad_bytes(code)>();
      } else if constexpr (rows <= few_coded_rows) {
        // One token of Mixtral in int4 on Zen 5, where memory gives 80 GB/s: 1 KiB took 1.04
        // to 1.06 of the time of 2, 4 KiB 0.92 to 0.97, 8 KiB 0.95 to 0.98, nothing 1.03 to 1.07.
        // In int8 4 KiB took 1.02.
        constexpr bool is_long = quad_bytes(code) > 64;
        constexpr std::ptrdiff_t bytes_ahead = is_long ? coded_bytes_ahead : 2 * coded_bytes_ahead;
        __builtin_prefetch(codes + bytes_ahead);
        if constexpr (is_long) __builtin_prefetch(codes + bytes_ahead + 64);
      } else {
        __builtin_prefetch(asked, 0, 2);
        if constexpr (quad_bytes(code) > 64) __builtin_prefetch(asked + 64, 0, 2);
        asked += next.step;
        if (++steps % 8 == 0) asked += next.stride - 8 * next.step;
      }
      MOE_UNROLL
      for (int p = 0; p < panels; ++p) {
        Operand weights[count];
        MOE_UNROLL
        for (int v = 0; v < count; ++v)
          weights[v] = load_quads<code>(codes + p * stride, first + v);
        MOE_UNROLL
        for (int r = 0; r < rows; ++r) {
          MOE_UNROLL
          for (int v = 0; v < count; ++v)
            sum[p][r][v] = dot<rows>(r, sum[p][r][v], weights[v], x + std::ptrdiff_t{4} * r);
        }
      }
      x += 4 * a.stride;
      codes += quad_bytes(code);
    }
    MOE_UNROLL
    for (int p = 0; p < panels; ++p) {
      if constexpr (grouped) {
        const std::byte* const record = panel + p * stride;
        Vec scale[count];
        MOE_UNROLL
        for (int v = 0; v < count; ++v) scale[v] = load_scales<traits.scale>(record, first + v);
        MOE_UNROLL
        for (int r = 0; r < rows; ++r) {
          const Vec of_row = Vec::broadcast(of_group.scales[r]);
          const Vec excess = Vec::broadcast(of_group.excesses[r]);
          MOE_UNROLL
          for (int v = 0; v < count; ++v)
            total[p][r][v] =
                multiply_add(scaled_sum(sum[p][r][v], of_row, excess), scale[v], total[p][r][v]);
        }
        if constexpr (traits.has_zeros) {
          MOE_UNROLL
          for (int v = 0; v < count; ++v) {
            const IntVec zeros = load_bytes(reinterpret_cast<const std::uint8_t*>(record) +
                                            scale_size + (first + v) * Vec::lanes);
            const Vec offset = multiply(scale[v], to_float(zeros));
            MOE_UNROLL
            for (int r = 0; r < rows; ++r)
              total[p][r][v] =
                  multiply_add(Vec::broadcast(-of_group.sums[r]), offset, total[p][r][v]);
          }
        }
      } else {
        MOE_UNROLL
        for (int r = 0; r < rows; ++r) {
          MOE_UNROLL
          for (int v = 0; v < count; ++v)
            total[p][r][v] = multiply(to_float(sum[p][r][v]), Vec::broadcast(a.scales[r]));
        }
      }
    }
    panel = codes;
    of_group.scales += a.stride;
    of_group.excesses += a.stride;
    of_group.starts += a.stride;
    of_group.sums += a.stride;
  }
  MOE_UNROLL
  for (int p = 0; p < panels; ++p) {
    MOE_UNROLL
    for (int r = 0; r < rows; ++r) {
      MOE_UNROLL
      for (int v = 0; v < count; ++v) {
        const std::ptrdiff_t column = (first + v) * Vec::lanes;
        if constexpr (traits.has_output_scale)
          total[p][r][v] =
              multiply(total[p][r][v],
                       Vec::load(reinterpret_cast<const float*>(outputs + p * stride) + column));
        if constexpr (code == WeightCode::mxfp4)  // Its values are halves.
          total[p][r][v] = multiply(total[p][r][v], Vec::broadcast(0.5F));
        total[p][r][v].store(sums + (p * rows + r) * panel_width + column);
      }
    }
  }
}

/// More than few_coded_rows rows ask for what comes next. Where nothing was asked for, it took 3 to
/// 12 rows 1.1 to 1.7 times as long.
template <WeightCode code, bool grouped, int rows>
void coded_product(const CodedRows& a, const std::byte* panel, std::ptrdiff_t groups,
                   std::ptrdiff_t quads, float* sums, Lines next) noexcept {
  constexpr int count = coded_pass(rows);
  if constexpr (count == coded_vectors) {
    coded_pass_of<code, grouped, rows, count>(a, panel, 0, groups, quads, 0, sums, next);
  } else {
    for (std::ptrdiff_t first = 0; first < coded_vectors; first += count)
      coded_pass_of<code, grouped, rows, count>(a, panel, 0, groups, quads, first, sums, next);
  }
}

/// One row with panels that are streamed side by side (see tiles_side_by_side). Of what memory
/// reads, decode reached 0.74 to 0.79 in int8, 0.62 to 0.65 in int4 and 0.60 in mxfp4 with one
/// stream; with 4 panels 0.84 to 0.92, 0.75 to 0.80 and 0.70; with 8, whose sums do not all stay in
/// registers, 0.89 to 0.93, 0.84 to 0.87 and 0.79 (left to the hardware, see SideLines).
template <WeightCode code, bool grouped>
void coded_side_by_side(const CodedRows& a, const std::byte* panel, std::ptrdiff_t stride,
                        std::ptrdiff_t groups, std::ptrdiff_t quads, float* sums) noexcept {
  coded_pass_of<code, grouped, 1, coded_vectors, coded_side_panels>(a, panel, stride, groups, quads,
                                                                    0, sums, {});
}

template <bool grouped>
void code_row(const float* x, float factor, std::ptrdiff_t n, std::ptrdiff_t group,
              std::ptrdiff_t groups, std::int32_t start, const CodedRowsToSet& row) noexcept {
  const std::ptrdiff_t stride = row.stride;
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
    std::int8_t* to = row.codes + begin * stride;
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
    float scale = largest / 127;
    unsigned begins_with = static_cast<unsigned>(start) * sum;
    if constexpr (grouped) {  // Scales keep 22 bits, so that the excess is exact.
      scale = __builtin_bit_cast(float, __builtin_bit_cast(std::int32_t, scale) & ~3);
      row.excesses[g * stride] = -sum_excess * scale;
      begins_with += static_cast<unsigned>(sum_excess_bits);
    }
    row.scales[g * stride] = scale;
    row.starts[g * stride] = static_cast<std::int32_t>(begins_with);
    row.sums[g * stride] = scale * static_cast<float>(static_cast<std::int32_t>(sum));
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
  if constexpr (traits_of(code, grouped).scales_sums) table.add_group = &add_group<code>;
  table.code_row = &code_row<grouped>;
  table.widened[0] = &widened_product<code, grouped, 1>;
  table.widened[1] = &widened_product<code, grouped, 2>;
  if constexpr (widened_side_panels > 1) {
    table.widened_side_by_side = {&widened_side_by_side<code, grouped>, widened_side_panels};
  }
  // Slower codes than these keep one panel's sums busy (see widened_pair).
  if constexpr (QuickRows<code>::exist) table.widened_pair = {&widened_pair<code, grouped>, 2};
  if constexpr (traits_of(code, grouped).is_integer) {
    table.start = start_of(code);
    table.most_rows = most_coded_rows(grouped);
    table.few_rows = few_coded_rows;
    add_coded<code, grouped, most_coded_rows(grouped)>(table);
    if constexpr (coded_side_panels > 1) {
      table.side_panels = coded_side_panels;
      table.side_by_side = &coded_side_by_side<code, grouped>;
    }
  }
  return table;
}

template <WeightCode code, bool grouped>
inline constexpr CodedKernels coded = make_coded<code, grouped>();
