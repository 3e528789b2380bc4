// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Kernels of quantised weights against sums worked out code by code.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/aligned_buffer.hpp>
#include <moe/core/random.hpp>
#include <moe/core/weight_format.hpp>
#include <moe/experts/coded_matrix.hpp>
#include <moe/experts/coded_product.hpp>
#include <moe/kernels/coded/dispatch.hpp>

#include "support/float_bits.hpp"
#include "support/levels.hpp"

namespace coded_test {

using moe::AlignedBuffer;
using moe::CodedOutput;
using moe::Index;
using moe::MatrixLayout;
using moe::WeightCode;
using moe::WeightFormat;

constexpr Index width = moe::kernels::panel_width;

/// Numbers that look random, from 0 on.
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : seed_(seed) {}
  unsigned below(unsigned bound) {
    return static_cast<unsigned>(moe::detail::mix_bits(seed_ + ++count_) % bound);
  }

 private:
  std::uint64_t seed_;
  std::uint64_t count_ = 0;
};

/// Any codes that a format has, the extreme ones often; scales that it stores.
CodedOutput draw_output(const MatrixLayout& layout, Draw& draw) {
  const moe::detail::FormatTraits traits = moe::detail::traits_of(layout.format);
  CodedOutput output;
  const auto count = static_cast<unsigned>(1U << static_cast<unsigned>(traits.bits));
  for (Index k = 0; k < layout.inner; ++k) {
    unsigned code = draw.below(count);
    if (traits.bits == 8 && draw.below(3) == 0) code = draw.below(2) == 0 ? 127 : 128;
    if (traits.bits == 4 && draw.below(3) == 0) code = draw.below(2) == 0 ? 15 : 0;
    if (layout.format.code == WeightCode::fp8_e4m3 && (code & 0x7fU) == 0x7fU) code = 0x7e;
    if (layout.format.code == WeightCode::fp8_e5m2 && (code & 0x7fU) >= 0x7cU) code = 0x7b;
    if (layout.format.code == WeightCode::bfloat16) code = 0x3f00U + code % 256;
    if (layout.format.code == WeightCode::half) code = 0x3000U + code % 4096;
    output.codes.push_back(static_cast<std::uint16_t>(code));
  }
  for (Index g = 0; g < layout.groups; ++g) {
    using moe::detail::ScaleKind;
    if (traits.scale == ScaleKind::half || traits.scale == ScaleKind::single)
      output.scales.push_back(static_cast<float>(1 + draw.below(1000)) / 1024 *
                              (draw.below(2) == 0 ? 1 : -1));
    if (traits.scale == ScaleKind::byte)
      output.scales.push_back(static_cast<float>(draw.below(256)));
    if (traits.scale == ScaleKind::exponent)
      output.scales.push_back(std::ldexp(1.0F, static_cast<int>(draw.below(12)) - 6));
    if (traits.has_zeros) output.zeros.push_back(static_cast<std::uint8_t>(draw.below(16)));
  }
  if (traits.has_output_scale) output.output_scale = static_cast<float>(1 + draw.below(99)) / 50;
  return output;
}

/// One panel and the outputs that it is made of.
struct Panel {
  MatrixLayout layout;
  std::vector<CodedOutput> outputs;
  AlignedBuffer<std::byte> bytes;

  Panel(WeightFormat format, Index inner, std::uint64_t seed)
      : layout(format, width, inner), bytes(static_cast<std::size_t>(layout.bytes())) {
    Draw draw(seed);
    for (Index o = 0; o < width; ++o) {
      outputs.push_back(draw_output(layout, draw));
      moe::detail::put_output(layout, o, outputs.back(), bytes.data());
    }
  }
};

class Coded : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(Coded);

TEST_P(Coded, OutputsComeBackAsTheyWereWritten) {
  for (const WeightFormat format : moe::weight_formats) {
    const Panel panel(format, 137, 3);
    for (Index o = 0; o < width; ++o) {
      const CodedOutput back = moe::detail::get_output(panel.layout, o, panel.bytes.data());
      const CodedOutput& expected = panel.outputs[static_cast<std::size_t>(o)];
      EXPECT_EQ(back.codes, expected.codes) << moe::format_name(format);
      EXPECT_EQ(back.scales, expected.scales) << moe::format_name(format);
      EXPECT_EQ(back.zeros, expected.zeros) << moe::format_name(format);
      EXPECT_EQ(back.output_scale, expected.output_scale) << moe::format_name(format);
    }
  }
}

