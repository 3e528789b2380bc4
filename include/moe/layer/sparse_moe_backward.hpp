// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The backward pass of a sparse block.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/growing_matrix.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/bank_backward.hpp"
#include "moe/layer/dispatch.hpp"
#include "moe/layer/shared_experts.hpp"
#include "moe/layer/tape.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/drops.hpp"
#include "moe/routing/noise.hpp"
#include "moe/routing/plan.hpp"
#include "moe/routing/router_backward.hpp"
#include "moe/routing/scores.hpp"

namespace moe::inline MOE_ABI {

/// Rates of dropout inside experts.
///
/// Source  Fedus et al. (2021), section 2.4, arXiv:2101.03961, whose routed experts drop more than
///         the rest of the model.
struct ExpertDropout {
  double routed = 0;
  double shared = 0;
};

/// Parts of a layer that are not trained: a backward adds nothing to their gradients, and saves the
/// work.
struct FrozenParts {
  bool router = false;
  bool experts = false;                       ///< all routed ones
  bool shared = false;                        ///< shared experts and their gate
  std::vector<std::uint8_t> of_experts = {};  ///< (E), not 0 for routed experts that are frozen
  bool output_bias = false;
};

/// The gradients of everything that a SparseMoe has learnt. A backward adds to them.
///
/// Shapes  shared_gate (S, D) and output_bias (D), or empty where the layer has none.
template <class RouterT, class BankT, class SharedBankT>
struct SparseMoeGradients {
  using Scalar = typename BankT::Scalar;

  typename detail::GradientsOfRouter<RouterT>::Type router;
  typename BankT::Gradients experts;
  std::optional<typename SharedBankT::Gradients> shared{};
  Matrix<Scalar> shared_gate{};  // (S, D)
  Vector<Scalar> output_bias{};  // (D)
  FrozenParts frozen{};          // which parts do not get any

