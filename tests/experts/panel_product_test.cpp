// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Products with a storage that is no array of weights, two of which share a byte; panels side by
// side.
#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/aligned_buffer.hpp>
#include <moe/core/packed_matrices.hpp>
#include <moe/core/types.hpp>
#include <moe/core/view.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/experts/panel_product.hpp>
#include <moe/experts/quantized_experts.hpp>
#include <moe/experts/staged_bank.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/layer/sparse_moe.hpp>
#include <moe/routing/topk_router.hpp>

#include "support/levels.hpp"
#include "support/memory.hpp"
#include "support/threads.hpp"

namespace panel_product_test {

using moe::Index;
using moe::Matrix;
constexpr Index width = moe::kernels::panel_width;

/// The weights of inner rows k and k + 1, -8 to 7 each.
struct Nibbles {
  std::uint8_t both;
};

int nibble(Nibbles value, Index k) {
  return static_cast<int>(k % 2 == 0 ? value.both & 15 : value.both >> 4) - 8;
}

void tile_of_nibbles(const float* a, const Nibbles* panel, Index rows, std::ptrdiff_t inner,
                     float* sums, bool resume) {
  for (Index r = 0; r < rows; ++r) {
    for (Index o = 0; o < width; ++o) {
      float sum = resume ? sums[r * width + o] : 0;
      for (Index k = 0; k < inner; ++k)
        sum += a[k * rows + r] * static_cast<float>(nibble(panel[k / 2 * width + o], k));
      sums[r * width + o] = sum;
    }
  }
}

template <int rows>
void tile(const float* a, const Nibbles* panel, std::ptrdiff_t inner, float* sums, bool resume,
          const char* /*next*/, std::ptrdiff_t /*step*/) noexcept {
  tile_of_nibbles(a, panel, rows, inner, sums, resume);
}

template <int... rows>
moe::kernels::TileKernels<float, Nibbles> tiles(std::integer_sequence<int, rows...> /*list*/) {
  moe::kernels::TileKernels<float, Nibbles> table;
  table.most_rows = sizeof...(rows);
  ((table.of_rows[rows] = &tile<rows + 1>), ...);
  return table;
}

}  // namespace panel_product_test

template <>
const moe::kernels::TileKernels<float, panel_product_test::Nibbles>&
moe::kernels::tile_kernels<float, panel_product_test::Nibbles>() {
  static const auto table =
      panel_product_test::tiles(std::make_integer_sequence<int, most_tile_rows>());
  return table;
}

template <>
class moe::detail::PackedMatrices<panel_product_test::Nibbles> {
  using Nibbles = panel_product_test::Nibbles;
  static constexpr Index width = kernels::panel_width;

 public:
  PackedMatrices(Index panels, Index inner)
      : panels_(panels),
        inner_(inner),
        values_(static_cast<std::size_t>(panels * inner / 2 * width)) {}

  Index panels() const noexcept { return panels_; }
  Index inner() const noexcept { return inner_; }
  std::size_t panel_bytes() const noexcept { return static_cast<std::size_t>(inner_ / 2 * width); }
  static constexpr double weight_bytes() noexcept { return 0.5; }
  static constexpr Index slice_step() noexcept { return 2; }
  const Nibbles* panel(Index /*matrix*/, Index p, Index k = 0) const noexcept {
    EXPECT_EQ(k % 2, 0);
    return values_.data() + (p * inner_ + k) / 2 * width;
  }
  Nibbles& at(Index p, Index k, Index o) {
    return values_[static_cast<std::size_t>((p * inner_ + k) / 2 * width + o)];
  }

 private:
  Index panels_;
  Index inner_;
  std::vector<Nibbles> values_;
};

