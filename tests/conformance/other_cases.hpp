// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Cases of frameworks and papers that have no checkpoints of their own: their layers are put
// together here.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/io/block_loader.hpp>
#include <moe/moe.hpp>

#include "conformance/checkpoint_cases.hpp"
#include "conformance/comparison.hpp"
#include "conformance/other_gradients.hpp"
#include "conformance/outcome.hpp"

namespace conformance {

template <class Scalar>
using OtherLayer = moe::SparseMoe<moe::TopKRouter<Scalar>, moe::AnyExperts<Scalar>>;

/// A bank of the case's sizes and activation; `matrices(e)` gives expert e.
template <class Scalar, class Matrices>
moe::AnyExperts<Scalar> make_experts(const GoldenCase& golden, Index num_experts, bool gated,
                                     bool biases, Matrices&& matrices) {
  moe::io::LayerConfig config;
  config.activation = activation_of(golden);
  return moe::io::detail::make_bank<Scalar>(config,
                                            {.num_experts = num_experts,
                                             .d_model = golden.size("d_model"),
                                             .d_ff = golden.size("d_ff"),
                                             .biases = biases},
                                            gated, matrices);
}

/// Two linear layers with biases, named `<prefix><e>.<first>` and `<second>`.
template <class Scalar>
moe::AnyExperts<Scalar> biased_experts(const GoldenCase& golden, const std::string& prefix,
                                       const std::string& first, const std::string& second) {
  return make_experts<Scalar>(golden, golden.size("E"), false, true, [&](Index e) {
    const std::string of = prefix + std::to_string(e) + ".";
    moe::ExpertMatrices<Scalar> m;
    m.up = golden.matrix<Scalar>(of + first + ".weight");
    m.up_bias = golden.matrix<Scalar>(of + first + ".bias");
    m.down = golden.matrix<Scalar>(of + second + ".weight");
    m.down_bias = golden.matrix<Scalar>(of + second + ".bias");
    return m;
  });
}

/// Matrices [E, D, F] and [E, F, D], each [in, out].
template <class Scalar>
moe::AnyExperts<Scalar> stacked_experts(const GoldenCase& golden, const std::string& up,
                                        const std::string& down) {
  golden.use(up);
  golden.use(down);
  return make_experts<Scalar>(golden, golden.size("E"), false, false, [&](Index e) {
    const std::vector<Index>& up_shape = golden.tensors().tensor(up).shape;
    const std::vector<Index>& down_shape = golden.tensors().tensor(down).shape;
    const auto u = golden.tensors().rows<Scalar>(up, up_shape, e * up_shape.at(1), up_shape.at(1));
    const auto d =
        golden.tensors().rows<Scalar>(down, down_shape, e * down_shape.at(1), down_shape.at(1));
    return moe::separate<Scalar>({.up = u,
                                  .down = d,
                                  .orientation = moe::Orientation::in_out,
                                  .down_orientation = moe::Orientation::in_out});
  });
}

/// w1, w2 and c_proj of llm-baselines: gate, up and down. Experts first .. first + count - 1.
template <class Scalar>
moe::AnyExperts<Scalar> llm_baselines_experts(const GoldenCase& golden, const std::string& prefix,
                                              Index first, Index count) {
  return make_experts<Scalar>(golden, count, true, false, [&](Index e) {
    const std::string of = prefix + "experts." + std::to_string(first + e) + ".";
    moe::ExpertMatrices<Scalar> m;
    m.gate = golden.matrix<Scalar>(of + "w1.weight");
    m.up = golden.matrix<Scalar>(of + "w2.weight");
    m.down = golden.matrix<Scalar>(of + "c_proj.weight");
    return m;
  });
}

template <class Scalar>
moe::TopKRouter<Scalar> make_router(Matrix<Scalar> weight, Index top_k,
                                    const moe::RoutingRule& rule, moe::Vector<Scalar> bias = {}) {
  const Index experts = weight.rows();
  const Index d_model = weight.cols();
  return moe::TopKRouter<Scalar>(
      {.d_model = d_model, .num_experts = experts, .top_k = top_k, .rule = rule},
      {.weight = std::move(weight), .bias = std::move(bias)});
}

inline void check_capacity_used(const GoldenCase& golden, Index limit, Comparison& comparison) {
  if (golden.has_entry("capacity_used") && limit != golden.size("capacity_used"))
    comparison.fail("another capacity was used: " + std::to_string(limit));
}

template <class Scalar>
void run_deepspeed(Comparison& comparison) {
  const GoldenCase& golden = comparison.golden();
  const std::string& prefix = golden.weights_prefix();
  const auto x = golden.matrix<Scalar>("input");
  const Index top_k = golden.size("k");
  moe::Capacity capacity;
  if (golden.flag("drop_tokens", true))
    capacity = {.factor = golden.number("capacity_factor"),
                .minimum = golden.size("min_capacity"),
                .formula = moe::CapacityFormula::deepspeed};
  Matrix<Scalar> priority;
  if (top_k == 1 && golden.flag("use_rts", golden.has("rts_uniform"))) {
    capacity.order = moe::DropOrder::random;
    priority = golden.matrix<Scalar>("rts_uniform");
  } else if (top_k <= 2) {
    capacity.order = moe::DropOrder::slot_major;
  } else {
    const std::string policy = golden.text("drop_policy", "probs");
    if (policy != "probs" && policy != "position")
      throw std::runtime_error("the drop policy '" + policy + "' is not known");
    capacity.order = policy == "probs" ? moe::DropOrder::by_weight : moe::DropOrder::token_major;
  }
  const auto router = make_router<Scalar>(golden.matrix<Scalar>(prefix + "gate.wg.weight"), top_k,
                                          moe::presets::deepspeed());
  const auto experts = [&](const std::string& of) {
    return biased_experts<Scalar>(golden, of + prefix + "experts.deepspeed_experts.",
                                  "dense_h_to_4h", "dense_4h_to_h");
  };
  const OtherLayer<Scalar> layer(router, experts(""));
  Outcome<Scalar> outcome;
  if (golden.has("gumbel_noise")) {
    const moe::GShardRouter<Scalar> sampling(router, {.policy = moe::SecondExpertPolicy::sampling});
    sampling.route(x, golden.matrix<Scalar>("gumbel_noise"), {.training = true}, outcome.routing);
  } else {
    router.route(x, {}, outcome.routing);
  }
  moe::make_plan(outcome.routing, capacity, outcome.plan, priority);
  run_planned(layer, x, outcome);
  compare_outcome(outcome, comparison);
  if (comparison.expects("aux_loss"))
    comparison.compare("aux_loss", static_cast<double>(moe::losses::deepspeed(outcome.routing)));
  if (golden.has("grad_output"))
    compare_other_gradients(
        router, layer.experts(), experts("expected.grad."),
        {.weight = golden.matrix<Scalar>("expected.grad." + prefix + "gate.wg.weight")}, outcome,
        {.losses =
             [&](const moe::Routing<Scalar>& routing, moe::Tape<Scalar>* tape) {
               const double coefficient = golden.number("loss_aux_coef", 0);
               return coefficient * static_cast<double>(moe::losses::deepspeed(
                                        routing, {}, {tape->d_logits, coefficient}));
             }},
        comparison);
  if (!capacity.is_unlimited())
    check_capacity_used(golden, capacity.rows(x.rows(), top_k, golden.size("E")), comparison);
  if (comparison.expects("locations")) {
    // With two choices a second choice's place counts all first ones; else kept choices only.
    const std::vector<Index> places = moe::choice_places(outcome.routing, capacity, priority);
    Matrix<std::int64_t> locations(x.rows(), top_k);
    for (Index t = 0; t < x.rows(); ++t) {
      for (Index k = 0; k < top_k; ++k) {
        const auto slot = static_cast<std::size_t>(t * top_k + k);
        const Index row = outcome.plan.row_of[slot];
        const Index among_kept = row - outcome.plan.first_row(outcome.routing.experts(t, k));
        locations(t, k) = row == moe::DispatchPlan::no_row ? -1
                          : top_k == 2                     ? places[slot]
                                                           : among_kept;
      }
    }
    comparison.compare_exactly("locations", locations);
  }
}

template <class Scalar>
void run_megablocks(Comparison& comparison) {
  const GoldenCase& golden = comparison.golden();
  const std::string& prefix = golden.weights_prefix();
  const moe::Capacity capacity{.factor = golden.number("capacity_factor"),
                               .formula = moe::CapacityFormula::megablocks};
  const auto experts = [&](const std::string& of) {
    return stacked_experts<Scalar>(golden, of + prefix + "experts.mlp.w1",
                                   of + prefix + "experts.mlp.w2");
  };
  const OtherLayer<Scalar> layer(
      make_router<Scalar>(golden.matrix<Scalar>(prefix + "router.layer.weight"), golden.size("k"),
                          moe::presets::megablocks(norm_of(golden))),
      experts(""), {}, capacity);
  const auto x = golden.matrix<Scalar>("input");
  const Outcome<Scalar> outcome = run_layer(layer, x);
  compare_outcome(outcome, comparison);
  if (comparison.expects("aux_loss"))
    comparison.compare("aux_loss",
                       golden.number("aux_loss_includes_coef") *
                           static_cast<double>(moe::losses::megablocks(outcome.routing)));
  if (comparison.expects("z_loss"))
    comparison.compare("z_loss", golden.number("z_loss_includes_coef") *
                                     static_cast<double>(moe::losses::z_loss(outcome.routing)));
  if (golden.has("grad_output"))
    compare_other_gradients(
        layer.router(), layer.experts(), experts("expected.grad."),
        {.weight = golden.matrix<Scalar>("expected.grad." + prefix + "router.layer.weight")},
        outcome,
        {.losses =
             [&](const moe::Routing<Scalar>& routing, moe::Tape<Scalar>* tape) {
               const double aux =
                   golden.number("loss_aux_coef", 0) * golden.number("aux_loss_includes_coef", 1);
               const double z =
                   golden.number("loss_z_coef", 0) * golden.number("z_loss_includes_coef", 1);
               return aux * static_cast<double>(
                                moe::losses::megablocks(routing, {}, {tape->d_logits, aux})) +
                      z * static_cast<double>(
                              moe::losses::z_loss(routing, {}, {tape->d_logits, z}));
             }},
        comparison);
  Index limit = capacity.rows(x.rows(), golden.size("k"), golden.size("E"));
  if (limit == moe::Capacity::unlimited) {  // Then it is the largest load.
    limit = 0;
    for (const Index load : moe::metrics::expert_load(outcome.routing))
      limit = std::max(limit, load);
  }
  check_capacity_used(golden, limit, comparison);
}

/// What expert choice and its relatives expect of tokens by expert.
template <class Scalar>
void compare_tokens_of_experts(const moe::Routing<Scalar>& routing, Index groups, Index capacity,
                               Comparison& comparison) {
  const Index experts = routing.num_experts;
  const Index group = groups > 0 ? routing.tokens() / groups : 0;
  Matrix<std::int64_t> indices(groups * experts, capacity);
  Matrix<Scalar> weights(groups * experts, capacity);
  Matrix<std::int64_t> per_token(routing.tokens(), 1);
  const Matrix<Scalar> dense = dense_weights(routing, routing.weights);
  for (Index t = 0; t < routing.tokens(); ++t) {
    per_token(t, 0) = 0;
    for (Index k = 0; k < routing.top_k(); ++k)
      per_token(t, 0) += routing.experts(t, k) != moe::no_expert ? 1 : 0;
  }
  for (Index g = 0; g < groups; ++g) {
    for (Index e = 0; e < experts; ++e) {
      std::vector<Index> tokens;
      for (Index t = g * group; t < (g + 1) * group; ++t)
        for (Index k = 0; k < routing.top_k(); ++k)
          if (routing.experts(t, k) == e) tokens.push_back(t);
      std::stable_sort(tokens.begin(), tokens.end(),
                       [&](Index a, Index b) { return dense(a, e) > dense(b, e); });
      if (static_cast<Index>(tokens.size()) != capacity)
        return comparison.fail("an expert took another number of tokens");
      for (Index c = 0; c < capacity; ++c) {
        indices(g * experts + e, c) = tokens[static_cast<std::size_t>(c)];
        weights(g * experts + e, c) = dense(tokens[static_cast<std::size_t>(c)], e);
      }
    }
  }
  comparison.compare_exactly("expert_token_indices", indices);
  comparison.compare("expert_token_weights", weights);
  comparison.compare_exactly("experts_per_token", per_token);
}

/// Where the gradients of a case of expert choice are: experts(prefix), and the router's name.
template <class Scalar>
struct ExpertChoiceGradients {
  std::function<moe::AnyExperts<Scalar>(const std::string&)> experts{};
  std::string router{};
};

template <class Scalar>
void run_expert_choice(const moe::ExpertChoiceRouter<Scalar>& router,
                       moe::AnyExperts<Scalar> experts, Index groups, Comparison& comparison,
                       const ExpertChoiceGradients<Scalar>& gradients = {}) {
  const GoldenCase& golden = comparison.golden();
  const auto x = golden.matrix<Scalar>("input");
  const moe::SparseMoe<moe::ExpertChoiceRouter<Scalar>, moe::AnyExperts<Scalar>> layer(
      router, std::move(experts));
  const Outcome<Scalar> outcome = run_layer(layer, x);
  comparison.compare("router_logits", outcome.routing.logits);
  comparison.compare("combine_weights", dense_weights(outcome.routing, outcome.weights));
  const Index taken = router.tokens_per_expert(groups > 0 ? x.rows() / groups : 0);
  compare_tokens_of_experts(outcome.routing, groups, taken, comparison);
  compare_drops(outcome, comparison);
  comparison.compare_output(outcome.y);
  check_capacity_used(golden, taken, comparison);
  if (golden.has("grad_output") && gradients.experts)
    compare_other_gradients(
        router, layer.experts(), gradients.experts("expected.grad."),
        {.weight = golden.matrix<Scalar>("expected.grad." + gradients.router)}, outcome,
        {.losses =
             [&](const moe::Routing<Scalar>& routing, moe::Tape<Scalar>* tape) {
               const double z = golden.number("loss_z_coef", 0);
               return z *
                      static_cast<double>(moe::losses::z_loss(routing, {}, {tape->d_logits, z}));
             }},
        comparison);
  if (comparison.expects("z_loss"))
    comparison.compare("z_loss", static_cast<double>(moe::losses::z_loss(outcome.routing)));
  if (comparison.expects("entropy_reg"))
    comparison.compare("entropy_reg",
                       static_cast<double>(moe::losses::mean_entropy(outcome.routing)));
}

template <class Scalar>
void run_flaxformer(Comparison& comparison) {
  const GoldenCase& golden = comparison.golden();
  const std::string& prefix = golden.weights_prefix();
  const Matrix<Scalar> weight =
      golden.matrix<Scalar>(prefix + "router/router_weights/w/kernel").transpose();  // (E, D)
  auto experts =
      stacked_experts<Scalar>(golden, prefix + "expert/wi/kernel", prefix + "expert/wo/kernel");
  moe::Capacity capacity{.factor = golden.number("capacity_factor"),
                         .minimum = golden.size("min_capacity"),
                         .formula = moe::CapacityFormula::tokens_round,
                         .order = golden.flag("bpr", false) ? moe::DropOrder::batch_priority
                                                            : moe::DropOrder::slot_major,
                         .group_tokens = golden.size("seq")};
  if (golden.has(prefix + "router/router_weights/w/bias"))
    throw std::runtime_error("a router with a bias is not known");
  const std::string& kind = golden.text("router");
  if (kind == "experts_choose")
    return run_expert_choice<Scalar>(
        {{.d_model = golden.size("d_model"), .num_experts = golden.size("E"), .capacity = capacity},
         weight},
        std::move(experts), golden.size("batch"), comparison);
  if (!kind.starts_with("tokens_"))
    throw std::runtime_error("the router '" + kind + "' is not known");
  if (kind.find("bpr") != std::string::npos) capacity.order = moe::DropOrder::batch_priority;
  const OtherLayer<Scalar> layer(make_router<Scalar>(weight, golden.size("k"), moe::RoutingRule{}),
                                 std::move(experts), {}, capacity);
  const auto x = golden.matrix<Scalar>("input");
  const Outcome<Scalar> outcome = run_layer(layer, x);
  compare_outcome(outcome, comparison);
  if (comparison.expects("aux_loss"))
    comparison.compare("aux_loss", static_cast<double>(moe::losses::flaxformer(
                                       outcome.routing, golden.size("seq"))));
  if (comparison.expects("z_loss"))
    comparison.compare("z_loss", static_cast<double>(moe::losses::z_loss(outcome.routing)));
  check_capacity_used(
      golden, capacity.rows(capacity.group_size(x.rows()), golden.size("k"), golden.size("E")),
      comparison);
}

template <class Scalar>
void run_epfml_expert_choice(Comparison& comparison) {
  const GoldenCase& golden = comparison.golden();
  const std::string& prefix = golden.weights_prefix();
  if (golden.text("softmax_order") != "softmax_topk")
    throw std::runtime_error("experts that choose by logits are not known");
  run_expert_choice<Scalar>(
      {{.d_model = golden.size("d_model"),
        .num_experts = golden.size("E"),
        .capacity = {.factor = golden.number("capacity_factor"),
                     .formula = moe::CapacityFormula::tokens_floor}},
       golden.matrix<Scalar>(prefix + "router.weight")},
      llm_baselines_experts<Scalar>(golden, prefix, 0, golden.size("E")), 1, comparison,
      {[&](const std::string& of) {
         return llm_baselines_experts<Scalar>(golden, of + prefix, 0, golden.size("E"));
       },
       prefix + "router.weight"});
}

template <class Scalar>
void run_epfml(Comparison& comparison) {
  const GoldenCase& golden = comparison.golden();
  const std::string& order = golden.text("softmax_order");
  if (order != "softmax_topk" && order != "topk_softmax")
    throw std::runtime_error("the order '" + order + "' is not known");
  const Index shared = golden.size("n_shared", 0);
  const std::string& prefix = golden.weights_prefix();
  const auto routed = [&](const std::string& of) {
    return llm_baselines_experts<Scalar>(golden, of + prefix, shared, golden.size("E") - shared);
  };
  const auto always = [&](const std::string& of) {
    return llm_baselines_experts<Scalar>(golden, of + prefix, 0, shared);
  };
  moe::SharedExperts<moe::AnyExperts<Scalar>> of_all;
  if (shared > 0) of_all = moe::SharedExperts<moe::AnyExperts<Scalar>>(always(""));
  const OtherLayer<Scalar> layer(
      make_router<Scalar>(golden.matrix<Scalar>(prefix + "router.weight"), golden.size("k"),
                          order == "topk_softmax" ? moe::presets::jetmoe() : moe::RoutingRule{}),
      routed(""), std::move(of_all));
  const Outcome<Scalar> outcome = run_layer(layer, golden.matrix<Scalar>("input"));
  compare_outcome(outcome, comparison);
  if (comparison.expects("aux_loss"))
    comparison.compare("aux_loss", static_cast<double>(moe::losses::load_balancing(
                                       outcome.routing, BalanceScale::unscaled)));
  if (comparison.expects("z_loss"))
    comparison.compare("z_loss", static_cast<double>(moe::losses::z_loss(outcome.routing)));
  if (comparison.expects("entropy_reg"))
    comparison.compare("entropy_reg",
                       static_cast<double>(moe::losses::mean_entropy(outcome.routing)));
  if (!golden.has("grad_output")) return;
  OtherGradients<Scalar> of_case{
      .losses = [&](const moe::Routing<Scalar>& routing, moe::Tape<Scalar>* tape) {
        const double aux = golden.number("loss_aux_coef", 0);
        const double z = golden.number("loss_z_coef", 0);
        return aux * static_cast<double>(moe::losses::load_balancing(
                         routing, BalanceScale::unscaled, {}, {tape->d_logits, aux})) +
               z * static_cast<double>(moe::losses::z_loss(routing, {}, {tape->d_logits, z}));
      }};
  std::vector<moe::AnyExperts<Scalar>> expected_shared;
  if (shared > 0) {
    expected_shared.push_back(always("expected.grad."));
    of_case.shared = &*layer.shared().bank();
    of_case.expected_shared = &expected_shared.front();
  }
  compare_other_gradients(
      layer.router(), layer.experts(), routed("expected.grad."),
      {.weight = golden.matrix<Scalar>("expected.grad." + prefix + "router.weight")}, outcome,
      of_case, comparison);
}

template <class Scalar>
void run_shazeer(Comparison& comparison) {
  namespace losses = moe::losses;
  const GoldenCase& golden = comparison.golden();
  const bool noisy = golden.flag("noisy");
  const Index top_k = golden.size("k");
  const Index experts = golden.size("E");
  const moe::NoisyTopKRouter<Scalar> router({.d_model = golden.size("d_model"),
                                             .num_experts = experts,
                                             .top_k = top_k,
                                             .noise_epsilon = golden.number("noise_epsilon")},
                                            golden.matrix<Scalar>("w_gate").transpose(),
                                            golden.matrix<Scalar>("w_noise").transpose());
  const auto x = golden.matrix<Scalar>("input");
  const Matrix<Scalar> noise = noisy ? golden.matrix<Scalar>("noise") : Matrix<Scalar>();
  Outcome<Scalar> outcome;
  moe::NoisyLogits<Scalar> drawn;
  router.route(x, noise, {.training = noisy}, outcome.routing, drawn);
  moe::make_plan(outcome.routing, {}, outcome.plan);
  const auto expert_bank = [&](const std::string& of) {
    return biased_experts<Scalar>(golden, of + "experts.", "fc1", "fc2");
  };
  const moe::SparseMoe<moe::NoisyTopKRouter<Scalar>, moe::AnyExperts<Scalar>> layer(
      router, expert_bank(""));
  run_planned(layer, x, outcome);
  compare_outcome(outcome, comparison);
  if (comparison.expects("noisy_logits")) {
    comparison.compare("noisy_logits", drawn.noisy_logits);
    comparison.compare("noise_stddev", drawn.deviation);
  }
  const moe::Vector<double> importance = losses::expert_importance(outcome.routing);
  moe::Vector<double> load(experts);
  if (noisy && top_k < experts) {
    load = losses::smooth_load(outcome.routing.logits, drawn.noisy_logits, drawn.deviation, top_k);
  } else {
    const std::vector<Index> counts = moe::metrics::expert_load(outcome.routing);
    for (Index e = 0; e < experts; ++e)
      load[e] = static_cast<double>(counts[static_cast<std::size_t>(e)]);
  }
  if (comparison.expects("importance")) comparison.compare("importance", importance);
  if (comparison.expects("load")) comparison.compare("load", load);
  const auto both = [&](losses::Variance variance) {
    return golden.number("aux_loss_includes_coef") *
           (losses::variation(importance, variance) + losses::variation(load, variance));
  };
  if (comparison.expects("aux_loss")) {
    comparison.compare("aux_loss", both(losses::Variance::unbiased));
    comparison.compare_entry("aux_loss_ddof0", both(losses::Variance::population));
  }
  if (!golden.has("grad_output")) return;
  Matrix<Scalar> d_deviation = Matrix<Scalar>::Zero(drawn.deviation.rows(), drawn.deviation.cols());
  const auto of_losses = [&](const moe::Routing<Scalar>& routing, moe::Tape<Scalar>* tape) {
    const double coefficient =
        golden.number("loss_aux_coef", 0) * golden.number("aux_loss_includes_coef");
    const losses::Variance variance = losses::Variance::unbiased;
    double sum = static_cast<double>(
        losses::importance(routing, variance, {}, {tape->d_weights, coefficient}));
    if (noisy && top_k < experts) {
      sum += losses::load(routing.logits, drawn.noisy_logits, drawn.deviation, top_k, variance,
                          losses::LoadThreshold::excluding, {},
                          {tape->d_logits, tape->d_scored, d_deviation, coefficient});
    } else {
      sum += losses::variation(load, variance);
    }
    return coefficient * sum;
  };
  compare_other_gradients(
      router, layer.experts(), expert_bank("expected.grad."),
      {.weight = golden.matrix<Scalar>("expected.grad.w_gate").transpose(),
       .noise_weight =
           golden.has("expected.grad.w_noise")
               ? Matrix<Scalar>(golden.matrix<Scalar>("expected.grad.w_noise").transpose())
               : Matrix<Scalar>::Zero(experts, x.cols())},
      outcome,
      {.options = {.training = noisy},
       .inputs = {.noise = noise},
       .losses = of_losses,
       .d_deviation = d_deviation},
      comparison);
}

/// Gradients of sum(y * grad_output), and of the likelihood error.
template <class Scalar, class Bank>
void compare_jacobs_gradients(const moe::TopKRouter<Scalar>& router, const Bank& bank,
                              const Bank& expected_bank, Comparison& comparison) {
  const GoldenCase& golden = comparison.golden();
  const moe::DenseMixture layer{router, bank};
  const auto x = golden.matrix<Scalar>("input");
  const auto dy = golden.matrix<Scalar>("grad_output");
  Matrix<Scalar> y(x.rows(), x.cols());
  Matrix<Scalar> dx(x.rows(), x.cols());
  moe::MixtureTape<Scalar> tape;
  moe::Scratch scratch;
  auto gradients = layer.gradients();
  layer.forward(x, y, tape, scratch);
  comparison.compare("loss", product_of<Scalar>(y, dy));
  layer.backward(x, tape, dy, dx, gradients, scratch);
  GradientComparison all;
  const auto add = [&](const std::string& of) {
    const std::string prefix = "expected." + of;
    all.add(of + "_input", dx, golden.matrix<double>(prefix + "_input"));
    all.add(of + " router", gradients.router.weight,
            golden.matrix<double>(prefix + ".gating.weight"));
    all.add(of + " bias", gradients.router.bias,
            golden.matrix<double>(prefix + ".gating.bias").col(0));
  };
  add("grad");
  add_experts<Scalar>("expert", gradients.experts, expected_bank, all);
  if (golden.has("expected.nll_grad_input")) {
    layer.forward(x, y, tape, scratch);
    moe::losses::mixture_error<Scalar>(moe::losses::MixtureError::likelihood, tape.routing,
                                       tape.rows, golden.matrix<Scalar>("target"),
                                       {tape.d_rows, tape.d_weights});
    gradients.set_zero();
    layer.backward(x, tape, {}, dx, gradients, scratch);
    add("nll_grad");
  }
  all.compare(comparison);
}

template <class Scalar>
void run_jacobs(Comparison& comparison) {
  const GoldenCase& golden = comparison.golden();
  const moe::Vector<Scalar> bias = golden.matrix<Scalar>("gating.bias").col(0);
  const moe::DenseMixture<moe::TopKRouter<Scalar>, moe::AnyExperts<Scalar>> layer(
      make_router<Scalar>(golden.matrix<Scalar>("gating.weight"), golden.size("E"),
                          moe::RoutingRule{}, bias),
      biased_experts<Scalar>(golden, "experts.", "fc1", "fc2"));
  if (golden.has("grad_output"))
    visit_bank(layer.experts(), [&](const auto& bank) {
      using Bank = std::remove_cvref_t<decltype(bank)>;
      const auto expected = biased_experts<Scalar>(golden, "expected.grad.experts.", "fc1", "fc2");
      compare_jacobs_gradients(layer.router(), bank, *expected.template target<Bank>(), comparison);
    });
  const auto x = golden.matrix<Scalar>("input");
  Matrix<Scalar> y(x.rows(), x.cols());
  moe::Workspace<Scalar> workspace;
  const auto& routing = layer.forward(x, y, workspace);
  comparison.compare("router_logits", routing.logits);
  comparison.compare("combine_weights", routing.weights);
  comparison.compare_output(y);
  if (comparison.expects("jacobs_nll"))
    comparison.compare("jacobs_nll", moe::losses::mixture_error<Scalar>(
                                         moe::losses::MixtureError::likelihood, routing,
                                         workspace.rows, golden.matrix<Scalar>("target")));
}

}  // namespace conformance