/// What a decoded weight is still to be multiplied by: where scales multiply sums, its scale, and
/// 256 in e4m3.
float left_to_sums(WeightFormat format, float scale) {
  if (!moe::detail::traits_of(format).scales_sums) return 1;
  return format.code == WeightCode::fp8_e4m3 ? 256 * scale : scale;
}

TEST_P(Coded, DecodesToTheBitsOfCodesTimesScales) {
  for (const WeightFormat format : moe::weight_formats) {
    const Panel panel(format, 137, 4);
    const MatrixLayout& layout = panel.layout;
    AlignedBuffer<float> to(static_cast<std::size_t>(moe::detail::whole_inner(layout) * width));
    const auto* const outputs =
        layout.header_bytes == 0 ? nullptr : reinterpret_cast<const float*>(panel.bytes.data());
    moe::kernels::coded_kernels(format).decode(panel.bytes.data() + layout.record_offset(0, 0),
                                               outputs, layout.groups, layout.group, to.data());
    std::vector<float> expected(static_cast<std::size_t>(layout.inner));
    for (Index o = 0; o < width; ++o) {
      const CodedOutput& output = panel.outputs[static_cast<std::size_t>(o)];
      moe::detail::decode_output(layout, output, expected.data());
      for (Index k = 0; k < layout.inner; ++k) {
        const float left =
            left_to_sums(format, moe::detail::scale_of(layout, output, k / layout.group));
        ASSERT_EQ(to.data()[k * width + o] * left, expected[static_cast<std::size_t>(k)])
            << moe::format_name(format) << ", output " << o << ", inner " << k;
      }
    }
  }
}

struct FloatCode {
  const char* format;
  int exponent_bits;
  int fraction_bits;
  unsigned magnitudes;  // Those that are finite numbers come first.
};

TEST_P(Coded, DecodesAllNumbersOfEightAndSixteenBits) {
  for (const FloatCode& type : {FloatCode{"fp8", 4, 3, 0x7f}, FloatCode{"fp8-e5m2", 5, 2, 0x7c},
                                FloatCode{"bf16", 8, 7, 0x7f80}, FloatCode{"f16", 5, 10, 0x7c00}}) {
    const WeightFormat format = moe::format_of(type.format);
    const moe::detail::FormatTraits traits = moe::detail::traits_of(format);
    const unsigned sign = 1U << static_cast<unsigned>(traits.bits - 1);
    std::vector<std::uint16_t> codes;
    for (unsigned m = 0; m < type.magnitudes; ++m)
      for (const unsigned s : {0U, sign}) codes.push_back(static_cast<std::uint16_t>(m | s));
    const auto inner = static_cast<Index>((codes.size() + width - 1) / width);
    codes.resize(static_cast<std::size_t>(inner * width), 0);
    const MatrixLayout layout(format, width, inner);
    AlignedBuffer<std::byte> bytes(static_cast<std::size_t>(layout.bytes()));
    for (Index o = 0; o < width; ++o) {
      CodedOutput output;
      for (Index k = 0; k < inner; ++k)
        output.codes.push_back(codes[static_cast<std::size_t>(k * width + o)]);
      if (traits.scale != moe::detail::ScaleKind::none)
        output.scales.assign(static_cast<std::size_t>(layout.groups), 0.5F);
      moe::detail::put_output(layout, o, output, bytes.data());
    }
    const double scale = traits.scale == moe::detail::ScaleKind::none ? 1 : 0.5;
    AlignedBuffer<float> to(static_cast<std::size_t>(moe::detail::whole_inner(layout) * width));
    moe::kernels::coded_kernels(format).decode(bytes.data() + layout.record_offset(0, 0), nullptr,
                                               layout.groups, layout.group, to.data());
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const double expected =
          scale * test_support::value_of_bits(codes[i], type.exponent_bits, type.fraction_bits) /
          static_cast<double>(left_to_sums(format, 0.5F));
      ASSERT_EQ(std::signbit(to.data()[i]), std::signbit(expected)) << type.format << codes[i];
      ASSERT_EQ(static_cast<double>(to.data()[i]), expected)
          << type.format << ", code " << codes[i];
    }
  }
}

