// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// SparseMoe: the block that replaces a transformer's feed-forward layer.
#pragma once

#include <type_traits>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/layer/dispatch.hpp"
#include "moe/layer/shared_experts.hpp"
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
            Capacity capacity = {})
      : router_(std::move(router)),
        experts_(std::move(experts)),
        shared_(std::move(shared)),
        capacity_(capacity) {
    constexpr const char* where = "SparseMoe";
    detail::check_size(where, "experts.d_model()", router_.d_model(), experts_.d_model());
    detail::check_size(where, "experts.num_experts()", router_.num_experts(),
                       experts_.num_experts());
    if (shared_.bank())
      detail::check_size(where, "shared.d_model()", router_.d_model(), shared_.bank()->d_model());
    detail::check_capacity(where, capacity_);
  }

  Index d_model() const noexcept { return router_.d_model(); }
  const RouterT& router() const noexcept { return router_; }
  RouterT& router() noexcept { return router_; }
  const BankT& experts() const noexcept { return experts_; }
  BankT& experts() noexcept { return experts_; }
  const SharedExperts<SharedBankT>& shared() const noexcept { return shared_; }
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

  /// The plan of the last forward that used the layer's own workspace.
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
                                 Workspace<Scalar>& workspace, RouteOptions options = {}) const {
    check_views(x, y);
    MatrixView<const Scalar> hidden = x;
    if constexpr (requires { router_.hidden_states(x, options, workspace.hidden); })
      hidden = router_.hidden_states(x, options, workspace.hidden);
    router_.route(hidden, options, workspace.routing);
    run(hidden, workspace.routing, y, workspace);
    return workspace.routing;
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
               Workspace<Scalar>& workspace) const {
    check_views(x, y);
    run(x, routing, y, workspace);
  }

  /// Runs the layer on a routing and a plan that the caller supplies, such as one made with
  /// priorities of the caller's. The layer's capacity is not asked.
  void forward(MatrixView<const Scalar> x, const Routing<Scalar>& routing, const DispatchPlan& plan,
               MatrixView<Scalar> y, Workspace<Scalar>& workspace) const {
    check_views(x, y);
    check_routing_sizes(x, routing);
    detail::check_routing(forward_name, routing);
    detail::check_plan(forward_name, plan);
    detail::check_size(forward_name, "plan.tokens", x.rows(), plan.tokens);
    detail::check_size(forward_name, "plan.top_k", routing.top_k(), plan.top_k);
    run_plan(x, routing, plan, y, workspace);
  }

 private:
  static constexpr const char* forward_name = "SparseMoe::forward";

  void check_views(MatrixView<const Scalar> x, MatrixView<Scalar> y) const {
    detail::check_size(forward_name, "x.cols()", d_model(), x.cols());
    detail::check_size(forward_name, "y.rows()", x.rows(), y.rows());
    detail::check_size(forward_name, "y.cols()", d_model(), y.cols());
    detail::check(!detail::overlap(x, y), forward_name, "y overlaps x");
  }

  void run(MatrixView<const Scalar> x, const Routing<Scalar>& routing, MatrixView<Scalar> y,
           Workspace<Scalar>& workspace) const {
    check_routing_sizes(x, routing);
    detail::make_plan<Scalar>(forward_name, routing, capacity_, workspace.plan);
    if (capacity_.reroute && !workspace.plan.dropped.empty()) {
      if (&routing != &workspace.routing) workspace.routing = routing;
      reroute_dropped(workspace.plan, capacity_, workspace.routing);
      detail::make_plan<Scalar>(forward_name, workspace.routing, capacity_, workspace.plan);
      return run_plan(x, workspace.routing, workspace.plan, y, workspace);
    }
    run_plan(x, routing, workspace.plan, y, workspace);
  }

  void check_routing_sizes(MatrixView<const Scalar> x, const Routing<Scalar>& routing) const {
    detail::check_size(forward_name, "routing.tokens()", x.rows(), routing.tokens());
    detail::check_size(forward_name, "routing.num_experts", experts_.num_experts(),
                       routing.num_experts);
  }

  void run_plan(MatrixView<const Scalar> x, const Routing<Scalar>& routing,
                const DispatchPlan& plan, MatrixView<Scalar> y,
                Workspace<Scalar>& workspace) const {
    workspace.rows.resize(plan.num_rows(), d_model());
    const bool on_input = routing.weight_target == WeightTarget::input;
    MatrixView<const Scalar> weights = routing.weights;
    if (!plan.dropped.empty() || routing.renormalization.after_drop) {
      final_weights(routing, plan, workspace.weights);
      weights = workspace.weights;
    }
    const MatrixView<const Scalar> none;
    experts_.forward({x, plan, on_input ? weights : none, static_cast<Scalar>(routing.input_scale)},
                     workspace.rows, workspace.scratch);
    shared_.run(x, workspace);
    combine<Scalar>(workspace.rows, plan, on_input ? none : weights, y);
    if constexpr (requires { experts_.add_unweighted(routing, plan, y); })
      experts_.add_unweighted(routing, plan, y);
    shared_.add(workspace, y);
    if (output_bias_.size() != 0) y.map().rowwise() += output_bias_.transpose();
  }

  RouterT router_;
  BankT experts_;
  SharedExperts<SharedBankT> shared_;
  Capacity capacity_;
  Vector<Scalar> output_bias_;
  Workspace<Scalar> workspace_;
};

}  // namespace moe::inline MOE_ABI
