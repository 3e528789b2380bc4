// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// FeedForwardExperts: banks of two- and three-matrix feed-forward experts.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/numeric.hpp"
#include "moe/core/packed_matrices.hpp"
#include "moe/core/random.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/activate.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/experts/expert_gradients.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/expert_stage.hpp"
#include "moe/experts/feed_forward_backward.hpp"
#include "moe/experts/gather.hpp"
#include "moe/experts/packed_experts.hpp"
#include "moe/experts/panel_product.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI {

/// E experts, each down(activation(gate(x), up(x))) with a gated activation and
/// down(activation(up(x))) with a plain one. Weights are kept as `StorageT` and widened in
/// registers.
///
/// Values  a row's result has the same bits whatever the other rows and the number of threads.
template <class ScalarT, Activation<ScalarT> ActivationT, class StorageT = ScalarT>
class FeedForwardExperts final : public detail::StagedBank<ScalarT> {
 public:
  using Scalar = ScalarT;
  using Storage = StorageT;
  using Gradients = ExpertGradients<Scalar, GatedActivation<ActivationT, Scalar>>;
  static constexpr bool is_gated = GatedActivation<ActivationT, Scalar>;
  static_assert(std::same_as<Storage, Scalar> ||
                    (std::same_as<Scalar, float> &&
                     (std::same_as<Storage, bfloat16> || std::same_as<Storage, half>)),
                "weights are stored as the scalar itself or, for float, as bfloat16 or half");

  /// A bank of zeros, to be filled by `set_expert`.
  ///
  /// Throws  std::invalid_argument if a size is not positive or the weights exceed all memory.
  explicit FeedForwardExperts(const ExpertsConfig& config, ActivationT activation = {});

  /// Experts that keep the scale of a unit-variance input; biases start at zero.
  template <BitGenerator Generator>
  static FeedForwardExperts random(const ExpertsConfig& config, Generator& generator) {
    FeedForwardExperts bank(config);
    bank.fill(detail::draw_seed(generator));
    return bank;
  }

  Index num_experts() const noexcept { return weights_.config.num_experts; }
  Index d_model() const noexcept { return weights_.config.d_model; }
  Index d_ff() const noexcept { return weights_.config.d_ff; }
  bool has_biases() const noexcept { return weights_.config.biases; }
  const ActivationT& activation() const noexcept { return activation_; }

  /// Copies one expert into the bank; the views need not outlive the call.
  ///
  /// Throws  std::invalid_argument if `expert` is out of range; ShapeError if a matrix has not the
  ///         bank's sizes, one that the bank needs is empty, or one that it lacks is not.
  void set_expert(Index expert, const ExpertWeights<Scalar>& weights) {
    weights_.set("FeedForwardExperts::set_expert", expert, weights);
  }

  /// The same from any of the layouts that checkpoints have.
  ///
  /// Throws  as above; ShapeError if the source's matrices do not fit each other.
  void set_expert_from(Index expert, const ExpertSource<Scalar>& source) {
    const ExpertMatrices<Scalar> matrices = separate(source);
    set_expert(expert, matrices.weights());
  }

  /// A copy of one expert's matrices, as the bank holds them: rounded, where it stores fewer bits.
  ExpertMatrices<Scalar> expert(Index e) const {
    return weights_.get("FeedForwardExperts::expert", e);
  }

