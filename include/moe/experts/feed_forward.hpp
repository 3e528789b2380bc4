// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// FeedForwardExperts: banks of two- and three-matrix feed-forward experts.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <limits>
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
#include "moe/experts/activation.hpp"
#include "moe/experts/expert_source.hpp"
#include "moe/experts/expert_stage.hpp"
#include "moe/experts/gather.hpp"
#include "moe/experts/panel_product.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI {

/// Whether the routing weight multiplies the bias of the down projection, as it does where the bias
/// is part of the expert, or the bias is added beside it.
enum class DownBias { weighted, unweighted };

/// Sizes of a bank of E equal experts.
struct ExpertsConfig {
  Index num_experts = 0;
  Index d_model = 0;
  Index d_ff = 0;
  bool biases = false;
  DownBias down_bias = DownBias::weighted;
};

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

  Index num_experts() const noexcept { return config_.num_experts; }
  Index d_model() const noexcept { return config_.d_model; }
  Index d_ff() const noexcept { return config_.d_ff; }
  bool has_biases() const noexcept { return config_.biases; }
  const ActivationT& activation() const noexcept { return activation_; }

  /// Copies one expert into the bank; the views need not outlive the call.
  ///
  /// Throws  std::invalid_argument if `expert` is out of range; ShapeError if a matrix has not the
  ///         bank's sizes, one that the bank needs is empty, or one that it lacks is not.
  void set_expert(Index expert, const ExpertWeights<Scalar>& weights);

  /// The same from any of the layouts that checkpoints have.
  ///
  /// Throws  as above; ShapeError if the source's matrices do not fit each other.
  void set_expert_from(Index expert, const ExpertSource<Scalar>& source) {
    const ExpertMatrices<Scalar> matrices = separate(source);
    set_expert(expert, matrices.weights());
  }

  /// A copy of one expert's matrices, as the bank holds them: rounded, where it stores fewer bits.
  ExpertMatrices<Scalar> expert(Index e) const;

  /// Runs every expert on its rows of the plan.
  ///
  /// Shapes  input.x (T, D), rows (N, D).
  /// Cost    6 N D F flop with a gate, 4 N D F without; parallel over experts, panels and rows.
  /// Throws  ShapeError if input, plan, rows and bank do not fit each other.
  void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows, Scratch& scratch) const;

  /// Adds to tokens first .. first + y.rows() - 1 what the routing weights must not multiply: the
  /// down biases of the experts that ran, where the configuration says `unweighted`.
  ///
  /// Shapes  y (count, D).
  void add_unweighted(const Routing<Scalar>& routing, const DispatchPlan& plan, Index first,
                      MatrixView<Scalar> y) const {
    if (!config_.biases || config_.down_bias == DownBias::weighted) return;
    for (Index t = 0; t < y.rows(); ++t) {
      for (Index k = 0; k < plan.top_k; ++k) {
        if (plan.row_of[static_cast<std::size_t>((first + t) * plan.top_k + k)] ==
            DispatchPlan::no_row)
          continue;
        const Index expert = routing.experts(first + t, k) - plan.first_expert;
        if (expert < 0 || expert >= num_experts()) continue;  // Of another bank beside this one.
        const Scalar* const bias = detail::row_data(down_bias_, expert);
        for (Index d = 0; d < d_model(); ++d) y(t, d) += bias[d];
      }
    }
  }

  /// The bank as a part of a layer's expert stage.
  const detail::StagedBank<Scalar>* staged() const noexcept { return this; }

  detail::StageShape stage_shape() const noexcept override {
    return {.d_model = d_model(),
            .hidden = up_.panels() * hidden_width,
            .up_panels = up_.panels(),
            .down_panels = down_.panels(),
            .d_ff = d_ff(),
            .up_factor = is_gated ? 2 : 1,
            .weight_bytes = up_.weight_bytes()};
  }

  void run_up(const detail::StageSlice<Scalar>& slice) const override {
    const Index hidden = up_.panels() * hidden_width;
    detail::for_each_tile(slice, up_, slice.packed, d_model(),
                          [&](Index panel, Index first, Index count, Scalar* sums) {
                            activate(sums, bias_of(up_bias_, slice.expert, panel), count,
                                     slice.hidden + first * hidden + panel * hidden_width * count);
                          });
  }

  void run_down(const detail::StageSlice<Scalar>& slice) const override {
    const auto& kernels = kernels::row_kernels<Scalar>();
    const auto finish = slice.past_caches ? kernels.finish_past_caches : kernels.finish;
    const bool adds_bias = config_.down_bias == DownBias::weighted;
    const Index hidden = up_.panels() * hidden_width;
    detail::for_each_tile(slice, down_, slice.hidden, hidden,
                          [&](Index panel, Index first, Index count, Scalar* sums) {
                            const Index column = panel * kernels::panel_width;
                            finish(sums,
                                   adds_bias ? bias_of(down_bias_, slice.expert, panel) : nullptr,
                                   slice.weights == nullptr ? nullptr : slice.weights + first,
                                   count, std::min(kernels::panel_width, d_model() - column),
                                   slice.rows.row(first) + column, slice.rows.row_stride());
                          });
  }

 private:
  static constexpr Index hidden_width = is_gated ? kernels::gated_width : kernels::panel_width;
  static constexpr detail::PanelRole up_role =
      is_gated ? detail::PanelRole::up : detail::PanelRole::plain;

  /// Weights by their position in the stream `seed`.
  void fill(std::uint64_t seed);

  static void check_shape(const char* name, MatrixView<const Scalar> matrix, Index rows,
                          Index cols) {
    if (matrix.rows() != rows || matrix.cols() != cols) [[unlikely]]
      throw ShapeError(detail::text_of("FeedForwardExperts::set_expert: ", name, ": expected (",
                                       rows, ", ", cols, "), got (", matrix.rows(), ", ",
                                       matrix.cols(), ")"));
  }

  static const Scalar* bias_of(const Matrix<Scalar>& biases, Index expert, Index panel) noexcept {
    return biases.size() == 0
               ? nullptr
               : biases.data() + expert * biases.cols() + panel * kernels::panel_width;
  }

  /// Shapes  sums (count, 32), bias (32) or null, hidden (hidden values of a panel, count).
  void activate(const Scalar* sums, const Scalar* bias, Index count, Scalar* hidden) const {
    if constexpr (detail::KernelOf<ActivationT>::exists) {
      kernels::activation_kernel<Scalar, detail::KernelOf<ActivationT>::kind, is_gated>()(
          detail::kernel_rule<Scalar>(activation_), sums, bias, count, hidden);
    } else {
      for (Index r = 0; r < count; ++r) {
        const auto value = [&](Index o) {
          const Scalar sum = sums[r * kernels::panel_width + o];
          return bias == nullptr ? sum : sum + bias[o];
        };
        for (Index i = 0; i < hidden_width; ++i) {
          if constexpr (is_gated) {
            hidden[i * count + r] = activation_(value(i), value(hidden_width + i));
          } else {
            hidden[i * count + r] = activation_(value(i));
          }
        }
      }
    }
  }

  ExpertsConfig config_;
  ActivationT activation_;
  detail::PackedMatrices<Storage> up_;    // gate and up in one, inner D
  detail::PackedMatrices<Storage> down_;  // inner d_ff
  Matrix<Scalar> up_bias_;                // (E, columns of up_), with biases only
  Matrix<Scalar> down_bias_;              // (E, columns of down_), with biases only
};