namespace panel_product_test {

using moe::detail::PackedMatrices;
using moe::detail::StageSlice;

/// Rows that fill `blocks` blocks, with more inner values than fit into one slice.
void expect_products(Index rows, Index blocks) {
  const Index inner = 2 * moe::detail::most_slice() + 6;
  constexpr Index panels = 2;
  PackedMatrices<Nibbles> weights(panels, inner);
  for (Index p = 0; p < panels; ++p)
    for (Index k = 0; k < inner; k += 2)
      for (Index o = 0; o < width; ++o)
        weights.at(p, k, o).both = static_cast<std::uint8_t>((7 * p + 5 * k + 3 * o) % 256);
  StageSlice<float> slice;
  slice.last_panel = panels;
  slice.last_block = slice.blocks = blocks;
  slice.num_rows = rows;
  std::vector<float> sums(static_cast<std::size_t>(moe::detail::stage_sums_size));
  slice.sums = sums.data();
  const auto value = [](Index r, Index k) { return static_cast<float>((r + 2 * k) % 3 - 1); };
  std::vector<float> a(static_cast<std::size_t>(rows * inner));  // (inner, rows) by block
  for (Index b = 0; b < blocks; ++b) {
    const Index first = slice.block_row(b);
    const Index count = slice.block_row(b + 1) - first;
    for (Index k = 0; k < inner; ++k)
      for (Index r = 0; r < count; ++r)
        a[static_cast<std::size_t>(first * inner + k * count + r)] = value(first + r, k);
  }
  Index finished = 0;
  moe::detail::for_each_tile(
      slice, weights, a.data(), inner, [&](Index p, Index first, Index count, const float* tile) {
        finished += count;
        for (Index r = 0; r < count; ++r) {
          for (Index o = 0; o < width; ++o) {
            float expected = 0;
            for (Index k = 0; k < inner; ++k)
              expected +=
                  value(first + r, k) * static_cast<float>(nibble(weights.at(p, k / 2 * 2, o), k));
            ASSERT_EQ(tile[r * width + o], expected) << "row " << first + r << " output " << o;
          }
        }
      });
  EXPECT_EQ(finished, rows * panels);
}

/// As many panels as fill no whole groups.
constexpr moe::ExpertsConfig streamed_config{
    .num_experts = 2, .d_model = 18 * 32 + 5, .d_ff = 19 * 16};

/// What a layer gives for one token and more.
template <class Bank>
void expect_same_bits_in_streams(const Bank& bank) {
  std::mt19937_64 rng(1);
  const Index d_model = bank.d_model();
  const moe::SparseMoe layer{
      moe::TopKRouter<float>::random({.d_model = d_model, .num_experts = 2, .top_k = 2}, rng),
      bank};
  const test_support::ScopedThreads scoped(1);  // More would cut steps into tasks without groups.
  for (const Index tokens : {1, 2, 3, 7, 12, 15, 18, 30}) {
    const Matrix<float> x = Matrix<float>::Random(tokens, d_model);
    Matrix<float> y[2];
    for (const bool choice : {false, true}) {
      const test_support::Streams streams(choice);
      moe::Workspace<float> workspace;
      y[choice].resize(tokens, d_model);
      layer.forward(x, y[choice], workspace);
    }
    EXPECT_EQ(y[0], y[1]) << tokens << " tokens";
  }
}

class PanelsSideBySide : public test_support::EachLevel {};
MOE_FOR_EACH_LEVEL(PanelsSideBySide);

TEST_P(PanelsSideBySide, OfFloatsGiveTheSameBits) {
  std::mt19937_64 rng(1);
  expect_same_bits_in_streams(
      moe::FeedForwardExperts<float, moe::SwiGlu>::random(streamed_config, rng));
  expect_same_bits_in_streams(
      moe::FeedForwardExperts<float, moe::SwiGlu, moe::bfloat16>::random(streamed_config, rng));
}

TEST_P(PanelsSideBySide, OfSeveralSlicesGiveTheSameBits) {
  std::mt19937_64 rng(1);
  // Several slices of both matrices, and more panels than have their sums kept at once for 18 rows,
  // which are 2 blocks with AVX-512 and 3 with AVX2.
  const Index most = moe::detail::most_streamed_slice();
  const moe::ExpertsConfig config{.num_experts = 2, .d_model = 2 * most + 37, .d_ff = most + 50};
  expect_same_bits_in_streams(moe::FeedForwardExperts<float, moe::SwiGlu>::random(config, rng));
  expect_same_bits_in_streams(
      moe::FeedForwardExperts<float, moe::SwiGlu, moe::bfloat16>::random(config, rng));
  expect_same_bits_in_streams(
      moe::FeedForwardExperts<float, moe::SwiGlu, moe::half>::random(config, rng));
}

TEST_P(PanelsSideBySide, OfCodesGiveTheSameBits) {
  std::mt19937_64 rng(1);
  const auto floats = moe::FeedForwardExperts<float, moe::SwiGlu>::random(streamed_config, rng);
  for (const moe::WeightFormat format : moe::weight_formats) {
    SCOPED_TRACE(moe::format_name(format));
    moe::QuantizedExperts<moe::SwiGlu> bank(streamed_config, moe::ExpertFormat{format, format});
    for (Index e = 0; e < streamed_config.num_experts; ++e)
      bank.set_expert(e, floats.expert(e).weights(), {.search = moe::ScaleSearch::nearest});
    for (const auto product : {moe::ProductKind::integer, moe::ProductKind::widened}) {
      bank.set_product(product);
      expect_same_bits_in_streams(bank);
    }
  }
}

/// Results that fill the third-level cache are written past it.
TEST(PanelProduct, PastTheCachesGivesTheSameBits) {
  // Rows are whole lines; the last panel is not whole.
  constexpr moe::ExpertsConfig config{.num_experts = 2, .d_model = 3 * 32 + 16, .d_ff = 80};
  std::mt19937_64 rng(1);
  const auto floats = moe::FeedForwardExperts<float, moe::SwiGlu>::random(config, rng);
  moe::QuantizedExperts<moe::SwiGlu> codes(config,
                                           moe::ExpertFormat{{moe::WeightCode::int8, 32}, {}});
  for (Index e = 0; e < config.num_experts; ++e)
    codes.set_expert(e, floats.expert(e).weights(), {.search = moe::ScaleSearch::nearest});
  const Index d_model = floats.d_model();
  const auto router =
      moe::TopKRouter<float>::random({.d_model = d_model, .num_experts = 2, .top_k = 2}, rng);
  const Matrix<float> x = Matrix<float>::Random(40, d_model);
  const auto expect_same = [&](const auto& bank) {
    const moe::SparseMoe layer{router, bank};
    Matrix<float> y[2];
    for (const bool is_past : {false, true}) {
      const test_support::ThirdLevelCache cache(is_past ? 1 << 15 : 1 << 26);
      moe::Workspace<float> workspace;
      y[is_past].resize(40, d_model);
      layer.forward(x, y[is_past], workspace);
      moe::AlignedBuffer<float> rows(static_cast<std::size_t>(80 * d_model));
      const moe::MatrixView<float> view(rows.data(), 80, d_model);
      EXPECT_EQ(moe::detail::goes_past_caches(view), is_past) << "as the results of this layer";
    }
    EXPECT_EQ(y[0], y[1]);
  };
  expect_same(floats);
  expect_same(codes);
}

TEST(PanelProduct, TakesAStorageOfSeveralWeightsAByte) {
  expect_products(5, 1);
  expect_products(40, 3);
}

}  // namespace panel_product_test
