// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The product of one expert's rows with its quantised weights, blocked for the caches.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/staged_bank.hpp"
#include "moe/kernels/cache.hpp"
#include "moe/kernels/coded/dispatch.hpp"
#include "moe/kernels/dispatch.hpp"

namespace moe::inline MOE_ABI {

/// How quantised weights are multiplied.
enum class ProductKind {
  integer,  ///< with activations rounded to eight bits in groups as long as the weights'
  widened,  ///< as floats, with activations as they are: the bits of a bank of floats, or in fp8,
            ///< whose scales multiply sums of 128 products, the same but for rounding
};

namespace detail {

static_assert(
    [] {
      constexpr Index most_of_product = Index{128} * 127;
      return std::ranges::all_of(weight_formats, [](const WeightFormat& format) {
        const bool fits = format.group * most_of_product <= Index{1} << 22;
        return fits || !has_integer_products(format);
      });
    }(),
    "sums of groups stay within what the bits of a float hold (see sum_excess)");

/// Inner values of a matrix, filled up to whole groups.
inline Index whole_inner(const MatrixLayout& layout) noexcept {
  return layout.groups * layout.group;
}

/// Floats that a row of activations takes in eight bits: codes, scales, excesses, starts and sums.
inline Index coded_row_size(const MatrixLayout& layout) noexcept {
  return whole_inner(layout) / 4 + 4 * layout.groups;
}

/// A block of rows in eight bits, whose memory begins at `block` (count rows of coded_row_size).
class CodedBlock {
 public:
  CodedBlock(const MatrixLayout& layout, float* block, Index rows) noexcept {
    float* const scales = block + whole_inner(layout) / 4 * rows;
    const Index each = layout.groups * rows;
    rows_ = {.codes = reinterpret_cast<std::int8_t*>(block),
             .scales = scales,
             .excesses = scales + each,
             .starts = reinterpret_cast<std::int32_t*>(scales + 2 * each),
             .sums = scales + 3 * each,
             .stride = rows};
  }

  /// Codes one row of n <= inner values.
  void put(const kernels::CodedKernels& kernels, const MatrixLayout& layout, Index row,
           const float* x, float factor, Index n) const noexcept {
    kernels.code_row(x, factor, n, layout.group, layout.groups, kernels.start, rows_.from(row));
  }
  kernels::CodedRows rows() const noexcept {
    return {rows_.codes, rows_.scales, rows_.excesses, rows_.starts, rows_.sums, rows_.stride};
  }