TEST_P(Coded, ScalesOfSumsMultiplyThemOnce) {
  for (const WeightFormat format : moe::weight_formats) {
    const auto& kernels = moe::kernels::coded_kernels(format);
    const bool scales_sums = moe::detail::traits_of(format).scales_sums;
    ASSERT_EQ(kernels.add_group != nullptr, scales_sums) << moe::format_name(format);
    if (!scales_sums) continue;
    const Panel panel(format, 270, 13);
    const MatrixLayout& layout = panel.layout;
    constexpr Index rows = 5;
    Draw draw(14);
    const auto any = [&] { return static_cast<float>(draw.below(1000)) - 500; };
    for (Index g = 0; g < layout.groups; ++g) {
      AlignedBuffer<float> of_group(rows * width);
      AlignedBuffer<float> sums(rows * width);
      std::vector<float> expected;
      for (Index i = 0; i < rows * width; ++i) {
        of_group.data()[i] = any();
        sums.data()[i] = any();
        const CodedOutput& output = panel.outputs[static_cast<std::size_t>(i % width)];
        const float scale = left_to_sums(format, moe::detail::scale_of(layout, output, g));
        // Exact in double precision.
        expected.push_back(static_cast<float>(static_cast<double>(of_group.data()[i]) *
                                                  static_cast<double>(scale) +
                                              static_cast<double>(sums.data()[i])));
      }
      kernels.add_group(of_group.data(), panel.bytes.data() + layout.record_offset(0, g), rows,
                        sums.data());
      for (Index i = 0; i < rows * width; ++i)
        ASSERT_EQ(sums.data()[i], expected[static_cast<std::size_t>(i)])
            << moe::format_name(format) << ", group " << g << ", at " << i;
    }
  }
}

TEST_P(Coded, DecodesTheSmallestAndTheLargestPowersOfTwo) {
  const WeightFormat format = moe::format_of("mxfp4");
  const MatrixLayout layout(format, width, 64);
  AlignedBuffer<std::byte> bytes(static_cast<std::size_t>(layout.bytes()));
  std::vector<CodedOutput> outputs;
  for (Index o = 0; o < width; ++o) {
    CodedOutput output;
    for (Index k = 0; k < layout.inner; ++k) {
      // Where the scale is 2^127, codes up to 1.5 of either sign.
      const auto code = static_cast<unsigned>(k < 32 ? k % 16 : (k % 4) + 8 * (k / 4 % 2));
      output.codes.push_back(static_cast<std::uint16_t>(code));
    }
    output.scales = {0x1p-127F, 0x1p127F};
    moe::detail::put_output(layout, o, output, bytes.data());
    outputs.push_back(output);
  }
  AlignedBuffer<float> to(static_cast<std::size_t>(layout.inner * width));
  moe::kernels::coded_kernels(format).decode(bytes.data(), nullptr, layout.groups, layout.group,
                                             to.data());
  std::vector<float> expected(static_cast<std::size_t>(layout.inner));
  for (Index o = 0; o < width; ++o) {
    moe::detail::decode_output(layout, outputs[static_cast<std::size_t>(o)], expected.data());
    for (Index k = 0; k < layout.inner; ++k)
      ASSERT_EQ(to.data()[k * width + o], expected[static_cast<std::size_t>(k)]) << "inner " << k;
  }
  EXPECT_EQ(expected[1], 0x1p-128F);
  EXPECT_EQ(expected[35], 1.5F * 0x1p127F);
}

/// Rows of activations, whose codes reach -127 and 127.
std::vector<float> activations(Index rows, Index inner, std::uint64_t seed) {
  std::vector<float> x(static_cast<std::size_t>(rows * inner));
  Draw draw(seed);
  for (float& value : x) {
    value = static_cast<float>(draw.below(2001)) / 1000 - 1;
    if (draw.below(3) == 0) value = value < 0 ? -1.0F : 1.0F;
  }
  return x;
}

