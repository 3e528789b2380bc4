// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// QuantizedExperts: banks of feed-forward experts whose weights take 16 bits or fewer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/activate.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/coded_experts.hpp"
#include "moe/experts/coded_product.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/expert_stage.hpp"
#include "moe/experts/gather.hpp"
#include "moe/experts/packed_experts.hpp"

namespace moe::inline MOE_ABI {

/// E experts, each down(activation(gate(x), up(x))) with a gated activation and
/// down(activation(up(x))) with a plain one, whose formats may differ from expert to expert.
///
/// Products  By default of integers, where the formats have them: activations are rounded to eight
///         bits in groups as long as those of the weights, which costs a block's output about one
///         hundredth of its size in error, less than weights of four bits do, and makes prefill
///         faster than floats are. Widened products take activations as they are.
/// Values  a row's result has the same bits whatever the other rows and the number of threads.
///         Widened products have the bits of FeedForwardExperts with the weights of `expert`, those
///         of fp8 the same values but for rounding. In formats whose groups have scales,
///         activations above 1e31 may give results that are not finite.
template <Activation<float> ActivationT>
class QuantizedExperts final : public detail::StagedBank<float> {
 public:
  using Scalar = float;
  static constexpr bool is_gated = GatedActivation<ActivationT, float>;

  /// A bank of zeros, to be filled by `set_expert`.
  ///
  /// Throws  std::invalid_argument if a size is not positive or there is no such format.
  QuantizedExperts(const ExpertsConfig& config, const ExpertFormat& format,
                   ActivationT activation = {})
      : QuantizedExperts(
            config,
            std::vector(static_cast<std::size_t>(std::max<Index>(config.num_experts, 0)), format),
            std::move(activation)) {}

  /// The same with a format for each expert.
  ///
  /// Throws  ShapeError, further, if there are not E formats.
  QuantizedExperts(const ExpertsConfig& config, const std::vector<ExpertFormat>& formats,
                   ActivationT activation = {})
      : weights_("QuantizedExperts", config, is_gated, formats),
        activation_(std::move(activation)) {
    find_shape();
  }

  /// A bank whose weights lie in memory of somebody else's, such as a mapped file. Expert e is at
  /// experts[e], as `expert_bytes` says, at a multiple of 64 bytes; `owner` keeps it there. Whoever
  /// changes a weight makes a copy of all first.
  ///
  /// Throws  as above; ShapeError, further, if there are not E experts, and std::invalid_argument
  ///         if nobody owns them.
  QuantizedExperts(const ExpertsConfig& config, const std::vector<ExpertFormat>& formats,
                   std::vector<const std::byte*> experts, std::shared_ptr<const void> owner,
                   ActivationT activation = {})
      : weights_("QuantizedExperts", config, is_gated, formats, std::move(experts),
                 std::move(owner)),
        activation_(std::move(activation)) {
    find_shape();
  }

  Index num_experts() const noexcept { return config().num_experts; }
  Index d_model() const noexcept { return config().d_model; }
  Index d_ff() const noexcept { return config().d_ff; }
  bool has_biases() const noexcept { return config().biases; }
  const ExpertsConfig& config() const noexcept { return weights_.config; }
  const ActivationT& activation() const noexcept { return activation_; }
  ExpertFormat format(Index e) const {
    const ExpertLayout& layout = layout_of(e);
    return {layout.up.format, layout.down.format};
  }
  ProductKind product() const noexcept { return product_; }

  /// How weights are multiplied; formats without integer products are widened all the same.
  void set_product(ProductKind kind) noexcept {
    product_ = kind;
    find_shape();
  }

  /// Bytes of all weights with their scales; biases are not among them.
  double weight_bytes() const noexcept { return static_cast<double>(weights_.bytes()); }