template <class ScalarT, Activation<ScalarT> ActivationT, class StorageT>
FeedForwardExperts<ScalarT, ActivationT, StorageT>::FeedForwardExperts(const ExpertsConfig& config,
                                                                       ActivationT activation)
    : config_(config), activation_(std::move(activation)) {
  constexpr const char* where = "FeedForwardExperts";
  detail::check(config_.num_experts > 0, where, "num_experts must be positive");
  detail::check(config_.d_model > 0, where, "d_model must be positive");
  detail::check(config_.d_ff > 0, where, "d_ff must be positive");
  const auto filled_up = [](Index size, Index width) { return (size - 1) / width * width + width; };
  const Index most = std::numeric_limits<Index>::max() / 8 - 64;
  detail::check(config_.d_model < most && config_.d_ff < most, where, "the sizes are too large");
  const Index columns = (is_gated ? 2 : 1) * filled_up(config_.d_ff, hidden_width);
  const Index hidden = detail::product(where, config_.num_experts, columns);
  detail::product(where, hidden, detail::product(where, config_.d_model, sizeof(Scalar)));
  const Index outputs = filled_up(config_.d_model, kernels::panel_width);
  const Index rows = detail::product(where, config_.num_experts, outputs);
  detail::product(where, rows, detail::product(where, config_.d_ff, sizeof(Scalar)));
  up_ = {config_.num_experts, columns, config_.d_model};
  down_ = {config_.num_experts, outputs, config_.d_ff};
  if (config_.biases) {
    up_bias_.setZero(config_.num_experts, columns);
    down_bias_.setZero(config_.num_experts, outputs);
  }
}

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
    if constexpr (is_gated) pack(up_, detail::PanelRole::gate, d_ff(), d_model(), 0);
    pack(up_, up_role, d_ff(), d_model(), 1);
    pack(down_, detail::PanelRole::plain, d_model(), d_ff(), 2);
  });
}