/// What codes of a group of activations are multiplied by, of 22 bits in formats with groups.
float scale_of_row(float largest, bool is_grouped) {
  const float scale = largest / 127;
  int exponent = 0;
  const float fraction = std::frexp(scale, &exponent);
  return is_grouped ? std::ldexp(std::trunc(std::ldexp(fraction, 22)), exponent - 22) : scale;
}

TEST_P(Coded, ProductsAreExactIntegerSumsTimesScales) {
  constexpr Index most = 16;
  for (const WeightFormat format : moe::weight_formats) {
    if (!moe::has_integer_products(format)) continue;
    for (const Index inner : {4, 31, 64, 137, 1030}) {
      const Panel panel(format, inner, 5);
      const MatrixLayout& layout = panel.layout;
      const auto& kernels = moe::kernels::coded_kernels(format);
      const std::vector<float> x = activations(most, inner, 6);
      for (Index rows = 1; rows <= kernels.most_rows; ++rows) {
        AlignedBuffer<float> memory(
            static_cast<std::size_t>(rows * moe::detail::coded_row_size(layout)));
        const moe::detail::CodedBlock block(layout, memory.data(), rows);
        for (Index r = 0; r < rows; ++r)
          block.put(kernels, layout, r, x.data() + r * inner, 1, inner);
        AlignedBuffer<float> sums(static_cast<std::size_t>(rows * width));
        kernels.of_rows[rows - 1](block.rows(), panel.bytes.data(), layout.groups, layout.group / 4,
                                  sums.data(), {reinterpret_cast<const char*>(panel.bytes.data())});
        for (Index r = 0; r < rows; ++r) {
          for (Index o = 0; o < width; ++o) {
            const CodedOutput& output = panel.outputs[static_cast<std::size_t>(o)];
            double expected = 0;
            double size = 0;
            for (Index g = 0; g < layout.groups; ++g) {
              const Index end = std::min((g + 1) * layout.group, inner);
              float largest = 0;
              for (Index k = g * layout.group; k < end; ++k)
                largest = std::fmax(largest, std::fabs(x[static_cast<std::size_t>(r * inner + k)]));
              const auto at = static_cast<std::size_t>(g);
              double sum = 0;
              for (Index k = g * layout.group; k < end; ++k) {
                const float scaled = x[static_cast<std::size_t>(r * inner + k)] * (127 / largest);
                sum += std::nearbyint(static_cast<double>(scaled)) *
                       static_cast<double>(moe::detail::code_value(
                           format.code, output.codes[static_cast<std::size_t>(k)],
                           output.zeros.empty() ? std::uint8_t{0} : output.zeros[at]));
              }
              const double scale =
                  (output.scales.empty() ? 1.0 : static_cast<double>(output.scales[at])) *
                  static_cast<double>(output.output_scale) *
                  static_cast<double>(scale_of_row(largest, format.group != 0));
              expected += scale * sum;
              // With zero points, two sums cancel.
              size += std::fabs(scale) *
                      (std::fabs(sum) + (output.zeros.empty() ? 0 : 127.0 * 15 * 128));
            }
            ASSERT_NEAR(sums.data()[r * width + o], expected, 4e-7 * size + 1e-30)
                << moe::format_name(format) << ", inner " << inner << ", " << rows << " rows";
          }
        }
      }
    }
  }
}