  /// Quantises one expert's matrices and copies them in, in parallel over outputs.
  ///
  /// Throws  std::invalid_argument if `expert` is out of range, or a weight is not finite or beyond
  ///         the format; ShapeError if a matrix has not the bank's sizes, one that the bank needs
  ///         is empty, or one that it lacks is not. The expert stays as it was then.
  void set_expert(Index expert, const ExpertWeights<float>& weights,
                  const QuantizeOptions& options = {}) {
    weights_.set("QuantizedExperts::set_expert", expert, weights, options);
  }

  /// Takes over one expert's matrices code by code, in the bank's formats, in parallel over
  /// outputs. Biases stay as they are.
  ///
  /// Throws  std::invalid_argument if `expert` is out of range, a weight is not finite or a scale
  ///         is none that the format stores, or a code none that it has; ShapeError if an output
  ///         has other sizes; what the source throws. The expert stays as it was then.
  void set_expert_codes(Index expert, const CodedExpertSource& source) {
    weights_.set_codes("QuantizedExperts::set_expert_codes", expert, source);
  }

  /// Shapes  as ExpertWeights; matrices are not looked at.
  /// Throws  std::invalid_argument if `expert` is out of range; ShapeError if a bias has not the
  ///         bank's size.
  void set_expert_biases(Index expert, const ExpertWeights<float>& weights) {
    constexpr const char* where = "QuantizedExperts::set_expert_biases";
    weights_.check_expert(where, expert);
    detail::check_bias_shapes(where, config(), is_gated, weights);
    weights_.set_biases(expert, weights);
  }

  /// A copy of one expert's matrices, as the codes and scales say.
  ExpertMatrices<float> expert(Index e) const {
    return weights_.get("QuantizedExperts::expert", e);
  }

  /// The layout of an expert's matrices.
  const ExpertLayout& layout_of(Index e) const {
    weights_.check_expert("QuantizedExperts::layout_of", e);
    return weights_.layout(e);
  }

  /// An expert's weights as they lie: the up matrix, then the down matrix (see MatrixLayout).
  std::span<const std::byte> expert_bytes(Index e) const {
    const auto bytes = static_cast<std::size_t>(layout_of(e).bytes());
    return {weights_.up(e), bytes};
  }

  /// Copies an expert in as it lies.
  ///
  /// Throws  ShapeError if there are not as many bytes as the expert takes.
  void set_expert_bytes(Index e, std::span<const std::byte> bytes) {
    detail::check_size("QuantizedExperts::set_expert_bytes", "bytes.size()", layout_of(e).bytes(),
                       static_cast<Index>(bytes.size()));
    weights_.set_bytes(e, bytes);
  }

  /// Of a bank whose weights lie in somebody else's memory: from now on, expert e is at `data`, as
  /// `expert_bytes` says, at a multiple of 64 bytes, for as long as it may be asked for.
  void set_expert_view(Index e, const std::byte* data) noexcept { weights_.view(e, data); }

  /// Biases as they lie, with those that fill up panels: of the up step (E, columns), and of the
  /// down step; empty without biases.
  Matrix<float>& up_bias() noexcept { return weights_.up_bias; }
  const Matrix<float>& up_bias() const noexcept { return weights_.up_bias; }
  Matrix<float>& down_bias() noexcept { return weights_.down_bias; }
  const Matrix<float>& down_bias() const noexcept { return weights_.down_bias; }

  /// Runs every expert on its rows of the plan.
  ///
  /// Shapes  input.x (T, D), rows (N, D).
  /// Throws  ShapeError if input, plan, rows and bank do not fit each other.
  void forward(const ExpertInput<float>& input, MatrixView<float> rows, Scratch& scratch) const {
    forward_weighted(input, rows, {}, scratch);
  }

  /// The same with rows times the weights of their slots, as a layer has them.
  ///
  /// Shapes  weights (T, K), or empty.
  void forward_weighted(const ExpertInput<float>& input, MatrixView<float> rows,
                        MatrixView<const float> weights, Scratch& scratch) const {
    detail::check_bank_call("QuantizedExperts::forward", input, rows, num_experts(), d_model());
    auto& stage = scratch.kept<detail::ExpertStage<float>>();
    stage.clear();
    stage.add({this, &input, rows, weights});
    stage.run(0, [](Index /*task*/) {});
  }

