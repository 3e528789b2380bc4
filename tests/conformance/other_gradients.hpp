// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The backward pass against the gradients of cases whose layers are put together here: a block on
// the case's routing and plan, then the router's own backward.
#pragma once

#include <string>
#include <type_traits>

#include <moe/moe.hpp>

#include "conformance/comparison.hpp"
#include "conformance/gradients.hpp"
#include "conformance/outcome.hpp"

namespace conformance {

/// What differs between such cases beside router and experts.
///
/// Shapes  d_deviation (T, E) or empty, to which `losses` adds.
template <class Scalar>
struct OtherGradients {
  moe::RouteOptions options{};
  moe::RouteInputs<Scalar> inputs{};
  CaseLosses<Scalar> losses = [](const moe::Routing<Scalar>&, moe::Tape<Scalar>*) { return 0.0; };
  moe::MatrixView<const Scalar> d_deviation{};
  const moe::AnyExperts<Scalar>* shared = nullptr;  ///< and their expected gradients
  const moe::AnyExperts<Scalar>* expected_shared = nullptr;
};

/// sum(a b), in double.
template <class Scalar>
double product_of(const Matrix<Scalar>& a, const Matrix<Scalar>& b) {
  return (a.template cast<double>().array() * b.template cast<double>().array()).sum();
}

/// `expected_router` has the router's expected gradients.
template <class RouterT, class Scalar = typename RouterT::Scalar>
void compare_other_gradients(const RouterT& router, const moe::AnyExperts<Scalar>& experts,
                             const moe::AnyExperts<Scalar>& expected_experts,
                             const moe::RouterGradients<Scalar>& expected_router,
                             const Outcome<Scalar>& outcome,
                             const std::type_identity_t<OtherGradients<Scalar>>& of_case,
                             Comparison& comparison) {
  const GoldenCase& golden = comparison.golden();
  visit_bank(experts, [&](const auto& bank) {
    using Bank = std::remove_cvref_t<decltype(bank)>;
    const auto x = golden.matrix<Scalar>("input");
    const auto dy = golden.matrix<Scalar>("grad_output");
    moe::SharedExperts<Bank> shared;
    if (of_case.shared != nullptr)
      shared = moe::SharedExperts<Bank>(*of_case.shared->template target<Bank>());
    const moe::SparseMoe layer{router, bank, shared};
    Matrix<Scalar> y(x.rows(), x.cols());
    Matrix<Scalar> dx(x.rows(), x.cols());
    moe::Tape<Scalar> tape;
    moe::Workspace<Scalar> workspace;
    layer.forward(x, outcome.routing, outcome.plan, y, tape, workspace);
    const double extra = of_case.losses(tape.routing, &tape);
    auto gradients = layer.gradients();
    layer.backward(x, tape, dy, dx, gradients, workspace);
    router.backward({.x = x,
                     .options = of_case.options,
                     .routing = tape.routing,
                     .plan = tape.plan,
                     .d_weights = tape.d_weights_used,
                     .d_logits = tape.d_logits,
                     .dx = dx,
                     .d_routed = tape.d_weights,
                     .d_scored = tape.d_scored,
                     .d_deviation = of_case.d_deviation,
                     .inputs = of_case.inputs},
                    gradients.router);
    comparison.compare("loss", product_of<Scalar>(y, dy) + extra);
    GradientComparison all;
    all.add("grad_input", dx, golden.matrix<double>("expected.grad_input"));
    all.add("router", gradients.router.weight, expected_router.weight);
    all.add("router bias", gradients.router.bias, expected_router.bias);
    all.add("noise", gradients.router.noise_weight, expected_router.noise_weight);
    add_experts<Scalar>("expert", gradients.experts, *expected_experts.template target<Bank>(),
                        all);
    if (of_case.shared != nullptr)
      add_experts<Scalar>("shared expert", *gradients.shared,
                          *of_case.expected_shared->template target<Bank>(), all);
    all.compare(comparison);
  });
}

}  // namespace conformance