  /// Runs every expert on its rows of the plan.
  ///
  /// Shapes  input.x (T, D), rows (N, D).
  /// Cost    6 N D F flop with a gate, 4 N D F without; parallel over experts, panels and rows.
  /// Throws  ShapeError if input, plan, rows and bank do not fit each other.
  void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows, Scratch& scratch) const;

  /// The same, and keeps what `backward` needs: the values before the activation.
  ///
  /// Shapes  sums (N, sums_size()).
  /// Throws  ShapeError, further, if sums is not that long.
  void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows, std::span<Scalar> sums,
               Scratch& scratch) const;

  /// Values before the activation that a backward needs of each row: d_ff, twice with a gate,
  /// filled up to whole panels.
  Index sums_size() const noexcept { return weights_.up.panels() * kernels::panel_width; }

  /// Zeros, to which `backward` adds.
  Gradients gradients() const { return Gradients(weights_.config); }

  /// The weights as they lie, for an optimiser: gate and up, down, their biases. Where panels are
  /// filled up they must stay zero, as they do where an element of gradient 0 does.
  template <std::same_as<Scalar> S = StorageT>
  std::array<std::span<Scalar>, 4> values() noexcept {
    return weights_.values();
  }

  /// Rounds the weights of a bank of the same sizes into this one, and copies its biases: weights
  /// that an optimiser moves by less than this storage resolves are kept in full beside it.
  ///
  /// Throws  ShapeError if the sizes differ; std::invalid_argument if the biases do.
  void round_from(const FeedForwardExperts<Scalar, ActivationT, Scalar>& master) {
    constexpr const char* where = "FeedForwardExperts::round_from";
    check_sizes(where, "master", master.weights_.config);
    const auto round = [](std::span<const Scalar> from, std::span<Storage> to) {
      parallel::for_each_block(static_cast<Index>(to.size()), 65536, [&](Index begin, Index end) {
        for (Index i = begin; i < end; ++i)
          to[static_cast<std::size_t>(i)] =
              detail::store_as<Storage>(from[static_cast<std::size_t>(i)]);
      });
    };
    round(master.weights_.up.values(), weights_.up.values());
    round(master.weights_.down.values(), weights_.down.values());
    weights_.up_bias = master.weights_.up_bias;
    weights_.down_bias = master.weights_.down_bias;
  }

  /// The reverse of a forward whose outputs were multiplied by the routing weights and added up:
  /// adds the gradients of weights and biases, and gives those of the experts' inputs and of the
  /// routing weights.
  ///
  /// Shapes  as BankBackward says.
  /// Values  the bits do not depend on the number of threads.
  /// Cost    12 N D F flop with a gate, 8 N D F without; half where experts are frozen.
  /// Throws  ShapeError if a size disagrees, or the gradients are of another bank's sizes.
  template <Activation<Scalar> A = ActivationT>
  requires(detail::KernelOf<A>::exists) void backward(const BankBackward<Scalar>& call,
                                                      Gradients& gradients,
                                                      Scratch& scratch) const {
    constexpr const char* where = "FeedForwardExperts::backward";
    check_backward(where, gradients);
    detail::check_bank_backward(where, call, num_experts(), d_model(), sums_size());
    scratch.kept<detail::FeedForwardBackward<Scalar>>().run(weights_, activation_, call,
                                                            gradients.packed());
  }

  /// Throws  what `backward` would for these gradients, beginning with `where`, so that a layer
  ///         refuses them before it has added to any.
  void check_backward(const char* where, const Gradients& gradients) const {
    check_sizes(where, "gradients", gradients.config());
  }

  /// The down bias (D) of an expert, if no weight is to multiply it, else null.
  const Scalar* unweighted_bias(Index e) const noexcept {
    if (!weights_.config.biases || weights_.config.down_bias == DownBias::weighted) return nullptr;
    return detail::row_data(weights_.down_bias, e);
  }

  /// The bank as a part of a layer's expert stage.
  const detail::StagedBank<Scalar>* staged() const noexcept { return this; }

  std::string kernel_of(Index /*expert*/, Index rows) const override {
    return detail::tile_kernel<Scalar, Storage>(rows);
  }
  detail::StageShape stage_shape() const noexcept override {
    return {.d_model = d_model(),
            .packed = d_model(),
            .hidden = weights_.up.panels() * hidden_width,
            .up_panels = weights_.up.panels(),
            .down_panels = weights_.down.panels(),
            .d_ff = d_ff(),
            .up_factor = is_gated ? 2 : 1,
            .weight_bytes = weights_.up.weight_bytes()};
  }

  void run_up(const detail::StageSlice<Scalar>& slice) const override {
    const Index hidden = weights_.up.panels() * hidden_width;
    detail::for_each_tile(
        slice, weights_.up, slice.packed, d_model(),
        [&](Index panel, Index first, Index count, Scalar* sums) {
          if (slice.kept_sums != nullptr)
            keep_sums(sums, weights_.up_bias_of(slice.expert, panel), count,
                      slice.kept_sums + (panel * slice.num_rows + first) * kernels::panel_width);
          Scalar* const values = slice.hidden + first * hidden + panel * hidden_width * count;
          detail::activate(activation_, sums, weights_.up_bias_of(slice.expert, panel), count,
                           values);
          if (slice.dropout.rate > 0)
            detail::drop_hidden(slice, panel, first, count, hidden_width, d_ff(), values);
        });
  }

  void run_down(const detail::StageSlice<Scalar>& slice) const override {
    const auto& kernels = kernels::row_kernels<Scalar>();
    const auto finish = slice.past_caches ? kernels.finish_past_caches : kernels.finish;
    const bool adds_bias = weights_.config.down_bias == DownBias::weighted;
    const Index hidden = weights_.up.panels() * hidden_width;
    detail::for_each_tile(slice, weights_.down, slice.hidden, hidden,
                          [&](Index panel, Index first, Index count, Scalar* sums) {
                            const Index column = panel * kernels::panel_width;
                            finish(sums,
                                   adds_bias ? weights_.down_bias_of(slice.expert, panel) : nullptr,
                                   slice.weights == nullptr ? nullptr : slice.weights + first,
                                   count, std::min(kernels::panel_width, d_model() - column),
                                   slice.rows.row(first) + column, slice.rows.row_stride());
                          });
  }

 private:
  template <class OtherScalar, Activation<OtherScalar> OtherActivation, class OtherStorage>
  friend class FeedForwardExperts;

  /// Throws  unless something called `what` has this bank's sizes.
  void check_sizes(const char* where, const char* what, const ExpertsConfig& config) const {
    const auto check_size = [&](const char* name, Index expected, Index actual) {
      if (expected != actual) [[unlikely]]
        throw ShapeError(detail::text_of(where, ": ", what, " has another ", name, ": expected ",
                                         expected, ", got ", actual));
    };
    check_size("num_experts", num_experts(), config.num_experts);
    check_size("d_model", d_model(), config.d_model);
    check_size("d_ff", d_ff(), config.d_ff);
    if (config.biases != has_biases() || config.down_bias != weights_.config.down_bias) [[unlikely]]
      detail::throw_invalid(where, detail::text_of(what, " has other biases"));
  }

  using Weights = detail::PackedExperts<Scalar, is_gated, Storage>;
  static constexpr Index hidden_width = Weights::hidden_width;
  static constexpr detail::PanelRole up_role = Weights::up_role;

  /// Weights by their position in the stream `seed`.
  void fill(std::uint64_t seed);

  /// For a backward: the sums, with bias, that the activation is applied to.
  static void keep_sums(const Scalar* sums, const Scalar* bias, Index count, Scalar* kept) {
    kernels::row_kernels<Scalar>().finish(sums, bias, nullptr, count, kernels::panel_width, kept,
                                          kernels::panel_width);
  }

  Weights weights_;
  ActivationT activation_;
};