  /// The down bias (D) of an expert, if no weight is to multiply it, else null.
  const float* unweighted_bias(Index e) const noexcept {
    if (!config().biases || config().down_bias == DownBias::weighted) return nullptr;
    return detail::row_data(weights_.down_bias, e);
  }

  /// The bank as a part of a layer's expert stage.
  const detail::StagedBank<float>* staged() const noexcept { return this; }

  detail::StageShape stage_shape() const noexcept override { return shape_; }
  std::string kernel_of(Index expert, Index rows) const override;
  void run_pack(const detail::StageSlice<float>& slice, Index b, const float* const* rows,
                const float* scale) const override;
  void run_up(const detail::StageSlice<float>& slice) const override;
  void run_hidden(const detail::StageSlice<float>& slice) const override;
  void run_down(const detail::StageSlice<float>& slice) const override;

 private:
  static constexpr Index hidden_width = detail::hidden_width_of<ActivationT, float>;

  bool is_integer(const MatrixLayout& layout) const noexcept {
    return product_ == ProductKind::integer && has_integer_products(layout.format);
  }
  void find_shape() noexcept;

  /// Coded rows stand behind `lead` values for each row of their block.
  template <class Finish>
  void for_each_tile(const detail::StageSlice<float>& slice, const MatrixLayout& layout,
                     const std::byte* matrix, float* a, Index row_size, Index lead,
                     Finish&& finish) const {
    if (is_integer(layout)) {
      detail::for_each_integer_tile(slice, layout, matrix, a, row_size, lead, finish);
    } else {
      detail::for_each_widened_tile(slice, layout, matrix, a, row_size, finish);
    }
  }