 private:
  kernels::CodedRowsToSet rows_;
};

/// Floats of a slice of a panel that is widened at a time: 16 KiB, which stay in the first-level
/// cache.
inline constexpr Index widened_slice = 128 * kernels::panel_width;

/// Rows that are multiplied at a time, of those that there are kernels for. Where groups have
/// scales, AVX-512 has the registers for sums and totals of 7 rows. Intel's cores widen codes on
/// the ports that multiply, so that more rows gain more than totals in memory cost: for 1024 tokens
/// in int8-g128, int4-g32 and mxfp4, 14 took 0.78 to 0.95 of the time of 7 on a Xeon of the fifth
/// generation (on Zen 5 1.04 to 1.17). Up to 10, one tile beats two for both, by 1.03 to 1.28 for
/// 64 tokens, since the panel is read once.
inline Index integer_tile_rows(const kernels::CodedKernels& kernels,
                               const MatrixLayout& layout) noexcept {
  constexpr Index most_beside_totals = 10;
  const bool keeps_totals = layout.format.group != 0 && !kernels::fetches_in_streams();
  return keeps_totals ? std::min<Index>(most_beside_totals, kernels.most_rows) : kernels.most_rows;
}

/// How far ahead a single block of rows asks for lines of its panel: past the end of the page,
/// where the hardware's prefetcher stops, and while the ends of groups are computed. For 16 and 64
/// tokens in int4 on Zen 5, memory at 50 GB/s, 2 KiB took 0.84 to 1.0 of the time that nothing
/// took, 4 KiB 0.74 to 1.0, 8 KiB 0.72 to 0.98.
inline constexpr Index panel_bytes_ahead = 8192;

/// How one row meets several panels that are widened.
inline const kernels::SideWidenedProduct& side_widened(
    const kernels::CodedKernels& kernels) noexcept {
  return kernels::fetches_in_streams() ? kernels.widened_side_by_side : kernels.widened_pair;
}

/// Calls finish(panel, first row, count, sums) for every tile of a slice of the work, where the
/// expert's rows are in eight bits: block b at a + block_row(b) * row_size, behind `lead` values
/// for each of its rows.
template <class Finish>
void for_each_integer_tile(const StageSlice<float>& work, const MatrixLayout& layout,
                           const std::byte* matrix, float* a, Index row_size, Index lead,
                           Finish&& finish) {
  const auto& kernels = kernels::coded_kernels(layout.format);
  const Index quads = layout.group / 4;
  const Index most_rows = integer_tile_rows(kernels, layout);
  // Rows stay in a part of the third-level cache while the panels pass by.
  const Index chunk = std::max<Index>(kernels::third_level_cache() / 8 / layout.inner, 64);
  const Index all_quads = layout.groups * quads;
  for (Index begin = work.first_block; begin < work.last_block;) {
    Index end = begin + 1;
    const Index first_row = work.block_row(begin);
    while (end < work.last_block && work.block_row(end + 1) - first_row <= chunk) ++end;
    Index first_panel = work.first_panel;
    const bool is_one_row = end - begin == 1 && work.block_row(end) - first_row == 1;
    if (is_one_row && kernels::fetches_in_streams()) {
      const CodedBlock block(layout, a + first_row * row_size + lead, 1);
      const auto product = [&](Index p) {
        kernels.side_by_side(block.rows(), matrix + layout.panel_offset(p), layout.panel_bytes,
                             layout.groups, quads, work.sums);
      };
      first_panel = finish_side_by_side(work, begin, kernels.side_panels, product, finish);
    }
    for (Index p = first_panel; p < work.last_panel; ++p) {
      const std::byte* const panel = matrix + layout.panel_offset(p);
      const Index blocks = end - begin;
      // While several blocks use one panel, each asks for its share of the next; a single one asks
      // for nearly all of it where memory wants several streams (see kernels::fetches_in_streams),
      // and else for what follows in its own.
      kernels::Lines next{reinterpret_cast<const char*>(panel)};
      if (blocks > 1) {
        next.begin += layout.panel_bytes;
        next.step = (layout.panel_bytes / blocks + all_quads - 1) / all_quads;
        next.stride = 8 * next.step;
      } else if (kernels::fetches_in_streams() && p + 1 < work.last_panel) {
        next = {next.begin + layout.panel_bytes, layout.panel_bytes / 8,
                layout.panel_bytes / all_quads};
      } else {
        next = {next.begin + panel_bytes_ahead, layout.panel_bytes / all_quads,
                8 * (layout.panel_bytes / all_quads)};
      }
      for (Index b = begin; b < end; ++b) {
        const Index at = work.block_row(b);
        const Index count = work.block_row(b + 1) - at;
        const CodedBlock block(layout, a + at * row_size + lead * count, count);
        const Index parts = (count + most_rows - 1) / most_rows;
        for (Index part = 0; part < parts; ++part) {
          const Index from = count * part / parts;
          const Index rows = count * (part + 1) / parts - from;
          kernels.of_rows[rows - 1](block.rows().from(from), panel, layout.groups, quads,
                                    work.sums + from * kernels::panel_width,
                                    part == 0 ? next : kernels::Lines{next.begin});
        }
        if (blocks > 1) next.begin += next.step * all_quads;
        finish(p, at, count, work.sums);
      }
    }
    begin = end;
  }
}

/// The same where the rows are floats: block b, (inner, rows), at a + block_row(b) * row_size.
template <class Finish>
void for_each_widened_tile(const StageSlice<float>& work, const MatrixLayout& layout,
                           const std::byte* matrix, const float* a, Index row_size,
                           Finish&& finish) {
  const auto& coded = kernels::coded_kernels(layout.format);
  const auto& tiles = kernels::tile_kernels<float, float>();
  constexpr Index width = kernels::panel_width;
  const bool has_outputs = traits_of(layout.format).has_output_scale;
  // Without groups, any slice of the codes that begins with a quad will do; where scales multiply
  // sums, a slice is one group.
  const bool scales_sums = coded.add_group != nullptr;
  const bool is_grouped = layout.groups > 1 || scales_sums;
  constexpr Index most = widened_slice / width;
  const Index whole_groups = std::max<Index>(1, most / layout.group) * layout.group;
  const Index slice = scales_sums ? layout.group : is_grouped ? whole_groups : most;
  alignas(64) float of_group[kernels::most_tile_rows * width];
  float* const widened = work.sums + stage_sums_size - widened_slice;
  const Index chunk = (stage_sums_size - widened_slice) / width;
  const Index code_bytes = layout.code_bytes / layout.group;  // of one inner value
  for (Index begin = work.first_block; begin < work.last_block;) {
    Index end = begin + 1;
    const Index first_row = work.block_row(begin);
    while (end < work.last_block && work.block_row(end + 1) - first_row <= chunk) ++end;
    const auto sums_of = [&](Index b) {
      return work.sums + (work.block_row(b) - first_row) * width;
    };
    // A few rows alone need the weights once, so that these are not kept.
    const Index first_block_rows = work.block_row(begin + 1) - first_row;
    const bool is_direct = end - begin == 1 && first_block_rows <= 2;
    const auto outputs_of = [&](Index p) {
      return has_outputs ? reinterpret_cast<const float*>(matrix + layout.panel_offset(p))
                         : nullptr;
    };
    Index first_panel = work.first_panel;
    if (is_direct && first_block_rows == 1) {
      const kernels::SideWidenedProduct& side = side_widened(coded);
      const auto product = [&](Index p) {
        side.product(a + first_row * row_size, matrix + layout.record_offset(p, 0), outputs_of(p),
                     layout.panel_bytes, layout.inner, layout.group, work.sums);
      };
      first_panel = finish_side_by_side(work, begin, side.panels, product, finish);
    }
    for (Index p = first_panel; p < work.last_panel; ++p) {
      const float* const outputs = outputs_of(p);
      if (is_direct)
        coded.widened[first_block_rows - 1](a + first_row * row_size,
                                            matrix + layout.record_offset(p, 0), outputs,
                                            layout.inner, layout.group, sums_of(begin));
      for (Index k = 0; k < layout.inner && !is_direct; k += slice) {
        const Index count = std::min(slice, layout.inner - k);
        const std::byte* const record =
            matrix + layout.record_offset(p, k / layout.group) + (is_grouped ? 0 : k * code_bytes);
        if (is_grouped) {
          coded.decode(record, outputs, (count + layout.group - 1) / layout.group, layout.group,
                       widened);
        } else {
          coded.decode(record, outputs, 1, std::min(slice, whole_inner(layout) - k), widened);
        }
        for (Index b = begin; b < end; ++b) {
          const Index at = work.block_row(b);
          const Index rows = work.block_row(b + 1) - at;
          float* const to = scales_sums ? of_group : sums_of(b);
          tiles.of_rows[rows - 1](a + at * row_size + k * rows, widened, count, to,
                                  k > 0 && !scales_sums, reinterpret_cast<const char*>(widened), 0);
          if (!scales_sums) continue;
          if (k == 0) std::fill_n(sums_of(b), rows * width, 0.0F);
          coded.add_group(of_group, record, rows, sums_of(b));
        }
      }
      for (Index b = begin; b < end; ++b) {
        const Index at = work.block_row(b);
        finish(p, at, work.block_row(b + 1) - at, sums_of(b));
      }
    }
    begin = end;
  }
}

/// What these run so many rows of an expert with, in words.
inline std::string coded_kernel(const MatrixLayout& layout, bool is_integer, Index rows) {
  const auto& kernels = kernels::coded_kernels(layout.format);
  const std::string product =
      format_name(layout.format) + (is_integer ? " in integers" : " widened");
  const bool wants_streams = kernels::fetches_in_streams();
  const Index of_integers = wants_streams ? kernels.side_panels : 0;
  const Index side_panels = is_integer ? of_integers : side_widened(kernels).panels;
  if (rows == 1 && side_panels > 0)
    return text_of(product, ", up to ", side_panels, " panels side by side");
  if (!is_integer) return product + (rows <= 2 ? ", panel by panel" : ", slice by slice");
  const Index most_rows = integer_tile_rows(kernels, layout);
  const Index parts = (rows + most_rows - 1) / most_rows;
  const bool is_single = rows <= kernels::tile_kernels<float, float>().most_rows;
  if (wants_streams && is_single && rows / parts > kernels.few_rows)
    return product + ", next panel in 8 streams";
  return product + ", panel by panel";
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