/// A group whose sum is rounded once, when it meets the scale of its activations.
TEST_P(Coded, ASumTimesItsScaleIsRoundedOnce) {
  for (const char* name : {"int8-g32", "int8-g128", "int4-g128", "nl4-g128", "mxfp4"}) {
    const WeightFormat format = moe::format_of(name);
    const MatrixLayout layout(format, width, format.group);
    const auto& kernels = moe::kernels::coded_kernels(format);
    Draw draw(15);
    AlignedBuffer<std::byte> bytes(static_cast<std::size_t>(layout.bytes()));
    std::vector<CodedOutput> outputs;
    for (Index o = 0; o < width; ++o) {
      CodedOutput output = draw_output(layout, draw);
      output.scales.assign(1, 1);
      output.output_scale = 1;
      if (o == 0) {  // Of the largest codes.
        const std::uint16_t largest = format.code == WeightCode::int8    ? 128
                                      : format.code == WeightCode::mxfp4 ? 15
                                                                         : 0;
        std::fill(output.codes.begin(), output.codes.end(), largest);
      }
      moe::detail::put_output(layout, o, output, bytes.data());
      outputs.push_back(output);
    }
    for (int turn = 0; turn < 20; ++turn) {
      std::vector<float> x(static_cast<std::size_t>(layout.inner), 127);
      for (std::size_t k = 1; k < x.size() && turn > 0; ++k)
        x[k] = static_cast<float>(draw.below(255)) - 127;
      const float factor = static_cast<float>(1000 + draw.below(1 << 20)) / 1024;
      AlignedBuffer<float> memory(static_cast<std::size_t>(moe::detail::coded_row_size(layout)));
      const moe::detail::CodedBlock block(layout, memory.data(), 1);
      block.put(kernels, layout, 0, x.data(), factor, layout.inner);
      const float scale = scale_of_row(127 * factor, true);
      ASSERT_EQ(block.rows().scales[0], scale);
      AlignedBuffer<float> sums(width);
      kernels.of_rows[0](block.rows(), bytes.data(), layout.groups, layout.group / 4, sums.data(),
                         {reinterpret_cast<const char*>(bytes.data())});
      for (Index o = 0; o < width; ++o) {
        double sum = 0;
        for (std::size_t k = 0; k < x.size(); ++k)
          sum += static_cast<double>(x[k]) *
                 static_cast<double>(moe::detail::code_value(
                     format.code, outputs[static_cast<std::size_t>(o)].codes[k], 0));
        ASSERT_EQ(sums.data()[o], static_cast<float>(sum * static_cast<double>(scale)))
            << name << ", output " << o;
      }
    }
  }
}

TEST_P(Coded, TheLongestSumOfTheLargestCodesFits) {
  const MatrixLayout layout(moe::format_of("int8"), width, MatrixLayout::most_in_group);
  const auto& kernels = moe::kernels::coded_kernels(layout.format);
  AlignedBuffer<std::byte> bytes(static_cast<std::size_t>(layout.bytes()));
  for (Index o = 0; o < width; ++o) {
    const int code = o % 2 == 0 ? -128 : 127;
    const CodedOutput output{
        .codes = std::vector<std::uint16_t>(static_cast<std::size_t>(layout.inner),
                                            static_cast<std::uint8_t>(code)),
        .scales = {},
        .zeros = {}};
    moe::detail::put_output(layout, o, output, bytes.data());
  }
  for (const float value : {1.0F, -1.0F}) {  // Their codes are 127 and -127.
    const std::vector<float> x(static_cast<std::size_t>(layout.inner), value);
    AlignedBuffer<float> memory(static_cast<std::size_t>(moe::detail::coded_row_size(layout)));
    const moe::detail::CodedBlock block(layout, memory.data(), 1);
    block.put(kernels, layout, 0, x.data(), 1, layout.inner);
    AlignedBuffer<float> sums(width);
    kernels.of_rows[0](block.rows(), bytes.data(), layout.groups, layout.group / 4, sums.data(),
                       {reinterpret_cast<const char*>(bytes.data())});
    for (Index o = 0; o < width; ++o) {
      const double expected = (o % 2 == 0 ? -128.0 : 127.0) * static_cast<double>(value) *
                              static_cast<double>(layout.inner);
      ASSERT_NEAR(sums.data()[o], expected, 4e-7 * std::fabs(expected)) << "output " << o;
    }
  }
}

/// The bytes of whole panels of drawn outputs.
AlignedBuffer<std::byte> draw_panels(const MatrixLayout& layout, std::uint64_t seed) {
  AlignedBuffer<std::byte> bytes(static_cast<std::size_t>(layout.bytes()));
  Draw draw(seed);
  for (Index o = 0; o < layout.panels * width; ++o)
    moe::detail::put_output(layout, o, draw_output(layout, draw), bytes.data());
  return bytes;
}