  void set_zero() {
    router.set_zero();
    experts.set_zero();
    if (shared) shared->set_zero();
    shared_gate.setZero();
    output_bias.setZero();
  }
};

namespace detail {

template <class RouterT, class BankT, class SharedBankT>
SparseMoeGradients<RouterT, BankT, SharedBankT> zero_gradients(
    const RouterT& router, const BankT& experts, const SharedExperts<SharedBankT>& shared,
    Index output_bias_size) {
  const auto of_router = [&] {
    if constexpr (DifferentiableRouter<RouterT>) {
      return router.gradients();
    } else {
      return NoGradients{};
    }
  };
  SparseMoeGradients<RouterT, BankT, SharedBankT> result{of_router(), experts.gradients()};
  if (shared.bank()) result.shared.emplace(shared.bank()->gradients());
  if (shared.has_gate())
    result.shared_gate.setZero(shared.bank()->num_experts(), experts.d_model());
  result.output_bias.setZero(output_bias_size);
  return result;
}

/// Values before the activation of so many rows.
template <class BankT>
std::size_t values_kept(const BankT& bank, Index rows) {
  return static_cast<std::size_t>(rows * bank.sums_size());
}

template <class BankT>
std::size_t shared_values_kept(const SharedExperts<BankT>& shared, Index tokens) {
  return shared.bank() ? values_kept(*shared.bank(), tokens * shared.bank()->num_experts()) : 0;
}

/// See SparseMoe::tape_bytes.
template <class BankT, class SharedBankT>
double tape_bytes(const BankT& experts, const SharedExperts<SharedBankT>& shared, Index top_k,
                  bool may_drop, Index tokens, Index rows, TapePolicy policy) {
  const auto t = static_cast<double>(tokens);
  const auto num_experts = static_cast<double>(experts.num_experts());
  const double choices = t * static_cast<double>(top_k);
  // Weights as routed, as used, and the gradients with respect to both; logits and scores, and the
  // gradients with respect to logits before and after noise.
  double values = 4 * choices + 4 * t * num_experts;
  if (shared.has_gate()) values += t * static_cast<double>(shared.bank()->num_experts());
  if (policy != TapePolicy::recompute)
    values += static_cast<double>(values_kept(experts, rows)) +
              static_cast<double>(shared_values_kept(shared, tokens));
  if (policy == TapePolicy::keep_all) values += choices * static_cast<double>(experts.d_model());
  const auto of_choice = static_cast<double>(sizeof(ExpertIndex) + sizeof(std::int32_t) +
                                             (may_drop ? 2 : 1) * sizeof(TokenSlot));
  return values * sizeof(typename BankT::Scalar) + choices * of_choice +
         (num_experts + 1) * sizeof(Index);
}

/// Before anything else, so that a forward that fails leaves a tape that serves for nothing.
template <class Scalar>
void begin_tape(const RouteOptions& options, const ExpertDropout& dropout, Tape<Scalar>& tape) {
  tape.layer = nullptr;
  tape.options.keep(options);
  const auto drop = [&](double rate, NoiseStream stream) -> HiddenDropout {
    if (!options.training) return {};
    return {rate, stream_seed(options.seed, stream)};
  };
  tape.dropout = drop(dropout.routed, NoiseStream::dropout);
  tape.shared_dropout = drop(dropout.shared, NoiseStream::shared_dropout);
  tape.drawn = {};
}

/// Routes with logits and scores, and with what a noisy router drew.
template <class RouterT>
void route_on_tape(const RouterT& router, MatrixView<const typename RouterT::Scalar> x,
                   RouteOptions options, Tape<typename RouterT::Scalar>& tape) {
  options.keep_logits = options.keep_scores = true;
  if constexpr (requires { router.route(x, {}, options, tape.routing, tape.drawn); }) {
    router.route(x, {}, options, tape.routing, tape.drawn);
  } else {
    router.route(x, options, tape.routing);
  }
}

/// What is left when a forward has run.
template <class Scalar>
void finish_tape(const Workspace<Scalar>& workspace, bool has_shared_gate, Tape<Scalar>& tape) {
  const bool changed = !tape.plan.dropped.empty() || tape.routing.renormalization.after_drop;
  tape.weights = changed ? workspace.weights : tape.routing.weights;
  tape.shared_gate.resize(0, 0);
  if (has_shared_gate) tape.shared_gate = workspace.shared_gate;
  const auto zero = [](GrowingMatrix<Scalar>& matrix, Index rows, Index cols) {
    matrix.resize(rows, cols);
    matrix.setZero();
  };
  const Index tokens = tape.routing.tokens();
  zero(tape.d_logits, tokens, tape.routing.num_experts);
  zero(tape.d_scored, tokens, tape.routing.num_experts);
  zero(tape.d_deviation, tape.drawn.deviation.rows(), tape.drawn.deviation.cols());
  zero(tape.d_weights, tokens, tape.routing.top_k());
  tape.d_weights_used.resize(tokens, tape.routing.top_k());  // So that a backward takes no memory.
  tape.has_sums = tape.policy != TapePolicy::recompute;
}

/// dx (T, D) += scale times the rows of each token, in order of the slots; where the weights acted
/// on the input, times the weight, too, whose gradient (T, K) is the row's product with x.
template <class Scalar>
void add_row_gradients(const ExpertInput<Scalar>& input, MatrixView<const Scalar> rows,
                       MatrixView<Scalar> d_scales, MatrixView<Scalar> dx) {
  const DispatchPlan& plan = input.plan;
  parallel::for_each_block(dx.rows(), copy_block_rows, [&](Index begin, Index end) {
    for (Index t = begin; t < end; ++t) {
      for (Index k = 0; k < plan.top_k; ++k) {
        const std::int32_t r = plan.row_of[static_cast<std::size_t>(t * plan.top_k + k)];
        if (r == DispatchPlan::no_row) continue;
        const Scalar* const row = rows.row(r);
        Scalar scale = input.factor;
        if (!input.scales.empty()) {
          scale *= input.scales(t, k);
          Scalar product = 0;
          for (Index d = 0; d < dx.cols(); ++d) product += row[d] * input.x(t, d);
          d_scales(t, k) = input.factor * product;
        }
        for (Index d = 0; d < dx.cols(); ++d) dx(t, d) += scale * row[d];
      }
    }
  });
}

/// The shared experts' part: gradients of their weights and gate, and dx (T, D) += theirs.
template <class BankT>
void backward_of_shared(const SharedExperts<BankT>& shared,
                        MatrixView<const typename BankT::Scalar> x,
                        const Tape<typename BankT::Scalar>& tape,
                        std::span<const typename BankT::Scalar> sums, bool frozen,
                        MatrixView<const typename BankT::Scalar> dy,
                        MatrixView<typename BankT::Scalar> dx, typename BankT::Gradients& gradients,
                        Matrix<typename BankT::Scalar>& gate_gradient,
                        Workspace<typename BankT::Scalar>& workspace) {
  using Scalar = typename BankT::Scalar;
  const BankT& bank = *shared.bank();
  make_full_plan(x.rows(), bank.num_experts(), workspace.shared_plan);
  workspace.shared_rows.resize(workspace.shared_plan.num_rows(), bank.d_model());
  const ExpertInput<Scalar> input{x, workspace.shared_plan, {}, 1, tape.shared_dropout};
  BankBackward<Scalar> call{input, dy, sums, workspace.shared_rows};
  call.all_frozen = frozen;
  Matrix<Scalar> d_gate;  // (T, S)
  if (shared.has_gate()) {
    d_gate.setZero(x.rows(), bank.num_experts());
    call.weights = tape.shared_gate;
    call.d_weights = d_gate;
  }
  bank.backward(call, gradients, workspace.scratch);
  add_row_gradients<Scalar>(input, workspace.shared_rows, {}, dx);
  if (!shared.has_gate()) return;
  for (Index t = 0; t < d_gate.rows(); ++t)
    for (Index e = 0; e < d_gate.cols(); ++e)
      d_gate(t, e) *= score_slope(ScoreFunction::sigmoid, tape.shared_gate(t, e));
  if (!frozen) add_transposed_product<Scalar>(d_gate, x, gate_gradient);
  add_product<Scalar>(d_gate, shared.gate(), {}, dx);
}

/// Multiplies gradients with respect to jittered tokens by the jitter, which DifferentiableRouter
/// says is a factor.
template <class RouterT>
void undo_jitter(const RouterT& router, const RouteOptions& options,
                 MatrixView<typename RouterT::Scalar> dx,
                 GrowingMatrix<typename RouterT::Scalar>& buffer) {
  const MatrixView<const typename RouterT::Scalar> result =
      hidden_states(router, dx, options, buffer);
  if (result.data() == dx.data()) return;
  for (Index t = 0; t < dx.rows(); ++t) std::copy_n(result.row(t), dx.cols(), dx.row(t));
}

/// Throws  as SparseMoe::backward, before anything was added to a gradient.
template <class RouterT, class BankT, class SharedBankT>
void check_backward(const char* where, const RouterT& router, const BankT& experts,
                    const SharedExperts<SharedBankT>& shared,
                    const Vector<typename BankT::Scalar>& output_bias,
                    MatrixView<const typename BankT::Scalar> x,
                    const Tape<typename BankT::Scalar>& tape,
                    MatrixView<const typename BankT::Scalar> dy,
                    MatrixView<typename BankT::Scalar> dx,
                    const SparseMoeGradients<RouterT, BankT, SharedBankT>& gradients) {
  const Index tokens = tape.routing.tokens();
  check_shape(where, "x.rows()", "x.cols()", x, tokens, experts.d_model());
  check_shape(where, "dy.rows()", "dy.cols()", dy, tokens, experts.d_model());
  check_shape(where, "dx.rows()", "dx.cols()", dx, tokens, experts.d_model());
  check(!overlap(x, dx), where, "dx overlaps x");
  check(!overlap(dy, dx), where, "dx overlaps dy");
  check_shape(where, "tape.d_logits.rows()", "tape.d_logits.cols()", tape.d_logits, tokens,
              tape.routing.num_experts);
  check_shape(where, "tape.d_weights.rows()", "tape.d_weights.cols()", tape.d_weights, tokens,
              tape.routing.top_k());
  check_shape(where, "tape.d_scored.rows()", "tape.d_scored.cols()", tape.d_scored, tokens,
              tape.routing.num_experts);
  if constexpr (DifferentiableRouter<RouterT>) router.check_backward(where, gradients.router);
  check_shape(where, "tape.d_deviation.rows()", "tape.d_deviation.cols()", tape.d_deviation,
              tape.drawn.deviation.rows(), tape.drawn.deviation.cols());
  check(!tape.has_sums || (tape.sums.size() == values_kept(experts, tape.plan.num_rows()) &&
                           tape.shared_sums.size() == shared_values_kept(shared, tokens)),
        where, "the layer is not as it was in the forward");
  check_shape(where, "tape.shared_gate.rows()", "tape.shared_gate.cols()", tape.shared_gate,
              shared.has_gate() ? tokens : 0, shared.has_gate() ? shared.bank()->num_experts() : 0);
  if (!gradients.frozen.of_experts.empty())
    check_size(where, "gradients.frozen.of_experts.size()", experts.num_experts(),
               static_cast<Index>(gradients.frozen.of_experts.size()));
  experts.check_backward(where, gradients.experts);
  check(gradients.shared.has_value() == shared.bank().has_value(), where,
        "the gradients are of another layer");
  if (shared.bank()) shared.bank()->check_backward(where, *gradients.shared);
  check_shape(where, "gradients.shared_gate.rows()", "gradients.shared_gate.cols()",
              gradients.shared_gate, shared.has_gate() ? shared.bank()->num_experts() : 0,
              shared.has_gate() ? experts.d_model() : 0);
  check_size(where, "gradients.output_bias.size()", output_bias.size(),
             gradients.output_bias.size());
}

/// The body of SparseMoe::backward.
template <class RouterT, class BankT, class SharedBankT>
void backward_of_layer(const RouterT& router, const BankT& experts,
                       const SharedExperts<SharedBankT>& shared,
                       MatrixView<const typename BankT::Scalar> x,
                       Tape<typename BankT::Scalar>& tape,
                       MatrixView<const typename BankT::Scalar> dy,
                       MatrixView<typename BankT::Scalar> dx,
                       SparseMoeGradients<RouterT, BankT, SharedBankT>& gradients,
                       Workspace<typename BankT::Scalar>& workspace) {
  using Scalar = typename BankT::Scalar;
  const RouteOptions options = tape.options.view();
  // On a routing of the caller's, the experts saw x itself.
  const MatrixView<const Scalar> seen =
      tape.through_router ? hidden_states(router, x, options, workspace.hidden) : x;
  const bool on_input = tape.routing.weight_target == WeightTarget::input;
  const MatrixView<const Scalar> weights = tape.weights;
  const MatrixView<const Scalar> none;
  const ExpertInput<Scalar> input{seen, tape.plan, on_input ? weights : none,
                                  static_cast<Scalar>(tape.routing.input_scale), tape.dropout};
  std::span<const Scalar> sums = tape.sums.values();
  std::span<const Scalar> shared_sums = tape.shared_sums.values();
  struct Recomputed {
    KeptSums<Scalar> sums;
    KeptSums<Scalar> shared_sums;
  };
  if (!tape.has_sums) {
    auto& recomputed = workspace.scratch.template kept<Recomputed>();
    const auto again = [&](const auto& bank, const ExpertInput<Scalar>& of_bank,
                           GrowingMatrix<Scalar>& rows, KeptSums<Scalar>& kept) {
      rows.resize(of_bank.plan.num_rows(), bank.d_model());
      bank.forward(of_bank, rows, kept.resize(values_kept(bank, of_bank.plan.num_rows())),
                   workspace.scratch);
      return kept.values();
    };
    sums = again(experts, input, workspace.rows, recomputed.sums);
    if (shared.bank()) {
      make_full_plan(x.rows(), shared.bank()->num_experts(), workspace.shared_plan);
      shared_sums = again(*shared.bank(), {seen, workspace.shared_plan}, workspace.shared_rows,
                          recomputed.shared_sums);
    }
  }
  GrowingMatrix<Scalar>& d_weights = tape.d_weights_used;
  d_weights.resize(weights.rows(), weights.cols());
  d_weights.setZero();
  workspace.rows.resize(tape.plan.num_rows(), experts.d_model());
  BankBackward<Scalar> call{input, dy, sums, workspace.rows};
  call.all_frozen = gradients.frozen.experts;
  call.frozen = gradients.frozen.of_experts;
  if (!on_input) {
    call.weights = weights;
    call.d_weights = d_weights;
  }
  experts.backward(call, gradients.experts, workspace.scratch);
  for (Index t = 0; t < dx.rows(); ++t) std::fill_n(dx.row(t), dx.cols(), Scalar(0));
  add_row_gradients<Scalar>(input, workspace.rows, d_weights, dx);
  if (shared.bank())
    backward_of_shared(shared, seen, tape, shared_sums, gradients.frozen.shared, dy, dx,
                       *gradients.shared, gradients.shared_gate, workspace);
  if constexpr (DifferentiableRouter<RouterT>) {
    if (tape.through_router)
      router.backward({.x = seen,
                       .options = options,
                       .routing = tape.routing,
                       .plan = tape.plan,
                       .d_weights = d_weights,
                       .d_logits = tape.d_logits,
                       .dx = dx,
                       .d_routed = tape.d_weights,
                       .d_scored = tape.d_scored,
                       .d_deviation = tape.d_deviation,
                       .frozen = gradients.frozen.router},
                      gradients.router);
  }
  if (tape.through_router) undo_jitter(router, options, dx, workspace.hidden);
  if (gradients.output_bias.size() == 0 || gradients.frozen.output_bias) return;
  for (Index t = 0; t < dy.rows(); ++t)
    for (Index d = 0; d < dy.cols(); ++d) gradients.output_bias[d] += dy(t, d);
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
