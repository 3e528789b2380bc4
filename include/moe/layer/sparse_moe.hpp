// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// SparseMoe: the block that replaces a transformer's feed-forward layer.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/expert_stage.hpp"
#include "moe/experts/gather.hpp"
#include "moe/layer/dispatch.hpp"
#include "moe/layer/explain.hpp"
#include "moe/layer/explain_layer.hpp"
#include "moe/layer/run_layer.hpp"
#include "moe/layer/shared_experts.hpp"
#include "moe/layer/sparse_moe_backward.hpp"
#include "moe/layer/tape.hpp"
#include "moe/layer/workspace.hpp"
#include "moe/routing/capacity.hpp"
#include "moe/routing/drops.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI {

/// y = sum over the chosen experts of weight * expert(x), plus the shared experts; without residual
/// and normalisation.
///
/// Values  With a token-wise router and no capacity, the bits of a token's output depend neither on
///         the number of threads nor on the other tokens of the call. A token whose choices were
///         all dropped gets the shared experts' sum, or zeros. T = 0 is legal. NaN or infinity in a
///         token stays in that token's output.
/// Threads The overloads that take a workspace are const and may run several at once, each with its
///         own workspace; the others share the layer's own, for one caller at a time. Within a
///         parallel region of the caller, a forward runs on the calling thread.
/// Throws  before any output is written: ShapeError if x, routing or y do not fit the layer,
///         std::invalid_argument if y overlaps x, or a routing holds an expert out of range or a
///         weight that is not finite. What a user's router or expert throws reaches the caller.
template <Router RouterT, ExpertBank BankT, ExpertBank SharedBankT = BankT>
class SparseMoe {
 public:
  using Scalar = typename RouterT::Scalar;
  static_assert(std::is_same_v<Scalar, typename BankT::Scalar> &&
                    std::is_same_v<Scalar, typename SharedBankT::Scalar>,
                "router and experts must have one scalar type");

  /// Throws  ShapeError if the parts differ in d_model or num_experts; std::invalid_argument if the
  ///         capacity makes no sense.
  SparseMoe(RouterT router, BankT experts, SharedExperts<SharedBankT> shared = {},
            Capacity capacity = {});

  Index d_model() const noexcept { return router_.d_model(); }
  const RouterT& router() const noexcept { return router_; }
  RouterT& router() noexcept { return router_; }
  const BankT& experts() const noexcept { return experts_; }
  BankT& experts() noexcept { return experts_; }
  const SharedExperts<SharedBankT>& shared() const noexcept { return shared_; }
  SharedExperts<SharedBankT>& shared() noexcept { return shared_; }
  const Capacity& capacity() const noexcept { return capacity_; }
  Capacity& capacity() noexcept { return capacity_; }

  /// Added to every token's output; empty for none.
  const Vector<Scalar>& output_bias() const noexcept { return output_bias_; }

  /// Throws  ShapeError unless the bias is empty or D long.
  void set_output_bias(Vector<Scalar> bias) {
    if (bias.size() != 0)
      detail::check_size("SparseMoe::set_output_bias", "bias.size()", d_model(), bias.size());
    output_bias_ = std::move(bias);
  }

  /// Of hidden values in training: in forwards with a tape whose options say so.
  const ExpertDropout& expert_dropout() const noexcept { return expert_dropout_; }

  /// Throws  std::invalid_argument unless both rates are at least 0 and below 1.
  void set_expert_dropout(ExpertDropout dropout) {
    for (const double rate : {dropout.routed, dropout.shared})
      detail::check(rate >= 0 && rate < 1, "SparseMoe::set_expert_dropout",
                    "a rate must be at least 0 and below 1");
    expert_dropout_ = dropout;
  }

  /// The plan of the last forward that used the layer's own workspace and no tape.
  const DispatchPlan& plan() const noexcept { return workspace_.plan; }

