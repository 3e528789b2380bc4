// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/aligned_buffer.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/experts/quantized_experts.hpp>
#include <moe/layer/sparse_moe.hpp>
#include <moe/routing/plan.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/layers.hpp"
#include "support/levels.hpp"
#include "support/memory.hpp"
#include "support/threads.hpp"

namespace quantized_experts_test {

using moe::ExpertsConfig;
using moe::Index;
using moe::Matrix;
using moe::ProductKind;
using moe::WeightFormat;
using test_support::random_matrix;
using Floats = moe::FeedForwardExperts<float, moe::SwiGlu>;
using Quantized = moe::QuantizedExperts<moe::SwiGlu>;

constexpr ExpertsConfig odd{.num_experts = 3, .d_model = 135, .d_ff = 75, .biases = true};

/// The bank of floats that the codes say.
template <class Activation>
moe::FeedForwardExperts<float, Activation> widened(const moe::QuantizedExperts<Activation>& bank) {
  moe::FeedForwardExperts<float, Activation> floats(bank.config(), bank.activation());
  for (Index e = 0; e < bank.num_experts(); ++e) {
    const moe::ExpertMatrices<float> matrices = bank.expert(e);
    floats.set_expert(e, matrices.weights());
  }
  return floats;
}

template <class Bank>
Bank quantized(const moe::FeedForwardExperts<float, moe::SwiGlu>& floats, WeightFormat format,
               moe::ScaleSearch search = moe::ScaleSearch::nearest) {
  ExpertsConfig config{.num_experts = floats.num_experts(),
                       .d_model = floats.d_model(),
                       .d_ff = floats.d_ff(),
                       .biases = floats.has_biases()};
  Bank bank(config, moe::ExpertFormat{format, format});
  for (Index e = 0; e < bank.num_experts(); ++e) {
    const moe::ExpertMatrices<float> matrices = floats.expert(e);
    bank.set_expert(e, matrices.weights(), {.search = search});
  }
  return bank;
}

/// What a bank gives for tokens that all go to two experts: rows of the plan.
template <class Bank>
Matrix<float> run(const Bank& bank, const Matrix<float>& x, Matrix<float>* weights = nullptr) {
  moe::Routing<float> routing;
  routing.resize(x.rows(), bank.num_experts(), 2, {});
  routing.weights.setOnes();
  for (Index t = 0; t < x.rows(); ++t) {
    routing.experts(t, 0) = static_cast<moe::ExpertIndex>(t % 2);
    routing.experts(t, 1) = 2;
  }
  moe::DispatchPlan plan;
  moe::make_plan(routing, {}, plan);
  Matrix<float> rows(plan.num_rows(), bank.d_model());
  moe::Scratch scratch;
  moe::ExpertInput<float> input{x, plan};
  if (weights != nullptr) input.scales = *weights;
  bank.forward(input, rows, scratch);
  Matrix<float> by_token(2 * x.rows(), bank.d_model());
  for (Index i = 0; i < 2 * x.rows(); ++i)
    by_token.row(i) = rows.row(plan.row_of[static_cast<std::size_t>(i)]);
  return by_token;
}

/// What rounding the ends of groups apart makes of a result, as a part of its size.
constexpr double rounding_of_sums = 5e-7;

/// The bits of a bank of floats; where scales multiply sums, its values but for rounding.
void expect_floats(WeightFormat format, const Matrix<float>& result,
                   const Matrix<float>& expected) {
  if (moe::detail::traits_of(format).scales_sums) {
    EXPECT_LT((result - expected).norm(), rounding_of_sums * expected.norm());
  } else {
    EXPECT_EQ(result, expected);
  }
}

class QuantizedExperts : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(QuantizedExperts);

TEST_P(QuantizedExperts, WidenedProductsHaveTheBitsOfFloats) {
  const Floats floats = test_support::random_bank<Floats>(odd, 5);
  for (const WeightFormat format : moe::weight_formats) {
    SCOPED_TRACE(moe::format_name(format));
    Quantized bank = quantized<Quantized>(floats, format);
    bank.set_product(ProductKind::widened);
    const auto same = widened(bank);
    for (const Index tokens : {1, 2, 9, 40}) {
      const Matrix<float> x = random_matrix<float>(tokens, odd.d_model, 7);
      SCOPED_TRACE(tokens);
      expect_floats(format, run(bank, x), run(same, x));
    }
  }
}

TEST_P(QuantizedExperts, IntegerProductsAgreeWithFloatsOnCodedActivations) {
  const Floats floats = test_support::random_bank<Floats>(odd, 5);
  for (const WeightFormat format : moe::weight_formats) {
    if (!moe::has_integer_products(format)) continue;
    SCOPED_TRACE(moe::format_name(format));
    const Quantized bank = quantized<Quantized>(floats, format);
    const auto same = widened(bank);
    for (const Index tokens : {1, 2, 9, 40}) {
      const Matrix<float> x = random_matrix<float>(tokens, odd.d_model, 7);
      const Matrix<float> expected = run(same, x);
      const double error = (run(bank, x) - expected).norm() / expected.norm();
      EXPECT_LT(error, 0.015) << tokens << " tokens";
      EXPECT_GT(error, 0) << tokens << " tokens";
    }
  }
}

TEST_P(QuantizedExperts, ATokensBitsDoNotDependOnTheOthersNorOnThreads) {
  const Floats floats = test_support::random_bank<Floats>(odd, 5);
  const Matrix<float> x = random_matrix<float>(40, odd.d_model, 7);
  for (const WeightFormat format : moe::weight_formats) {
    for (const ProductKind kind : {ProductKind::integer, ProductKind::widened}) {
      SCOPED_TRACE(moe::format_name(format));
      Quantized bank = quantized<Quantized>(floats, format);
      bank.set_product(kind);
      Matrix<float> all;
      for (const int threads : test_support::thread_counts) {
        const test_support::ScopedThreads scope(threads);
        const Matrix<float> now = run(bank, x);
        if (all.size() == 0) all = now;
        EXPECT_EQ(now, all) << threads << " threads";
      }
      // Alone, in few, in many: tokens 0, 2, ... have the same experts as token 0.
      for (const Index count : {1, 3, 20}) {
        const Matrix<float> some = run(bank, x.topRows(count).eval());
        EXPECT_EQ(some, all.topRows(2 * count)) << count << " tokens";
      }
    }
  }
}

/// More than one chunk has room for, of widened products as of integer ones.
TEST(QuantizedBank, AThousandRowsOfAnExpertHaveTheBitsOfTwo) {
  const test_support::ThirdLevelCache small(1 << 17);
  const Floats floats = test_support::random_bank<Floats>(odd, 5);
  const Matrix<float> x = random_matrix<float>(1000, odd.d_model, 7);
  for (const char* format : {"int8", "int4-g32", "fp8", "bf16"}) {
    for (const ProductKind kind : {ProductKind::integer, ProductKind::widened}) {
      if (kind == ProductKind::integer && !moe::has_integer_products(moe::format_of(format)))
        continue;
      SCOPED_TRACE(std::string(format) + (kind == ProductKind::integer ? ", integer" : ""));
      Quantized bank = quantized<Quantized>(floats, moe::format_of(format));
      bank.set_product(kind);
      const Matrix<float> all = run(bank, x);
      for (const Index first : {0, 894, 896, 998})
        EXPECT_EQ(all.middleRows(2 * first, 4), run(bank, x.middleRows(first, 2))) << first;
    }
  }
}

TEST(QuantizedBank, EveryExpertMayHaveFormatsOfItsOwn) {
  const Floats floats = test_support::random_bank<Floats>(odd, 5);
  const auto format = [](const char* name) { return moe::format_of(name); };
  const std::vector<moe::ExpertFormat> formats{{format("int8"), format("int4-g32")},
                                               {format("fp8"), format("mxfp4")},
                                               {format("nl4-g64"), format("bf16")}};
  Quantized bank(odd, formats);
  for (Index e = 0; e < 3; ++e) {
    const moe::ExpertMatrices<float> matrices = floats.expert(e);
    bank.set_expert(e, matrices.weights());
    EXPECT_EQ(bank.format(e), formats[static_cast<std::size_t>(e)]);
  }
  const Matrix<float> x = random_matrix<float>(30, odd.d_model, 7);
  const auto same = widened(bank);
  const Matrix<float> expected = run(same, x);
  EXPECT_LT((run(bank, x) - expected).norm(), 0.015 * expected.norm());
  bank.set_product(ProductKind::widened);
  const Matrix<float> result = run(bank, x);
  for (Index t = 0; t < x.rows(); ++t) {  // Row 2 t is that of expert t % 2, the next of expert 2.
    const auto its = [&](const Matrix<float>& rows, Index i) { return rows.row(2 * t + i).eval(); };
    expect_floats(formats[static_cast<std::size_t>(t % 2)].up, its(result, 0), its(expected, 0));
    expect_floats(formats[2].up, its(result, 1), its(expected, 1));
  }
}

TEST(QuantizedBank, OfPlainExpertsAndInALayerWithWeightsOnInputs) {
  using Plain = moe::FeedForwardExperts<float, moe::Relu>;
  const ExpertsConfig sizes{.num_experts = 3, .d_model = 64, .d_ff = 70, .biases = true};
  const Plain floats = test_support::random_bank<Plain>(sizes, 5);
  moe::QuantizedExperts<moe::Relu> bank(sizes,
                                        {moe::format_of("int8-g32"), moe::format_of("int8")});
  for (Index e = 0; e < 3; ++e) {
    const moe::ExpertMatrices<float> matrices = floats.expert(e);
    bank.set_expert(e, matrices.weights());
  }
  const Matrix<float> x = random_matrix<float>(33, 64, 7);
  Matrix<float> weights = random_matrix<float>(33, 2, 8);
  const auto same = widened(bank);
  const Matrix<float> expected = run(same, x, &weights);
  EXPECT_LT((run(bank, x, &weights) - expected).norm(), 0.015 * expected.norm());
  bank.set_product(ProductKind::widened);
  EXPECT_EQ(run(bank, x, &weights), expected);
}

template <class T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

/// MatrixLayout's description, in numbers: where code k of outputs 7 and 51 lies, and how, for each
/// kind of code.
TEST(QuantizedBank, LiesInMemoryAsItIsDocumented) {
  constexpr Index inner = 140;  // Groups of 32, 64 and 128 that are not full.
  for (const WeightFormat format : moe::weight_formats) {
    SCOPED_TRACE(moe::format_name(format));
    using moe::WeightCode;
    const WeightCode code = format.code;
    const bool has_header =
        code == WeightCode::nl4 || (code == WeightCode::int8 && format.group == 0);
    const bool has_halves = (code == WeightCode::int8 && format.group != 0) ||
                            code == WeightCode::int4 || code == WeightCode::int4_zeros;
    const bool has_bytes = code == WeightCode::nl4 || code == WeightCode::mxfp4;
    const bool has_floats = code == WeightCode::fp8_e4m3 || code == WeightCode::fp8_e5m2;
    const bool has_zeros = code == WeightCode::int4_zeros;
    const bool has_words = code == WeightCode::bfloat16 || code == WeightCode::half;
    const bool in_rows = has_floats || has_words;  // (inner, 32)
    const bool in_bytes = code == WeightCode::int8;
    const Index group = format.group == 0 ? inner : format.group;
    const Index groups = (inner + group - 1) / group;
    const Index scales = has_halves ? 64 : has_floats ? 128 : has_bytes ? 32 : 0;
    const Index zeros = has_zeros ? 32 : 0;
    const Index codes = has_words ? 64 * group : in_rows || in_bytes ? 32 * group : 16 * group;
    const moe::MatrixLayout layout(format, 64, inner);
    std::vector<std::byte> bytes(static_cast<std::size_t>(layout.bytes()));
    constexpr Index o = 19;  // the second panel's output 51: in the upper half of bytes
    for (const Index column : {Index{7}, 32 + o}) {
      moe::CodedOutput output;
      for (Index k = 0; k < inner; ++k) {
        const auto number = static_cast<std::uint16_t>(31 * k + 5 * column);
        output.codes.push_back(has_words             ? number
                               : in_rows || in_bytes ? static_cast<std::uint16_t>(number % 256)
                                                     : static_cast<std::uint16_t>(number % 16));
      }
      for (Index g = 0; g < groups && scales > 0; ++g)
        output.scales.push_back(static_cast<float>(Index{1} << (g + column % 3)));
      for (Index g = 0; g < groups && has_zeros; ++g)
        output.zeros.push_back(static_cast<std::uint8_t>((3 * g + column) % 16));
      output.output_scale = has_header ? 0.75F : 1;
      moe::detail::put_output(layout, column, output, bytes.data());
      const Index c = column % 32;
      const std::byte* const panel = bytes.data() + column / 32 * layout.panel_bytes;
      const std::byte* record = panel;
      if (has_header) {
        EXPECT_EQ(read<float>(panel + 4 * c), 0.75F);
        record += 128;
      }
      for (Index g = 0; g < groups; ++g, record += scales + zeros + codes) {
        const float scale = scales > 0 ? output.scales[static_cast<std::size_t>(g)] : 0;
        const auto at = static_cast<std::size_t>(g);
        if (has_halves) {
          EXPECT_EQ(read<std::uint16_t>(record + 2 * c), moe::float_to_half(scale));
        } else if (has_floats) {
          EXPECT_EQ(read<float>(record + 4 * c), scale);
        } else if (code == WeightCode::nl4) {
          EXPECT_EQ(static_cast<float>(record[c]), scale);
        } else if (code == WeightCode::mxfp4) {
          EXPECT_EQ(std::ldexp(1.0F, static_cast<int>(record[c]) - 127), scale);
        }
        if (has_zeros) {
          EXPECT_EQ(static_cast<std::uint8_t>(record[scales + c]), output.zeros[at]);
        }
        const std::byte* const first = record + scales + zeros;
        for (Index k = 0; k < group && g * group + k < inner; ++k) {
          unsigned found = 0;
          if (has_words) {
            found = read<std::uint16_t>(first + 2 * (32 * k + c));
          } else if (in_rows) {
            found = static_cast<unsigned>(first[32 * k + c]);
          } else if (in_bytes) {
            found = static_cast<unsigned>(first[k / 4 * 128 + 4 * c + k % 4]);
          } else {
            const auto both = static_cast<unsigned>(first[k / 4 * 64 + 4 * (c % 16) + k % 4]);
            found = c < 16 ? both & 15U : both >> 4U;
          }
          ASSERT_EQ(found, output.codes[static_cast<std::size_t>(g * group + k)])
              << "column " << column << ", inner " << g * group + k;
        }
      }
    }
  }
}

/// A gated expert's first matrix: 16 outputs of the gate, then the same 16 of up, in every panel.
TEST(QuantizedBank, GateAndUpAlternateBySixteen) {
  Quantized bank({.num_experts = 1, .d_model = 32, .d_ff = 40},
                 {moe::format_of("int8"), moe::format_of("int8")});
  const auto outputs = [](Index inner, int first) {
    return [=](Index o) {
      return moe::CodedOutput{.codes = std::vector<std::uint16_t>(
                                  static_cast<std::size_t>(inner),
                                  static_cast<std::uint16_t>(first + static_cast<int>(o))),
                              .scales = {},
                              .zeros = {}};
    };
  };
  bank.set_expert_codes(0, {outputs(32, 1), outputs(32, 65), outputs(40, 1)});
  const Index panel_bytes = 128 + 32 * 32;
  for (Index o = 0; o < 40; ++o) {
    const std::byte* const panel = bank.expert_bytes(0).data() + o / 16 * panel_bytes + 128;
    EXPECT_EQ(static_cast<Index>(panel[4 * (o % 16)]), 1 + o);
    EXPECT_EQ(static_cast<Index>(panel[4 * (16 + o % 16)]), 65 + o);
  }
}

TEST(QuantizedBank, CopiesShareTheirWeightsUntilOneIsChanged) {
  const Floats floats = test_support::random_bank<Floats>(odd, 5);
  const Quantized bank = quantized<Quantized>(floats, moe::format_of("int4-g32"));
  Quantized copy = bank;
  EXPECT_EQ(copy.expert_bytes(0).data(), bank.expert_bytes(0).data());
  const std::vector<std::byte> before(bank.expert_bytes(1).begin(), bank.expert_bytes(1).end());
  copy.set_expert_bytes(1, bank.expert_bytes(2));
  EXPECT_TRUE(std::equal(before.begin(), before.end(), bank.expert_bytes(1).begin()));
  EXPECT_EQ(copy.expert(1).up, bank.expert(2).up);
  EXPECT_EQ(copy.expert(0).up, bank.expert(0).up);
}

TEST(QuantizedBank, TakesAnExpertOfTheMemoryThatItLetsGo) {
  const Quantized bank =
      quantized<Quantized>(test_support::random_bank<Floats>(odd, 5), moe::format_of("int4-g32"));
  // All experts in memory that nobody but the bank keeps.
  auto owner = std::make_shared<std::vector<moe::AlignedBuffer<std::byte>>>();
  std::vector<const std::byte*> experts;
  for (Index e = 0; e < odd.num_experts; ++e) {
    const auto bytes = bank.expert_bytes(e);
    owner->emplace_back(bytes.size());
    std::copy(bytes.begin(), bytes.end(), owner->back().data());
    experts.push_back(owner->back().data());
  }
  Quantized viewed(odd, std::vector<moe::ExpertFormat>(experts.size(), bank.format(0)), experts,
                   std::move(owner));
  viewed.set_expert_bytes(1, viewed.expert_bytes(2));
  EXPECT_EQ(viewed.expert(1).up, bank.expert(2).up);
  EXPECT_EQ(viewed.expert(2).up, bank.expert(2).up);
}

TEST(QuantizedBank, TakesTwentyFourGigabytesForMixtralInFourBits) {
  const WeightFormat format = moe::format_of("int4-g64");
  const moe::ExpertLayout one({.num_experts = 8, .d_model = 4096, .d_ff = 14336}, true,
                              {format, format});
  EXPECT_EQ(8 * one.bytes(), 748683264) << "the README says so of one of 32 layers";
}

TEST(QuantizedBank, RefusesWhatDoesNotFit) {
  const moe::ExpertFormat format{};
  EXPECT_THROW(Quantized({.num_experts = 0, .d_model = 8, .d_ff = 8}, format),
               std::invalid_argument);
  EXPECT_THROW(Quantized({.num_experts = 1, .d_model = 8, .d_ff = -8}, format),
               std::invalid_argument);
  EXPECT_THROW(
      Quantized({.num_experts = 2, .d_model = 8, .d_ff = 8}, std::vector<moe::ExpertFormat>(3)),
      moe::ShapeError);
  EXPECT_THROW(
      Quantized({.num_experts = 1, .d_model = 8, .d_ff = 8},
                moe::ExpertFormat{{moe::WeightCode::int4, 16}, {moe::WeightCode::int4, 32}}),
      std::invalid_argument);
  Quantized bank({.num_experts = 1, .d_model = 8, .d_ff = 4}, format);
  Matrix<float> up = random_matrix<float>(4, 8, 1);
  const Matrix<float> down = random_matrix<float>(8, 4, 1);
  EXPECT_THROW(bank.set_expert(1, {.gate = up, .up = up, .down = down}), std::invalid_argument);
  EXPECT_THROW(bank.set_expert(0, {.gate = up, .up = down, .down = down}), moe::ShapeError);
  EXPECT_THROW(bank.set_expert(0, {.up = up, .down = down}), moe::ShapeError);
  const std::vector<float> importance(3, 1);
  EXPECT_THROW(
      bank.set_expert(0, {.gate = up, .up = up, .down = down}, {.up_importance = importance}),
      moe::ShapeError);
  EXPECT_THROW(bank.set_expert_bytes(0, bank.expert_bytes(0).first(1)), moe::ShapeError);
  up(1, 1) = std::numeric_limits<float>::infinity();
  EXPECT_THROW(bank.set_expert(0, {.gate = up, .up = up, .down = down}), std::invalid_argument);
  EXPECT_THROW(Quantized(bank.config(), {format}, {bank.expert_bytes(0).data()}, nullptr),
               std::invalid_argument)
      << "nobody's memory";
  const auto owner = std::make_shared<int>(0);
  EXPECT_THROW(Quantized(bank.config(), {format}, {}, owner), moe::ShapeError);
  const Index most = moe::MatrixLayout::most_in_group;
  EXPECT_NO_THROW(moe::MatrixLayout(moe::format_of("int8"), 32, most));
  EXPECT_THROW(moe::MatrixLayout(moe::format_of("int8"), 32, most + 1), std::invalid_argument);
  EXPECT_NO_THROW(moe::MatrixLayout(moe::format_of("int8-g128"), 32, most + 1));
}

TEST(QuantizedBank, RefusesCodesAndScalesThatAreNoNumbers) {
  struct Case {
    const char* format;
    std::uint16_t code;
    float scale;
    bool is_right;
  };
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Case& at : {Case{"fp8", 0x7e, 1, true},
                         Case{"fp8", 0x7f, 1, false},
                         Case{"fp8", 0xff, 1, false},
                         Case{"fp8", 0x7e, 0x1p120F, false},
                         Case{"fp8", 0x38, 0x1p119F, true},
                         Case{"fp8", 0x38, 0x1p120F, false},
                         Case{"fp8", 0, infinity, false},
                         Case{"fp8-e5m2", 0x7b, 1, true},
                         Case{"fp8-e5m2", 0x7c, 1, false},
                         Case{"fp8-e5m2", 0xfe, 1, false},
                         Case{"bf16", 0x7f7f, 1, true},
                         Case{"bf16", 0x7f80, 1, false},
                         Case{"f16", 0x7bff, 1, true},
                         Case{"f16", 0xfe00, 1, false},
                         Case{"mxfp4", 1, 0x1p127F, true},
                         Case{"mxfp4", 7, 0x1p127F, false},
                         Case{"mxfp4", 1, 0.75F, false},
                         Case{"mxfp4", 1, -1, false},
                         Case{"int8-g32", 1, -infinity, false},
                         Case{"int8-g32", 1, 65504, true},
                         Case{"int8-g32", 1, 1e6F, false},
                         Case{"int8-g32", 1, 1e-9F, false},
                         Case{"int8-g32", 0x100, 1, false},
                         Case{"int4-g32", 15, 1, true},
                         Case{"int4-g32", 16, 1, false},
                         Case{"int4-g32", 8, NAN, false},
                         Case{"nl4-g32", 8, 255, true},
                         Case{"nl4-g32", 8, 256, false},
                         Case{"nl4-g32", 8, -1, false}}) {
    const WeightFormat format = moe::format_of(at.format);
    Quantized bank({.num_experts = 1, .d_model = 40, .d_ff = 32},
                   moe::ExpertFormat{format, format});
    const auto codes = [&](Index inner, bool is_good, std::uint16_t code) {
      return [&, inner, is_good, code](Index o) {
        const moe::MatrixLayout layout(format, 32, inner);
        moe::CodedOutput output;
        output.codes.assign(static_cast<std::size_t>(inner), code);
        if (layout.scale_bytes > 0)
          output.scales.assign(static_cast<std::size_t>(layout.groups), 1);
        if (is_good || o != 5) return output;
        output.codes[37] = at.code;  // in the last group
        if (!output.scales.empty()) output.scales.back() = at.scale;
        return output;
      };
    };
    bank.set_expert_codes(0, {codes(40, true, 1), codes(40, true, 1), codes(32, true, 1)});
    const auto bytes = bank.expert_bytes(0);
    const std::vector<std::byte> before(bytes.begin(), bytes.end());
    const auto set = [&] {
      bank.set_expert_codes(0, {codes(40, true, 0), codes(40, false, 0), codes(32, true, 0)});
    };
    if (at.is_right) {
      EXPECT_NO_THROW(set()) << at.format << ", code " << at.code;
      EXPECT_TRUE(bank.expert(0).up.allFinite());
    } else {
      EXPECT_THROW(set(), std::invalid_argument) << at.format << ", code " << at.code;
      EXPECT_TRUE(std::equal(before.begin(), before.end(), bytes.begin())) << "it stays as it was";
    }
  }
}

}  // namespace quantized_experts_test