TEST_P(Coded, PanelsSideBySideGiveTheBitsOfEachAlone) {
  for (const WeightFormat format : moe::weight_formats) {
    if (!moe::has_integer_products(format)) continue;
    const auto& kernels = moe::kernels::coded_kernels(format);
    ASSERT_EQ(kernels.side_panels > 0, kernels.side_by_side != nullptr);
    if (kernels.side_panels == 0) continue;
    constexpr Index inner = 270;
    const Index panels = kernels.side_panels;
    const MatrixLayout layout(format, panels * width, inner);
    const AlignedBuffer<std::byte> bytes = draw_panels(layout, 9);
    const std::vector<float> x = activations(1, inner, 10);
    AlignedBuffer<float> memory(static_cast<std::size_t>(moe::detail::coded_row_size(layout)));
    const moe::detail::CodedBlock block(layout, memory.data(), 1);
    block.put(kernels, layout, 0, x.data(), 1, inner);
    AlignedBuffer<float> together(static_cast<std::size_t>(panels * width));
    kernels.side_by_side(block.rows(), bytes.data(), layout.panel_bytes, layout.groups,
                         layout.group / 4, together.data());
    AlignedBuffer<float> alone(width);
    for (Index p = 0; p < panels; ++p) {
      const std::byte* const panel = bytes.data() + layout.panel_offset(p);
      kernels.of_rows[0](block.rows(), panel, layout.groups, layout.group / 4, alone.data(),
                         {reinterpret_cast<const char*>(panel)});
      for (Index o = 0; o < width; ++o)
        ASSERT_EQ(together.data()[p * width + o], alone.data()[o])
            << moe::format_name(format) << ", panel " << p << ", output " << o;
    }
  }
}

/// Sums (rows, 32) of one panel as decoded weights give them, group by group where scales multiply
/// sums.
std::vector<float> sums_of_decoded(const MatrixLayout& layout, const std::byte* record,
                                   const float* outputs, const std::vector<float>& x, Index rows) {
  const auto& kernels = moe::kernels::coded_kernels(layout.format);
  const auto& tiles = moe::kernels::tile_kernels<float, float>();
  const bool scales_sums = kernels.add_group != nullptr;
  const Index slice = scales_sums ? layout.group : layout.inner;
  AlignedBuffer<float> weights(static_cast<std::size_t>(moe::detail::whole_inner(layout) * width));
  kernels.decode(record, outputs, layout.groups, layout.group, weights.data());
  AlignedBuffer<float> of_slice(static_cast<std::size_t>(rows * width));
  AlignedBuffer<float> sums(static_cast<std::size_t>(rows * width));
  const Index record_bytes = layout.record_offset(0, 1) - layout.record_offset(0, 0);
  for (Index k = 0; k < layout.inner; k += slice) {
    const float* const from = weights.data() + k * width;
    tiles.of_rows[rows - 1](x.data() + k * rows, from, std::min(slice, layout.inner - k),
                            scales_sums ? of_slice.data() : sums.data(), false,
                            reinterpret_cast<const char*>(from), 0);
    if (scales_sums)
      kernels.add_group(of_slice.data(), record + k / slice * record_bytes, rows, sums.data());
  }
  return {sums.data(), sums.data() + rows * width};
}

/// One small code of e4m3, the `which`-th of 16, at a place, and with `has_neighbours` on both
/// sides of it; no other small ones.
void leave_one_small(std::vector<std::uint16_t>& codes, Index place, unsigned which,
                     bool has_neighbours) {
  const auto small = static_cast<std::uint16_t>(which % 8 | which / 8 << 7U);
  for (std::size_t k = 0; k < codes.size(); ++k) {
    const Index distance = std::abs(static_cast<Index>(k) - place);
    if (distance == 0 || (has_neighbours && distance == 1)) {
      codes[k] = small;
    } else if ((codes[k] & 0x78U) == 0) {
      codes[k] = static_cast<std::uint16_t>(codes[k] | 8U);
    }
  }
}