  /// Routes x and runs the layer with its own workspace.
  ///
  /// Shapes  x, y (T, D); the routing is (T, K) and valid until the next forward.
  const Routing<Scalar>& forward(MatrixView<const Scalar> x, MatrixView<Scalar> y,
                                 RouteOptions options = {}) {
    return forward(x, y, workspace_, options);
  }

  /// The same with the caller's workspace, which owns the routing that is returned.
  const Routing<Scalar>& forward(MatrixView<const Scalar> x, MatrixView<Scalar> y,
                                 Workspace<Scalar>& workspace, RouteOptions options = {}) const;

  /// The same, and fills the tape for a `backward`. The routing and the plan are the tape's; the
  /// routing has logits and scores whatever the options say, if the router has any.
  ///
  /// Throws  further: std::invalid_argument if the layer re-routes dropped choices.
  template <DifferentiableBank B = BankT, DifferentiableBank S = SharedBankT>
  const Routing<Scalar>& forward(MatrixView<const Scalar> x, MatrixView<Scalar> y,
                                 Tape<Scalar>& tape, Workspace<Scalar>& workspace,
                                 RouteOptions options = {}) const {
    detail::check(!capacity_.reroute, forward_name, "re-routed choices have no gradient");
    detail::begin_tape(options, expert_dropout_, tape);
    check_views(x, y);
    const detail::ScratchScope scope(workspace.scratch);
    const MatrixView<const Scalar> hidden =
        detail::hidden_states(router_, x, options, workspace.hidden);
    detail::route_on_tape(router_, hidden, options, tape);
    check_routing_sizes(hidden, tape.routing, y);
    make_plan(forward_name, tape.routing, options.seed, tape.routing, tape.plan);
    run_plan(hidden, tape.routing, tape.plan, y, workspace, &tape);
    detail::finish_tape(workspace, shared_.has_gate(), tape);
    tape.through_router = true;
    tape.layer = this;
    return tape.routing;
  }
  template <DifferentiableBank B = BankT, DifferentiableBank S = SharedBankT>
  const Routing<Scalar>& forward(MatrixView<const Scalar> x, MatrixView<Scalar> y,
                                 Tape<Scalar>& tape, RouteOptions options = {}) {
    return forward(x, y, tape, workspace_, options);
  }

  /// The same on a routing and a plan of the caller's, where the backward ends: it gives
  /// tape.d_weights_used, from which the caller's own router, or `router().backward`, goes on. Of
  /// the options, training and seed matter, to dropout; a jitter of the experts' inputs is the
  /// router's, and left out.
  template <DifferentiableBank B = BankT, DifferentiableBank S = SharedBankT>
  void forward(MatrixView<const Scalar> x, const Routing<Scalar>& routing, const DispatchPlan& plan,
               MatrixView<Scalar> y, Tape<Scalar>& tape, Workspace<Scalar>& workspace,
               RouteOptions options = {}) const {
    detail::begin_tape(options, expert_dropout_, tape);
    check_plan(x, routing, plan, y);
    tape.routing = routing;
    tape.plan = plan;
    const detail::ScratchScope scope(workspace.scratch);
    run_plan(x, tape.routing, tape.plan, y, workspace, &tape);
    detail::finish_tape(workspace, shared_.has_gate(), tape);
    tape.through_router = false;
    tape.layer = this;
  }

