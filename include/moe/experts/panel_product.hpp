// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The product of one expert's rows with its packed weights, blocked for the caches.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/packed_matrices.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/staged_bank.hpp"
#include "moe/kernels/cache.hpp"
#include "moe/kernels/dispatch.hpp"

namespace moe::inline MOE_ABI::detail {

/// Inner values of one pass at most, such that a slice of a panel in single precision takes a
/// quarter of the second-level cache, 256 KiB at most, and stays there beside the rows that it
/// meets: 2048 for 1 MiB. With 2 MiB, 2048 are as fast as 4096 or up to 4 % faster (126 and 252
/// rows of 4096), and 1024 are slower where 2048 are all that there is, since the sums are finished
/// later.
inline Index most_slice() noexcept {
  constexpr std::ptrdiff_t most = Index{256} * 1024;
  constexpr std::ptrdiff_t bytes_of_outputs = Index{4} * kernels::panel_width;
  return std::min(kernels::second_level_cache() / 4, most) / bytes_of_outputs;
}

/// The same where the next panel is asked for in streams: what is asked for has to stay beside what
/// is in use. With 2 MiB, 16 rows of 4096 values in single precision, whose memory takes 1.25 times
/// as long as their products, reached 0.67 of what memory reads in slices of 4096, 0.76 of 2048,
/// 0.79 of 1024, 0.78 of 512, 0.71 of 256; groups of 8 or 16 panels, and blocks that follow one
/// another every 64 or 128 values, made no difference beyond noise.
inline Index most_streamed_slice() noexcept {
  return most_slice() / 2;
}

/// Values of the rows that meet a panel one after the other while it is in the second-level cache:
/// as much as that cache in single precision. They are read once for every panel, a stream of 4
/// bytes for 64 flop that the third-level cache gives in time. With 1 MiB of second-level cache,
/// 512 KiB to 2 MiB and slices of 512 to 4096 made no difference beyond noise (3 %) at 64 to 256
/// rows an expert; what did was to ask for the next panel while this one is in use.
inline Index chunk_values() noexcept {
  return kernels::second_level_cache() / 4;
}

/// Blocks of rows that compute for less long than memory takes for their weights.
inline constexpr Index most_waiting_blocks = 3;

/// Calls finish(panel, first row, count, sums) for every tile of a slice of the work, where sums
/// (count, 32) are the products of rows first row .. of the expert with the panel's weights.
///
/// Shapes  a holds the expert's rows by block: block b, (inner, rows), stands row_size values times
///         its first row behind a; row_size >= inner.
template <class Scalar, class Storage, class Finish>
void for_each_tile(const StageSlice<Scalar>& work, const PackedMatrices<Storage>& weights,
                   const Scalar* a, Index row_size, Finish&& finish) {
  const auto& kernels = kernels::tile_kernels<Scalar, Storage>();
  const Index inner = weights.inner();
  const Index all_blocks = work.last_block - work.first_block;
  const bool is_single = all_blocks == 1;
  const Index first_rows = work.block_row(work.first_block + 1) - work.block_row(work.first_block);
  const bool is_streamed = kernels::fetches_in_streams() && all_blocks <= most_waiting_blocks &&
                           kernels.in_streams[first_rows - 1] != nullptr;
  // A single block that asks for nothing reads everything once, in any order.
  const Index most = is_streamed ? most_streamed_slice() : is_single ? inner : most_slice();
  const Index slices = (inner + most - 1) / most;
  constexpr Index multiple = PackedMatrices<Storage>::slice_step();
  const Index slice = ((inner + slices - 1) / slices + multiple - 1) / multiple * multiple;
  // The sums of a chunk's rows have room in the thread's buffer.
  const Index chunk_rows =
      std::min(chunk_values() / std::max<Index>(slice, 1), stage_sums_size / kernels::panel_width);
  constexpr Index width = kernels::panel_width;
  const Index line_bytes = static_cast<Index>(weights.panel_bytes()) / inner;  // for one k

  for (Index begin = work.first_block; begin < work.last_block;) {
    Index end = begin + 1;
    const Index first_row = work.block_row(begin);
    while (end < work.last_block && work.block_row(end + 1) - first_row <= chunk_rows) ++end;
    const Index rows = work.block_row(end) - first_row;
    const Index blocks = end - begin;
    const bool in_streams = kernels::fetches_in_streams() && blocks <= most_waiting_blocks;
    // The panels first .. last - 1 meet a slice of the rows before the next slice's turn.
    const auto tile = [&](Index first, Index last, Index p, Index b, Index k, Scalar* sums) {
      const Index count = std::min(slice, inner - k);
      const Index at = work.block_row(b);
      const Index block_rows = work.block_row(b + 1) - at;
      const Scalar* const rows_at = a + at * row_size + k * block_rows;
      const Storage* const panel = weights.panel(work.expert, p, k);
      const bool turns = p + 1 == last && k + slice < inner;
      const bool is_last = p + 1 == work.last_panel && !turns;
      const auto* const after = reinterpret_cast<const char*>(
          turns ? weights.panel(work.expert, first, k + slice)
                : weights.panel(work.expert, p + 1, p + 1 == last ? 0 : k));
      // While several blocks use one panel, each asks for its share of what comes next.
      const Index step = (line_bytes + blocks - 1) / blocks;
      const auto tile_in_streams = kernels.in_streams[block_rows - 1];
      if (in_streams && !is_last && tile_in_streams != nullptr) {
        // Nobody has asked for the first panel, so that its tiles do, a page ahead.
        const Index ahead = p == work.first_panel && k == 0 ? 4096 : 0;
        const Index share = step * count;
        tile_in_streams(rows_at, panel, count, sums, k > 0,
                        {after + (b - begin) * share, share / 8, step}, ahead);
        return;
      }
      const char* const next =
          blocks > 1 ? after + (b - begin) * step * count : reinterpret_cast<const char*>(panel);
      kernels.of_rows[block_rows - 1](rows_at, panel, count, sums, k > 0, next,
                                      blocks > 1 ? step : 0);
    };
    if (slices == 1) {
      Index first = work.first_panel;
      if (is_single && kernels::fetches_in_streams()) {
        const auto product = [&](Index p) {
          kernels.side_by_side[rows - 1](a + first_row * row_size, weights.panel(work.expert, p),
                                         inner, work.sums);
        };
        first = finish_side_by_side(work, begin, kernels.side_panels[rows - 1], product, finish);
      }
      for (Index p = first; p < work.last_panel; ++p) {
        for (Index b = begin; b < end; ++b) {
          tile(first, work.last_panel, p, b, 0, work.sums);
          const Index at = work.block_row(b);
          finish(p, at, work.block_row(b + 1) - at, work.sums);
        }
      }
    } else {
      // Some panels at a time, so that a slice of the rows is read once for all of them.
      const Index group = std::max<Index>(1, stage_sums_size / (rows * width));
      for (Index first = work.first_panel; first < work.last_panel; first += group) {
        const Index last = std::min(first + group, work.last_panel);
        const auto sums_of = [&](Index p, Index b) {
          return work.sums + ((p - first) * rows + work.block_row(b) - first_row) * width;
        };
        for (Index k = 0; k < inner; k += slice)
          for (Index p = first; p < last; ++p)
            for (Index b = begin; b < end; ++b) tile(first, last, p, b, k, sums_of(p, b));
        for (Index p = first; p < last; ++p) {
          for (Index b = begin; b < end; ++b) {
            const Index at = work.block_row(b);
            finish(p, at, work.block_row(b + 1) - at, sums_of(p, b));
          }
        }
      }
    }
    begin = end;
  }
}

/// What `for_each_tile` runs so many rows of an expert with, in words.
template <class Scalar, class Storage>
std::string tile_kernel(Index rows) {
  const char* const weights = std::is_same_v<Storage, double>     ? "f64"
                              : std::is_same_v<Storage, float>    ? "f32"
                              : std::is_same_v<Storage, bfloat16> ? "bf16"
                                                                  : "f16";
  const auto& kernels = kernels::tile_kernels<Scalar, Storage>();
  const Index blocks = (rows + kernels.most_rows - 1) / kernels.most_rows;
  const Index block_rows = (rows + blocks - 1) / blocks;
  const bool has_streams = kernels::fetches_in_streams();
  if (has_streams && blocks == 1 && kernels.side_panels[rows - 1] > 0)
    return text_of(weights, ", up to ", kernels.side_panels[rows - 1], " panels side by side");
  if (has_streams && blocks <= most_waiting_blocks && kernels.in_streams[block_rows - 1] != nullptr)
    return text_of(weights, ", next panel in 8 streams");
  return text_of(weights, ", panel by panel");
}

}  // namespace moe::inline MOE_ABI::detail