template <class ScalarT, Activation<ScalarT> ActivationT, class StorageT>
void FeedForwardExperts<ScalarT, ActivationT, StorageT>::set_expert(
    Index expert, const ExpertWeights<Scalar>& weights) {
  constexpr const char* where = "FeedForwardExperts::set_expert";
  detail::check(expert >= 0 && expert < num_experts(), where, "expert is out of range");
  const Index biases = config_.biases ? 1 : 0;
  const Index gated = is_gated ? 1 : 0;
  check_shape("gate", weights.gate, d_ff() * gated, d_model() * gated);
  check_shape("up", weights.up, d_ff(), d_model());
  check_shape("down", weights.down, d_model(), d_ff());
  check_shape("gate_bias", weights.gate_bias, d_ff() * biases * gated, biases * gated);
  check_shape("up_bias", weights.up_bias, d_ff() * biases, biases);
  check_shape("down_bias", weights.down_bias, d_model() * biases, biases);
  if constexpr (is_gated) up_.pack(expert, detail::PanelRole::gate, weights.gate);
  up_.pack(expert, up_role, weights.up);
  down_.pack(expert, detail::PanelRole::plain, weights.down);
  if (config_.biases) {
    const auto place = [&](Matrix<Scalar>& to, detail::PanelRole role,
                           MatrixView<const Scalar> bias) {
      for (Index o = 0; o < bias.rows(); ++o)
        to(expert, detail::panel_column(role, o)) = bias(o, 0);
    };
    if constexpr (is_gated) place(up_bias_, detail::PanelRole::gate, weights.gate_bias);
    place(up_bias_, up_role, weights.up_bias);
    place(down_bias_, detail::PanelRole::plain, weights.down_bias);
  }
}

template <class ScalarT, Activation<ScalarT> ActivationT, class StorageT>
auto FeedForwardExperts<ScalarT, ActivationT, StorageT>::expert(Index e) const
    -> ExpertMatrices<Scalar> {
  detail::check(e >= 0 && e < num_experts(), "FeedForwardExperts::expert",
                "expert is out of range");
  ExpertMatrices<Scalar> matrices;
  const auto unpack = [&](const detail::PackedMatrices<Storage>& from, detail::PanelRole role,
                          Index outputs, Index inner, Matrix<Scalar>& to) {
    to.resize(outputs, inner);
    from.template unpack<Scalar>(e, role, to);
  };
  if constexpr (is_gated) unpack(up_, detail::PanelRole::gate, d_ff(), d_model(), matrices.gate);
  unpack(up_, up_role, d_ff(), d_model(), matrices.up);
  unpack(down_, detail::PanelRole::plain, d_model(), d_ff(), matrices.down);
  if (config_.biases) {
    const auto take = [&](const Matrix<Scalar>& from, detail::PanelRole role, Index outputs,
                          Matrix<Scalar>& to) {
      to.resize(outputs, 1);
      for (Index o = 0; o < outputs; ++o) to(o, 0) = from(e, detail::panel_column(role, o));
    };
    if constexpr (is_gated) take(up_bias_, detail::PanelRole::gate, d_ff(), matrices.gate_bias);
    take(up_bias_, up_role, d_ff(), matrices.up_bias);
    take(down_bias_, detail::PanelRole::plain, d_model(), matrices.down_bias);
  }
  return matrices;
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

}  // namespace moe::inline MOE_ABI