/// Some levels widen lines of codes without small ones faster: two turns have many of them, and
/// then every small code is among the others once, and once more with neighbours.
void expect_widened_bits_of_decoded(Index inner) {
  constexpr Index panels = 4;
  constexpr unsigned small_codes = 16;
  for (const WeightFormat format : moe::weight_formats) {
    const auto& kernels = moe::kernels::coded_kernels(format);
    const MatrixLayout layout(format, panels * width, inner);
    const bool is_wide =
        moe::active_isa() == moe::Isa::avx512 || moe::active_isa() == moe::Isa::avx512_vnni;
    const bool is_e4m3 = format.code == WeightCode::fp8_e4m3;
    ASSERT_EQ(kernels.widened_pair.panels, is_wide && is_e4m3 ? 2 : 0);
    ASSERT_EQ(kernels.widened_side_by_side.panels, is_wide ? 4 : 0);
    Draw draw(21);
    for (unsigned turn = 0; turn < (is_e4m3 ? 2 + 2 * small_codes : 2); ++turn) {
      SCOPED_TRACE(moe::format_name(format) + ", turn " + std::to_string(turn));
      AlignedBuffer<std::byte> bytes(static_cast<std::size_t>(layout.bytes()));
      const Index place = draw.below(static_cast<unsigned>(panels * width * inner));
      for (Index o = 0; o < panels * width; ++o) {
        CodedOutput output = draw_output(layout, draw);
        if (turn >= 2)
          leave_one_small(output.codes, place - o * inner, (turn - 2) % small_codes,
                          turn - 2 >= small_codes);
        moe::detail::put_output(layout, o, output, bytes.data());
      }
      const auto record = [&](Index p) { return bytes.data() + layout.record_offset(p, 0); };
      const auto outputs_of = [&](Index p) {
        return layout.header_bytes == 0
                   ? nullptr
                   : reinterpret_cast<const float*>(bytes.data() + layout.panel_offset(p));
      };
      const auto expect_sums = [&](const float* sums, Index p, const std::vector<float>& x,
                                   Index rows) {
        const std::vector<float> expected =
            sums_of_decoded(layout, record(p), outputs_of(p), x, rows);
        for (Index i = 0; i < rows * width; ++i)
          ASSERT_EQ(sums[i], expected[static_cast<std::size_t>(i)])
              << rows << " rows, panel " << p << ", sum " << i;
      };
      for (const Index rows : {1, 2}) {
        const std::vector<float> x = activations(rows, inner, turn);
        for (Index p = 0; p < panels; ++p) {
          AlignedBuffer<float> sums(static_cast<std::size_t>(rows * width));
          kernels.widened[rows - 1](x.data(), record(p), outputs_of(p), inner, layout.group,
                                    sums.data());
          ASSERT_NO_FATAL_FAILURE(expect_sums(sums.data(), p, x, rows));
        }
      }
      const std::vector<float> x = activations(1, inner, turn);
      for (const auto& side : {kernels.widened_side_by_side, kernels.widened_pair}) {
        ASSERT_EQ(side.panels > 0, side.product != nullptr);
        for (Index p = 0; side.panels > 0 && p < panels; p += side.panels) {
          AlignedBuffer<float> together(static_cast<std::size_t>(side.panels * width));
          side.product(x.data(), record(p), outputs_of(p), layout.panel_bytes, inner, layout.group,
                       together.data());
          for (Index q = 0; q < side.panels; ++q)
            ASSERT_NO_FATAL_FAILURE(expect_sums(together.data() + q * width, p + q, x, 1));
        }
      }
    }
  }
}