  detail::CodedExperts weights_;
  ActivationT activation_;
  ProductKind product_ = ProductKind::integer;
  detail::StageShape shape_;
};

template <Activation<float> ActivationT>
std::string QuantizedExperts<ActivationT>::kernel_of(Index expert, Index rows) const {
  const ExpertLayout& layout = weights_.layout(expert);
  const std::string up = detail::coded_kernel(layout.up, is_integer(layout.up), rows);
  const std::string down = detail::coded_kernel(layout.down, is_integer(layout.down), rows);
  return up == down ? up : up + "; " + down;
}

template <Activation<float> ActivationT>
void QuantizedExperts<ActivationT>::find_shape() noexcept {
  const Index up_panels = weights_.layout(0).up.panels;
  const Index down_panels = weights_.layout(0).down.panels;
  const Index hidden = up_panels * hidden_width;
  shape_ = {.d_model = d_model(),
            .packed = d_model(),
            .hidden = hidden,
            .up_panels = up_panels,
            .down_panels = down_panels,
            .d_ff = d_ff(),
            .up_factor = is_gated ? 2 : 1};
  double integer_matrices = 0;
  for (Index e = 0; e < num_experts(); ++e) {
    const ExpertLayout& layout = weights_.layout(e);
    if (is_integer(layout.up)) {
      shape_.packed = std::max(shape_.packed, detail::coded_row_size(layout.up));
      integer_matrices += is_gated ? 2 : 1;
    }
    if (is_integer(layout.down)) {
      shape_.hidden = std::max(shape_.hidden, hidden + detail::coded_row_size(layout.down));
      shape_.prepares_hidden = true;
      integer_matrices += 1;
    }
  }
  shape_.integer_share = integer_matrices / static_cast<double>(num_experts() * (is_gated ? 3 : 2));
  const auto weights = static_cast<double>(num_experts()) * static_cast<double>(d_model()) *
                       static_cast<double>(d_ff()) * (is_gated ? 3 : 2);
  shape_.weight_bytes = weight_bytes() / weights;
}

template <Activation<float> ActivationT>
void QuantizedExperts<ActivationT>::run_pack(const detail::StageSlice<float>& slice, Index b,
                                             const float* const* rows, const float* scale) const {
  const MatrixLayout& layout = weights_.layout(slice.expert).up;
  const Index first = slice.block_row(b);
  const Index count = slice.block_row(b + 1) - first;
  float* const to = slice.packed + first * shape_.packed;
  if (!is_integer(layout)) {
    kernels::row_kernels<float>().pack(rows, scale, count, d_model(), to);
    return;
  }
  const detail::CodedBlock block(layout, to, count);
  const auto& kernels = kernels::coded_kernels(layout.format);
  // Tokens lie anywhere: 1024 of OLMoE's in memory took 63 % of the coding's time to come.
  const auto ask_for = [&](const float* row) {
    constexpr Index line = 64 / static_cast<Index>(sizeof(float));
    for (Index i = 0; i < d_model(); i += line) __builtin_prefetch(row + i, 0, 2);
  };
  for (Index r = 0; r < count; ++r) {
    if (r + 1 < count) ask_for(rows[r + 1]);
    block.put(kernels, layout, r, rows[r], scale == nullptr ? 1 : scale[r], d_model());
  }
}

template <Activation<float> ActivationT>
void QuantizedExperts<ActivationT>::run_up(const detail::StageSlice<float>& slice) const {
  const ExpertLayout& layout = weights_.layout(slice.expert);
  const bool by_row = is_integer(layout.down);  // Hidden values of a row side by side, to be coded.
  const Index hidden = shape_.up_panels * hidden_width;
  for_each_tile(slice, layout.up, weights_.up(slice.expert), slice.packed, shape_.packed, 0,
                [&](Index panel, Index first, Index count, const float* sums) {
                  const float* const bias = weights_.up_bias_of(slice.expert, panel);
                  float* const block = slice.hidden + first * shape_.hidden;
                  float* const values = block + panel * hidden_width * (by_row ? 1 : count);
                  detail::activate(activation_, sums, bias, count, values, by_row ? hidden : 0);
                  if (slice.dropout.rate > 0) {
                    const Index step = by_row ? 1 : count;
                    for (Index r = 0; r < count; r += step)
                      detail::drop_hidden(slice, panel, first + r, step, hidden_width, d_ff(),
                                          values + r * hidden);
                  }
                });
}

template <Activation<float> ActivationT>
void QuantizedExperts<ActivationT>::run_hidden(const detail::StageSlice<float>& slice) const {
  const MatrixLayout& layout = weights_.layout(slice.expert).down;
  if (!is_integer(layout)) return;
  const auto& kernels = kernels::coded_kernels(layout.format);
  const Index hidden = shape_.up_panels * hidden_width;
  for (Index b = slice.first_block; b < slice.last_block; ++b) {
    const Index first = slice.block_row(b);
    const Index count = slice.block_row(b + 1) - first;
    float* const values = slice.hidden + first * shape_.hidden;
    const detail::CodedBlock block(layout, values + hidden * count, count);
    for (Index r = 0; r < count; ++r) block.put(kernels, layout, r, values + r * hidden, 1, d_ff());
  }
}

template <Activation<float> ActivationT>
void QuantizedExperts<ActivationT>::run_down(const detail::StageSlice<float>& slice) const {
  const auto& kernels = kernels::row_kernels<float>();
  const auto finish = slice.past_caches ? kernels.finish_past_caches : kernels.finish;
  const bool adds_bias = config().down_bias == DownBias::weighted;
  const MatrixLayout& layout = weights_.layout(slice.expert).down;
  const Index hidden = shape_.up_panels * hidden_width;
  for_each_tile(slice, layout, weights_.down(slice.expert), slice.hidden, shape_.hidden, hidden,
                [&](Index panel, Index first, Index count, const float* sums) {
                  const Index column = panel * kernels::panel_width;
                  finish(sums, adds_bias ? weights_.down_bias_of(slice.expert, panel) : nullptr,
                         slice.weights == nullptr ? nullptr : slice.weights + first, count,
                         std::min(kernels::panel_width, d_model() - column),
                         slice.rows.row(first) + column, slice.rows.row_stride());
                });
}

}  // namespace moe::inline MOE_ABI