  /// The reverse of the forward that filled the tape: from the gradient with respect to y, and
  /// those of losses on the tape, to dx and to the gradients of everything that the layer has
  /// learnt and that is not frozen, which are added to. A router without a backward of its own
  /// gets none: tape.d_weights_used is where the gradients end then. A tape serves once.
  ///
  /// Shapes  x as in the forward, dy, dx (T, D).
  /// Values  the bits do not depend on the number of threads.
  /// Throws  std::invalid_argument if no forward of this layer filled the tape, or dx overlaps x or
  ///         dy; ShapeError if a size disagrees.
  template <DifferentiableBank B = BankT, DifferentiableBank S = SharedBankT>
  void backward(MatrixView<const Scalar> x, Tape<Scalar>& tape, MatrixView<const Scalar> dy,
                MatrixView<Scalar> dx, SparseMoeGradients<RouterT, BankT, SharedBankT>& gradients,
                Workspace<Scalar>& workspace) const;
  template <DifferentiableBank B = BankT, DifferentiableBank S = SharedBankT>
  void backward(MatrixView<const Scalar> x, Tape<Scalar>& tape, MatrixView<const Scalar> dy,
                MatrixView<Scalar> dx, SparseMoeGradients<RouterT, BankT, SharedBankT>& gradients) {
    backward(x, tape, dy, dx, gradients, workspace_);
  }

  /// Zeros, to which `backward` adds.
  template <DifferentiableBank B = BankT, DifferentiableBank S = SharedBankT>
  auto gradients() const {
    return detail::zero_gradients(router_, experts_, shared_, output_bias_.size());
  }

  /// Bytes that a new tape takes for so many tokens and a plan of N rows: in Scalars
  ///
  ///     4 T K + 4 T E      the routing's weights, logits and scores, and gradients beside them
  ///     T S                of gated shared experts
  ///     N P + T S P'       values before the activation; none with TapePolicy::recompute
  ///     T K D              outputs, with TapePolicy::keep_all
  ///
  /// and 16 T K + 8 (E + 1) bytes of the routing and plan, 24 T K under a capacity. P is
  /// `experts().sums_size()`, the width of up and gate in whole panels, P' the same of shared
  /// experts. What a NoisyTopKRouter draws and types or groups of tokens come on top; a buffer of
  /// 2 MiB or more takes whole huge pages. With an ExpertChoiceRouter, K is at most E: the most.
  template <DifferentiableBank B = BankT, DifferentiableBank S = SharedBankT>
  double tape_bytes(Index tokens, Index rows,
                    TapePolicy policy = TapePolicy::keep_preactivations) const {
    return detail::tape_bytes(experts_, shared_, router_.top_k(), !capacity_.is_unlimited(), tokens,
                              rows, policy);
  }

  /// Runs the layer on a routing that the caller supplies in place of the router's.
  ///
  /// Shapes  x, y (T, D); routing (T, K'), where K' need not be the router's K.
  void forward(MatrixView<const Scalar> x, const Routing<Scalar>& routing, MatrixView<Scalar> y) {
    forward(x, routing, y, workspace_);
  }

  /// The same with the caller's workspace. With `capacity().reroute`, the routing as it was run is
  /// the workspace's.
  void forward(MatrixView<const Scalar> x, const Routing<Scalar>& routing, MatrixView<Scalar> y,
               Workspace<Scalar>& workspace) const;

  /// What a forward with this routing does, expert by expert, and the least time that it takes a
  /// machine with these limits. `seed` is the forward's, which random drops depend on.
  ///
  /// Throws  as forward.
  Explanation explain(const Routing<Scalar>& routing,
                      const MachineLimits& limits = MachineLimits::assumed(),
                      std::uint64_t seed = 0) const;

  /// Bytes that a workspace takes for a forward of so many tokens, whatever their routing: the
  /// routing with its logits and scores, the plan, packed rows, hidden values, results, lists of
  /// experts and tasks, and what each thread works on. What a capacity, jitter or noise need comes
  /// on top, a bank of the caller's own, and what fills buffers beyond 2 MiB up to whole huge
  /// pages.
  double workspace_bytes(Index tokens) const {
    return detail::workspace_bytes(experts_, shared_, router_.top_k(), tokens);
  }

  /// Runs the layer on a routing and a plan that the caller supplies, such as one made with
  /// priorities of the caller's. The layer's capacity is not asked.
  void forward(MatrixView<const Scalar> x, const Routing<Scalar>& routing, const DispatchPlan& plan,
               MatrixView<Scalar> y, Workspace<Scalar>& workspace) const;

