// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What the pieces of a layer must offer. Each concept states what a type must have; the comment
// says what it must mean.
#pragma once

#include <concepts>
#include <cstdint>

#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/growing_matrix.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"

namespace moe::inline MOE_ABI {

/// A function of one hidden value, applied element by element. It must be pure.
template <class A, class Scalar>
concept PlainActivation = std::copy_constructible<A> && requires(const A& a, Scalar z) {
  { a(z) } -> std::same_as<Scalar>;
};

/// A function of a gate value and an up value. It must be pure.
template <class A, class Scalar>
concept GatedActivation = std::copy_constructible<A> && requires(const A& a, Scalar z) {
  { a(z, z) } -> std::same_as<Scalar>;
};

template <class A, class Scalar>
concept Activation = PlainActivation<A, Scalar> || GatedActivation<A, Scalar>;

/// Decides where every token goes.
/// `route(x, options, routing)` fills `routing` for x (T, D): experts in 0 .. E-1 and finite
/// weights (T, K), or `no_expert` and 0, and logits and scores (T, E) where `options` asks for them
/// and the router has them. K is at most `top_k()`. It is const and may run several times at once.
template <class R>
concept Router = requires(const R& r, MatrixView<const typename R::Scalar> x, RouteOptions options,
                          Routing<typename R::Scalar>& routing) {
  typename R::Scalar;
  { r.d_model() } -> std::convertible_to<Index>;
  { r.num_experts() } -> std::convertible_to<Index>;
  { r.top_k() } -> std::convertible_to<Index>;
  { r.route(x, options, routing) } -> std::same_as<void>;
};

namespace detail {

/// What the experts see in place of x (T, D): what `router.hidden_states` says, which a router may
/// have and may write to `buffer`, or x itself.
template <Router RouterT>
MatrixView<const typename RouterT::Scalar> hidden_states(
    const RouterT& router, MatrixView<const typename RouterT::Scalar> x,
    const RouteOptions& options, GrowingMatrix<typename RouterT::Scalar>& buffer) {
  if constexpr (requires { router.hidden_states(x, options, buffer); }) {
    return router.hidden_states(x, options, buffer);
  } else {
    return x;
  }
}

}  // namespace detail

/// Dropout of the experts' hidden values, after the activation: each is 0 with probability `rate`,
/// else divided by 1 - rate. What is drawn depends on seed, token, slot and hidden value.
struct HiddenDropout {
  double rate = 0;
  std::uint64_t seed = 0;
};

/// What a bank of experts works on: row r of the plan is token plan.rows[r].token of x, times that
/// slot's entry of `scales` if there are any, times `factor`.
///
/// Shapes  x (T, D), scales (T, K) or empty.
template <class Scalar>
struct ExpertInput {
  MatrixView<const Scalar> x;
  const DispatchPlan& plan;
  MatrixView<const Scalar> scales{};
  Scalar factor = 1;
  HiddenDropout dropout{};  // for banks of feed-forward experts
};

/// Owns the weights of E experts. `forward(input, rows, scratch)` writes every expert's output for
/// every row of the plan, rows (N, D); no row may depend on another. It is const and may run
/// several times at once, each with its own scratch.
template <class B>
concept ExpertBank = requires(const B& b, const ExpertInput<typename B::Scalar>& input,
                              MatrixView<typename B::Scalar> rows, Scratch& scratch) {
  typename B::Scalar;
  { b.d_model() } -> std::convertible_to<Index>;
  { b.num_experts() } -> std::convertible_to<Index>;
  { b.forward(input, rows, scratch) } -> std::same_as<void>;
};

/// One expert, for `CustomExperts`. `forward(x, y)` maps x (N, D) to y (N, D) row by row; it is
/// const and may run for other experts at the same time. It may throw: the caller of the layer gets
/// it.
template <class E>
concept Expert = requires(const E& e, MatrixView<const typename E::Scalar> x,
                          MatrixView<typename E::Scalar> y) {
  typename E::Scalar;
  { e.d_model() } -> std::convertible_to<Index>;
  { e.forward(x, y) } -> std::same_as<void>;
};

}  // namespace moe::inline MOE_ABI