template <class ScalarT, Activation<ScalarT> ActivationT, class StorageT>
FeedForwardExperts<ScalarT, ActivationT, StorageT>::FeedForwardExperts(const ExpertsConfig& config,
                                                                       ActivationT activation)
    : weights_("FeedForwardExperts", config), activation_(std::move(activation)) {}

template <class ScalarT, Activation<ScalarT> ActivationT, class StorageT>
void FeedForwardExperts<ScalarT, ActivationT, StorageT>::fill(std::uint64_t seed) {
  parallel::for_each_task(num_experts(), [&](Index e, int /*thread*/) {
    const auto pack = [&](detail::PackedMatrices<Storage>& to, detail::PanelRole role,
                          Index outputs, Index fan_in, std::uint64_t matrix) {
      Matrix<Scalar> weights(outputs, fan_in);
      detail::fill_uniform(weights.data(), weights.size(), fan_in,
                           detail::mix_bits(seed + 3 * static_cast<std::uint64_t>(e) + matrix));
      to.template pack<Scalar>(e, role, weights);
    };
    if constexpr (is_gated) pack(weights_.up, detail::PanelRole::gate, d_ff(), d_model(), 0);
    pack(weights_.up, up_role, d_ff(), d_model(), 1);
    pack(weights_.down, detail::PanelRole::plain, d_model(), d_ff(), 2);
  });
}

template <class ScalarT, Activation<ScalarT> ActivationT, class StorageT>
void FeedForwardExperts<ScalarT, ActivationT, StorageT>::forward(const ExpertInput<Scalar>& input,
                                                                 MatrixView<Scalar> rows,
                                                                 Scratch& scratch) const {
  detail::check_bank_call("FeedForwardExperts::forward", input, rows, num_experts(), d_model());
  auto& stage = scratch.kept<detail::ExpertStage<Scalar>>();
  stage.clear();
  stage.add({this, &input, rows, {}});
  stage.run(0, [](Index /*task*/) {});
}

template <class ScalarT, Activation<ScalarT> ActivationT, class StorageT>
void FeedForwardExperts<ScalarT, ActivationT, StorageT>::forward(const ExpertInput<Scalar>& input,
                                                                 MatrixView<Scalar> rows,
                                                                 std::span<Scalar> sums,
                                                                 Scratch& scratch) const {
  constexpr const char* where = "FeedForwardExperts::forward";
  detail::check_bank_call(where, input, rows, num_experts(), d_model());
  detail::check_size(where, "sums.size()", input.plan.num_rows() * sums_size(),
                     static_cast<Index>(sums.size()));
  auto& stage = scratch.kept<detail::ExpertStage<Scalar>>();
  stage.clear();
  stage.add({this, &input, rows, {}, sums.data()});
  stage.run(0, [](Index /*task*/) {});
}

}  // namespace moe::inline MOE_ABI