 private:
  static constexpr const char* forward_name = "SparseMoe::forward";

  void check_views(MatrixView<const Scalar> x, MatrixView<Scalar> y) const {
    detail::check_size(forward_name, "x.cols()", d_model(), x.cols());
    detail::check_size(forward_name, "y.rows()", x.rows(), y.rows());
    detail::check_size(forward_name, "y.cols()", d_model(), y.cols());
    detail::check(!detail::overlap(x, y), forward_name, "y overlaps x");
  }

  /// `seed` is the call's, so that random drops differ from step to step.
  void run(MatrixView<const Scalar> x, const Routing<Scalar>& routing, MatrixView<Scalar> y,
           Workspace<Scalar>& workspace, std::uint64_t seed = 0) const {
    check_routing_sizes(x, routing, y);
    const Routing<Scalar>& final_routing =
        make_plan(forward_name, routing, seed, workspace.routing, workspace.plan);
    run_plan(x, final_routing, workspace.plan, y, workspace);
  }

  /// The plan under the layer's capacity. Gives the routing that it belongs to: `routing`, or
  /// `changed` with what was re-routed.
  const Routing<Scalar>& make_plan(const char* where, const Routing<Scalar>& routing,
                                   std::uint64_t seed, Routing<Scalar>& changed,
                                   DispatchPlan& plan) const {
    Capacity capacity = capacity_;
    capacity.seed ^= seed;
    detail::make_plan<Scalar>(where, routing, capacity, plan);
    if (!capacity.reroute || plan.dropped.empty()) return routing;
    if (&routing != &changed) changed = routing;
    detail::reroute_dropped(plan, capacity, changed);
    detail::make_plan<Scalar>(where, changed, capacity, plan);
    return changed;
  }

  void check_size_of_experts(const char* where, const Routing<Scalar>& routing) const {
    detail::check_size(where, "routing.num_experts", experts_.num_experts(), routing.num_experts);
  }

  void check_routing_sizes(MatrixView<const Scalar> x, const Routing<Scalar>& routing,
                           MatrixView<Scalar> y) const {
    detail::check(!detail::overlap(MatrixView<const Scalar>(routing.weights), y), forward_name,
                  "y overlaps the routing's weights");
    detail::check_size(forward_name, "routing.tokens()", x.rows(), routing.tokens());
    check_size_of_experts(forward_name, routing);
  }

  void check_plan(MatrixView<const Scalar> x, const Routing<Scalar>& routing,
                  const DispatchPlan& plan, MatrixView<Scalar> y) const {
    check_views(x, y);
    check_routing_sizes(x, routing, y);
    detail::check_plan_of(forward_name, routing, plan);
    detail::check_size(forward_name, "plan.first_expert", 0, plan.first_expert);
    for (Index e = 0; e < plan.num_experts; ++e) {
      for (Index r = plan.first_row(e); r < plan.first_row(e + 1); ++r) {
        const TokenSlot at = plan.rows[static_cast<std::size_t>(r)];
        detail::check(routing.experts(at.token, at.slot) == e, forward_name,
                      "the plan has other experts than the routing");
      }
    }
  }

  void run_plan(MatrixView<const Scalar> x, const Routing<Scalar>& routing,
                const DispatchPlan& plan, MatrixView<Scalar> y, Workspace<Scalar>& workspace,
                Tape<Scalar>* tape = nullptr) const {
    detail::run_layer(forward_name, experts_, shared_, output_bias_, capacity_.is_unlimited(), x,
                      routing, plan, y, workspace, tape);
  }

  RouterT router_;
  BankT experts_;
  SharedExperts<SharedBankT> shared_;
  Capacity capacity_;
  Vector<Scalar> output_bias_;
  ExpertDropout expert_dropout_{};
  Workspace<Scalar> workspace_;
};