TEST_P(Coded, WidenedProductsHaveTheBitsOfDecodedWeights) {
  for (const Index inner : {1, 127, 128, 270, 271}) {
    SCOPED_TRACE(inner);
    expect_widened_bits_of_decoded(inner);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Coded, ARowsBitsDoNotDependOnTheOtherRows) {
  for (const WeightFormat format : moe::weight_formats) {
    if (!moe::has_integer_products(format)) continue;
    const Panel panel(format, 270, 7);
    const MatrixLayout& layout = panel.layout;
    const auto& kernels = moe::kernels::coded_kernels(format);
    const std::vector<float> x = activations(1, 270, 8);
    std::vector<float> first;
    for (Index rows = 1; rows <= kernels.most_rows; ++rows) {
      // In a block of twice as many rows, of which the second half is multiplied.
      AlignedBuffer<float> memory(
          static_cast<std::size_t>(2 * rows * moe::detail::coded_row_size(layout)));
      const moe::detail::CodedBlock block(layout, memory.data(), 2 * rows);
      for (Index r = 0; r < 2 * rows; ++r) block.put(kernels, layout, r, x.data(), 1, 270);
      AlignedBuffer<float> sums(static_cast<std::size_t>(rows * width));
      // Whatever is asked for.
      kernels.of_rows[rows - 1](block.rows().from(rows), panel.bytes.data(), layout.groups,
                                layout.group / 4, sums.data(),
                                {reinterpret_cast<const char*>(panel.bytes.data()),
                                 rows % 2 == 0 ? 512 : 0, rows % 3 == 0 ? 64 : 0});
      if (first.empty()) first.assign(sums.data(), sums.data() + width);
      for (Index r = 0; r < rows; ++r)
        EXPECT_TRUE(std::equal(first.begin(), first.end(), sums.data() + r * width))
            << moe::format_name(format) << ", " << rows << " rows";
    }
  }
}

/// The codes and scales of one row.
struct CodedRow {
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
  std::vector<float> excesses;
  std::vector<std::int32_t> starts;
  std::vector<float> sums;

  CodedRow(const std::vector<float>& x, Index group, float factor = 1)
      : codes(static_cast<std::size_t>((static_cast<Index>(x.size()) + group - 1) / group * group)),
        scales(codes.size() / static_cast<std::size_t>(group)),
        excesses(scales.size()),
        starts(scales.size()),
        sums(scales.size()) {
    moe::kernels::coded_kernels({WeightCode::int8, 32})
        .code_row(x.data(), factor, static_cast<Index>(x.size()), group,
                  static_cast<Index>(scales.size()), 3,
                  {codes.data(), scales.data(), excesses.data(), starts.data(), sums.data(), 1});
  }
};

TEST_P(Coded, RowsAreRoundedToNearestWithTiesToEven) {
  // With 127 the largest, codes are the values themselves.
  std::vector<float> x(32, 0);
  const std::vector<float> given{127, -127, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F, 126.5F, 0.49F, -3.51F};
  std::copy(given.begin(), given.end(), x.begin());
  const CodedRow row(x, 32);
  const std::vector<std::int8_t> expected{127, -127, 0, 2, 2, 0, -2, 126, 0, -4};
  for (std::size_t i = 0; i < given.size(); ++i) EXPECT_EQ(row.codes[i], expected[i]) << i;
  EXPECT_EQ(row.scales[0], 1);
  const int sum = 0 + 2 + 2 + 0 - 2 + 126 + 0 - 4;
  EXPECT_EQ(row.starts[0], 3 * sum + moe::kernels::sum_excess_bits);
  EXPECT_EQ(row.excesses[0], -moe::kernels::sum_excess);
  EXPECT_EQ(row.sums[0], static_cast<float>(sum));
}

TEST_P(Coded, RowsOfAnyLengthAreFilledUpWithZeros) {
  for (const Index size : {1, 3, 4, 5, 17, 30, 33, 64, 70, 97}) {
    const std::vector<float> x = activations(1, size, 9);
    for (const Index group : {Index{32}, Index{64}, (size + 3) / 4 * 4}) {
      const CodedRow row(x, group, 2);
      for (std::size_t i = 0; i < row.codes.size(); ++i) {
        const std::size_t g = i / static_cast<std::size_t>(group);
        const float value = i < x.size() ? 2 * x[i] : 0;
        EXPECT_NEAR(static_cast<float>(row.codes[i]) * row.scales[g], value,
                    0.5001F * row.scales[g])
            << size << ", groups of " << group << ", at " << i;
      }
    }
  }
}

TEST_P(Coded, WhatIsNotFiniteMakesItsGroupSo) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
    std::vector<float> x(64, 1);
    x[40] = bad;
    const CodedRow row(x, 32);
    EXPECT_EQ(row.scales[0], scale_of_row(1, true));
    EXPECT_FALSE(std::isfinite(row.scales[1]));
  }
  std::vector<float> tiny(32, 1e-31F);
  const CodedRow row(tiny, 32);
  for (const std::int8_t code : row.codes) EXPECT_EQ(code, 0);
}

}  // namespace coded_test
