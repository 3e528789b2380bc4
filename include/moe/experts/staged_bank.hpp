// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// StagedBank: a bank whose experts run step by step, as parts of a layer's expert stage.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/kernels/cache.hpp"
#include "moe/kernels/dispatch.hpp"

namespace moe::inline MOE_ABI::detail {

/// What the schedule has to know of a bank.
struct StageShape {
  Index d_model = 0;
  Index packed = 0;       // values that a packed row takes
  Index hidden = 0;       // values that what lies between the steps takes for a row: the hidden
                          // values, filled up to whole panels, and what a bank makes of them
  Index up_panels = 0;    // of one expert, inner D
  Index down_panels = 0;  // of one expert, inner d_ff
  Index d_ff = 0;
  Index up_factor = 1;           // matrices in the up step: gate and up, or up alone
  double weight_bytes = 0;       // of one weight; less than 1 where several share a byte
  bool prepares_hidden = false;  // has a step between up and down
  double integer_share = 0;      // of the multiplications, those of codes of eight bits
};

/// One task of a bank: panels first_panel .. last_panel - 1 of an expert for some blocks of its
/// rows. Block b of the expert's rows stands at packed + block_row(b) times the values of a packed
/// row, by default as (D, rows of b), and likewise in hidden.
template <class Scalar>
struct StageSlice {
  Index expert = 0;
  Index first_panel = 0;
  Index last_panel = 0;
  Index first_block = 0;
  Index last_block = 0;
  Index blocks = 0;                 // of the expert
  Index num_rows = 0;               // of the expert
  Scalar* packed = nullptr;         // by block
  Scalar* hidden = nullptr;         // by block
  Scalar* sums = nullptr;           // this thread's, `stage_sums_size`
  Scalar* kept_sums = nullptr;      // of the expert, (rows, 32) by panel, or null: for a backward
  MatrixView<Scalar> rows{};        // of the expert: where the down projection goes
  bool past_caches = false;         // all experts' rows together: see goes_past_caches
  const Scalar* weights = nullptr;  // (rows of the expert), by which they are multiplied, or null
  HiddenDropout dropout{};
  const TokenSlot* choices = nullptr;  // (rows of the expert), where there is dropout
  Index top_k = 0;                     // of the plan that they are of

  /// The first row of block b, counted within the expert.
  Index block_row(Index b) const noexcept { return num_rows * b / blocks; }
};

/// Values of a thread's buffer of sums: 128 KiB in single precision.
inline constexpr Index stage_sums_size = 32768;

/// Values of a thread's buffer for an expert that it runs by itself: half of the second-level cache
/// in single precision, so that packed rows and hidden values stay there.
inline Index stage_expert_size() noexcept {
  return kernels::second_level_cache() / 8;
}

/// Whether results of the down projection go past the caches: where they fill the third-level
/// cache, what is written first is gone before it is read, and a store that needs not read its line
/// saves a third of the traffic. With a cache of 32 MiB (Zen 5), that gave 4 and 7 % for 1024
/// tokens of OLMoE and Qwen3 in int8, and 2 to 3 % for 512, whose results are as large as the
/// cache; 3 % for 2048 experts of 64 hidden values.
template <class Scalar>
bool goes_past_caches(MatrixView<Scalar> rows) noexcept {
  constexpr Index line = 64 / static_cast<Index>(sizeof(Scalar));
  const bool is_aligned =
      reinterpret_cast<std::uintptr_t>(rows.data()) % 64 == 0 && rows.row_stride() % line == 0;
  return is_aligned && rows.rows() * rows.cols() * static_cast<Index>(sizeof(Scalar)) >=
                           kernels::third_level_cache();
}

/// Bytes of a part's packed rows and hidden values, where its tokens may have `most_rows` rows.
template <class Scalar>
double stage_bytes(const StageShape& shape, std::size_t most_rows) noexcept {
  return static_cast<double>(most_rows) * static_cast<double>(shape.packed + shape.hidden) *
         sizeof(Scalar);
}

/// A bank whose experts run step by step.
template <class Scalar>
class StagedBank {
 public:
  virtual StageShape stage_shape() const noexcept = 0;

  /// What multiplies so many rows of an expert, in words: its weights, and the kernel's form.
  virtual std::string kernel_of(Index /*expert*/, Index /*rows*/) const { return {}; }

  /// Packs block b of an expert's rows.
  ///
  /// Shapes  rows (rows of b) pointers to D values, scale (rows of b) or null.
  virtual void run_pack(const StageSlice<Scalar>& slice, Index b, const Scalar* const* rows,
                        const Scalar* scale) const {
    const Index first = slice.block_row(b);
    const Index d_model = stage_shape().d_model;
    kernels::row_kernels<Scalar>().pack(rows, scale, slice.block_row(b + 1) - first, d_model,
                                        slice.packed + first * d_model);
  }
  virtual void run_up(const StageSlice<Scalar>& slice) const = 0;
  /// Works on all hidden values of some blocks, where the shape says so.
  virtual void run_hidden(const StageSlice<Scalar>& /*slice*/) const {}
  virtual void run_down(const StageSlice<Scalar>& slice) const = 0;

 protected:
  StagedBank() = default;
  StagedBank(const StagedBank&) = default;
  StagedBank(StagedBank&&) noexcept = default;
  StagedBank& operator=(const StagedBank&) = default;
  StagedBank& operator=(StagedBank&&) noexcept = default;
  ~StagedBank() = default;
};

/// The bank as a part of a stage, or null if its experts only run all at once.
template <class BankT>
const StagedBank<typename BankT::Scalar>* staged_bank(const BankT& bank) noexcept {
  if constexpr (requires { bank.staged(); }) {
    return bank.staged();
  } else {
    return nullptr;
  }
}

/// The tiles of a slice's block, `panels` panels at a time, whose sums (panels, rows, 32)
/// product(first panel) gives; none for 0. Returns the first panel that is left.
template <class Scalar, class Product, class Finish>
Index finish_side_by_side(const StageSlice<Scalar>& work, Index block, Index panels,
                          Product&& product, Finish& finish) {
  Index p = work.first_panel;
  if (panels == 0) return p;
  const Index at = work.block_row(block);
  const Index rows = work.block_row(block + 1) - at;
  for (; p + panels <= work.last_panel; p += panels) {
    product(p);
    for (Index i = 0; i < panels; ++i)
      finish(p + i, at, rows, work.sums + i * rows * kernels::panel_width);
  }
  return p;
}

/// One bank's share of a stage.
///
/// Shapes  rows (N, D); weights (T, K), by which rows are multiplied, or empty.
template <class Scalar>
struct StagePart {
  const StagedBank<Scalar>* bank = nullptr;
  const ExpertInput<Scalar>* input = nullptr;
  MatrixView<Scalar> rows{};
  MatrixView<const Scalar> weights{};
  Scalar* kept_sums = nullptr;
};

}  // namespace moe::inline MOE_ABI::detail