template <Router RouterT, ExpertBank BankT, ExpertBank SharedBankT>
SparseMoe<RouterT, BankT, SharedBankT>::SparseMoe(RouterT router, BankT experts,
                                                  SharedExperts<SharedBankT> shared,
                                                  Capacity capacity)
    : router_(std::move(router)),
      experts_(std::move(experts)),
      shared_(std::move(shared)),
      capacity_(capacity) {
  constexpr const char* where = "SparseMoe";
  detail::check_size(where, "experts.d_model()", router_.d_model(), experts_.d_model());
  detail::check_size(where, "experts.num_experts()", router_.num_experts(), experts_.num_experts());
  if (shared_.bank())
    detail::check_size(where, "shared.d_model()", router_.d_model(), shared_.bank()->d_model());
  detail::check_capacity(where, capacity_);
}

template <Router RouterT, ExpertBank BankT, ExpertBank SharedBankT>
auto SparseMoe<RouterT, BankT, SharedBankT>::forward(MatrixView<const Scalar> x,
                                                     MatrixView<Scalar> y,
                                                     Workspace<Scalar>& workspace,
                                                     RouteOptions options) const
    -> const Routing<Scalar>& {
  check_views(x, y);
  const detail::ScratchScope scope(workspace.scratch);
  const MatrixView<const Scalar> hidden =
      detail::hidden_states(router_, x, options, workspace.hidden);
  router_.route(hidden, options, workspace.routing);
  run(hidden, workspace.routing, y, workspace, options.seed);
  return workspace.routing;
}

template <Router RouterT, ExpertBank BankT, ExpertBank SharedBankT>
void SparseMoe<RouterT, BankT, SharedBankT>::forward(MatrixView<const Scalar> x,
                                                     const Routing<Scalar>& routing,
                                                     MatrixView<Scalar> y,
                                                     Workspace<Scalar>& workspace) const {
  check_views(x, y);
  const detail::ScratchScope scope(workspace.scratch);
  run(x, routing, y, workspace);
}

template <Router RouterT, ExpertBank BankT, ExpertBank SharedBankT>
Explanation SparseMoe<RouterT, BankT, SharedBankT>::explain(const Routing<Scalar>& routing,
                                                            const MachineLimits& limits,
                                                            std::uint64_t seed) const {
  check_size_of_experts("SparseMoe::explain", routing);
  DispatchPlan plan;
  Routing<Scalar> changed;
  make_plan("SparseMoe::explain", routing, seed, changed, plan);
  return detail::explain_layer(experts_, shared_, plan, limits);
}

template <Router RouterT, ExpertBank BankT, ExpertBank SharedBankT>
void SparseMoe<RouterT, BankT, SharedBankT>::forward(MatrixView<const Scalar> x,
                                                     const Routing<Scalar>& routing,
                                                     const DispatchPlan& plan, MatrixView<Scalar> y,
                                                     Workspace<Scalar>& workspace) const {
  check_plan(x, routing, plan, y);
  const detail::ScratchScope scope(workspace.scratch);
  run_plan(x, routing, plan, y, workspace);
}

template <Router RouterT, ExpertBank BankT, ExpertBank SharedBankT>
template <DifferentiableBank B, DifferentiableBank S>
void SparseMoe<RouterT, BankT, SharedBankT>::backward(
    MatrixView<const Scalar> x, Tape<Scalar>& tape, MatrixView<const Scalar> dy,
    MatrixView<Scalar> dx, SparseMoeGradients<RouterT, BankT, SharedBankT>& gradients,
    Workspace<Scalar>& workspace) const {
  constexpr const char* where = "SparseMoe::backward";
  detail::check(tape.layer == this, where, "the tape is of another layer, or was used");
  detail::check_backward(where, router_, experts_, shared_, output_bias_, x, tape, dy, dx,
                         gradients);
  tape.layer = nullptr;
  const detail::ScratchScope scope(workspace.scratch);
  detail::backward_of_layer(router_, experts_, shared_, x, tape, dy, dx, gradients, workspace);
}

}  // namespace moe::inline MOE_ABI
