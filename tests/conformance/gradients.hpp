// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The backward pass against the gradients of a case. They have the names and shapes of the weights,
// so a second block is loaded from them, and compared part by part.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <moe/io/checkpoint.hpp>
#include <moe/moe.hpp>

#include "conformance/comparison.hpp"

namespace conformance {

/// What a case adds to sum(output * grad_output): value(routing, tape) gives it, and adds its
/// gradients where there is a tape.
template <class Scalar>
using CaseLosses = std::function<double(const moe::Routing<Scalar>&, moe::Tape<Scalar>*)>;

/// Every gradient of a case beside its expected value, compared when all are known: the tolerance
/// of each is relative to its own largest value or a thousandth of the case's.
class GradientComparison {
 public:
  template <class Actual, class Expected>
  void add(std::string name, const Actual& actual, const Expected& expected) {
    if (actual.size() == 0 && expected.size() == 0) return;
    parts_.push_back(
        {std::move(name), actual.template cast<double>(), expected.template cast<double>()});
  }

  void compare(Comparison& comparison) const {
    double largest = 0;
    for (const Part& part : parts_)
      if (part.expected.size() != 0)
        largest = std::max(largest, part.expected.cwiseAbs().maxCoeff());
    for (const Part& part : parts_)
      comparison.compare_gradient(part.name, part.actual, part.expected, 1e-3 * largest);
  }

 private:
  struct Part {
    std::string name;
    Matrix<double> actual;
    Matrix<double> expected;
  };
  std::vector<Part> parts_;
};

template <class Scalar, class Bank, class Gradients>
void add_experts(const std::string& name, Gradients& actual, const Bank& expected,
                 GradientComparison& comparison) {
  for (Index e = 0; e < expected.num_experts(); ++e) {
    const moe::ExpertMatrices<Scalar> a = actual.expert(e);
    const moe::ExpertMatrices<Scalar> b = expected.expert(e);
    const std::string of = name + " " + std::to_string(e) + ": ";
    comparison.add(of + "gate", a.gate, b.gate);
    comparison.add(of + "up", a.up, b.up);
    comparison.add(of + "down", a.down, b.down);
    comparison.add(of + "gate bias", a.gate_bias, b.gate_bias);
    comparison.add(of + "up bias", a.up_bias, b.up_bias);
    comparison.add(of + "down bias", a.down_bias, b.down_bias);
  }
}

/// Calls use(bank) with what `any` holds; a bank of another type goes unseen, and the case is
/// reported as one whose gradients were not compared.
template <class Scalar, class Use>
void visit_bank(const moe::AnyExperts<Scalar>& any, const Use& use) {
  const auto visits = [&]<class Bank>(Bank* /*type*/) {
    const Bank* const bank = any.template target<Bank>();
    if (bank != nullptr) use(*bank);
    return bank != nullptr;
  };
  (void)(visits(static_cast<moe::SwiGluExperts<Scalar>*>(nullptr)) ||
         visits(static_cast<moe::FeedForwardExperts<Scalar, moe::ClampedSwiGlu>*>(nullptr)) ||
         visits(static_cast<moe::ReluExperts<Scalar>*>(nullptr)) ||
         visits(static_cast<moe::GeluExperts<Scalar>*>(nullptr)) ||
         visits(static_cast<moe::GeluTanhExperts<Scalar>*>(nullptr)));
}

template <class Scalar>
moe::RouterWeights<Scalar> weights_of(const moe::TopKRouter<Scalar>& router) {
  return router.weights();
}
template <class Scalar>
moe::RouterWeights<Scalar> weights_of(const moe::SparseMixerRouter<Scalar>& router) {
  return {.weight = router.weight()};
}

template <class RouterT, class Bank, class Scalar = typename Bank::Scalar>
void compare_gradients_of(const RouterT& router, const RouterT& expected_router, const Bank& bank,
                          const moe::io::CheckpointLayer<Scalar>& layer,
                          const moe::io::CheckpointLayer<Scalar>& expected,
                          const CaseLosses<Scalar>& losses, Scalar output_scale,
                          Comparison& comparison) {
  moe::SharedExperts<Bank> shared;
  if (layer.shared().bank())
    shared = moe::SharedExperts<Bank>(*layer.shared().bank()->template target<Bank>(),
                                      layer.shared().gate());
  moe::SparseMoe typed{router, bank, shared, layer.capacity()};
  typed.set_output_bias(layer.output_bias());

  const GoldenCase& golden = comparison.golden();
  const auto x = golden.matrix<Scalar>("input");
  const auto upstream = golden.matrix<Scalar>("grad_output");
  const Matrix<Scalar> dy = output_scale * upstream;
  Matrix<Scalar> y(x.rows(), x.cols());
  Matrix<Scalar> dx(x.rows(), x.cols());
  moe::Tape<Scalar> tape;
  const double extra = losses(typed.forward(x, y, tape), &tape);
  auto gradients = typed.gradients();
  typed.backward(x, tape, dy, dx, gradients);
  comparison.compare(
      "loss",
      (y.template cast<double>().array() * dy.template cast<double>().array()).sum() + extra);
  GradientComparison all;
  if (comparison.expects("grad_input"))
    all.add("grad_input", dx, golden.matrix<double>("expected.grad_input"));
  const moe::RouterWeights<Scalar> expected_weights = weights_of(expected_router);
  all.add("router", gradients.router.weight, expected_weights.weight);
  all.add("router bias", gradients.router.bias, expected_weights.bias);
  add_experts<Scalar>("expert", gradients.experts, *expected.experts().template target<Bank>(),
                      all);
  if (shared.bank())
    add_experts<Scalar>("shared expert", *gradients.shared,
                        *expected.shared().bank()->template target<Bank>(), all);
  all.add("shared gate", gradients.shared_gate, expected.shared().gate());
  all.add("output bias", gradients.output_bias, expected.output_bias());
  all.compare(comparison);
}

/// `config` is the block's; in that of the gradients there is no selection bias, which has none.
template <class Scalar>
void compare_gradients(const moe::io::CheckpointLayer<Scalar>& layer, moe::io::LayerConfig config,
                       const std::string& prefix, const CaseLosses<Scalar>& losses,
                       Scalar output_scale, Comparison& comparison) {
  using moe::io::Family;
  for (const Family biased : {Family::deepseek_v3, Family::glm4_moe, Family::ernie4_5_moe})
    if (config.family == biased) config.family = Family::deepseek_v2;
  const auto expected =
      moe::io::load_block<Scalar>(comparison.golden().tensors(), config, "expected.grad." + prefix);
  visit_bank(layer.experts(), [&](const auto& bank) {
    const auto compares_if_of = [&]<class RouterT>(RouterT* /*type*/) {
      const RouterT* const router = layer.router().template target<RouterT>();
      if (router != nullptr)
        compare_gradients_of(*router, *expected.router().template target<RouterT>(), bank, layer,
                             expected, losses, output_scale, comparison);
      return router != nullptr;
    };
    (void)(compares_if_of(static_cast<moe::TopKRouter<Scalar>*>(nullptr)) ||
           compares_if_of(static_cast<moe::SparseMixerRouter<Scalar>*>(nullptr)));
  });
}

}  // namespace conformance
