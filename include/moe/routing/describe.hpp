// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A RoutingRule in words.
#pragma once

#include <cstdio>
#include <string>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/renormalization.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/routing/routing_rule.hpp"

namespace moe::inline MOE_ABI {
namespace detail {

/// A number as short as it can be written.
inline std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

inline std::string described_logits(const RoutingRule& rule) {
  std::string text;
  if (rule.logits.form == LogitForm::two_layer) text += "logits of two layers; ";
  if (rule.logits.form == LogitForm::cosine)
    text += text_of("cosine logits / ", short_number(rule.logits.temperature), "; ");
  if (rule.logits.standard_deviation > 0)
    text += text_of("logits of deviation ", short_number(rule.logits.standard_deviation), "; ");
  switch (rule.score) {
    case ScoreFunction::softmax:
      return text + "softmax";
    case ScoreFunction::sigmoid:
      return text + "sigmoid";
    case ScoreFunction::sqrt_softplus:
      return text + "square root of softplus";
    case ScoreFunction::identity:
      break;
  }
  return text + "logits";
}

inline std::string described_choice(const RoutingRule& rule, bool has_selection_bias) {
  std::string text = has_selection_bias ? "; K best of score + bias" : "; K best";
  const GroupRule& groups = rule.groups;
  if (groups.active()) {
    text += text_of(
        " in ", groups.kept, " of ", groups.count, " groups (by ",
        groups.score == GroupScore::maximum ? std::string("their best")
                                            : text_of("the sum of their ", groups.top, " best"),
        "), others ", groups.fill == GroupFill::zero ? "count as 0" : "cannot be chosen");
  }
  switch (rule.limit.kind) {
    case ChoiceLimitKind::none:
      break;
    case ChoiceLimitKind::top_p:
      text += text_of(", the fewest that sum to ", short_number(rule.limit.value));
      break;
    case ChoiceLimitKind::threshold:
      text += text_of(", those above ", short_number(rule.limit.value));
      break;
    case ChoiceLimitKind::relative_threshold:
      text += text_of(", those above ", short_number(rule.limit.value), " of the best");
      break;
  }
  if (rule.limit.kind != ChoiceLimitKind::none && rule.limit.minimum != 1)
    text += text_of(", at least ", rule.limit.minimum);
  return text;
}

inline std::string described_weights(const RoutingRule& rule) {
  std::string text;
  switch (rule.weights_from) {
    case WeightSource::scores:
      text = "; as they are";
      break;
    case WeightSource::softmax_of_chosen:
      text = "; softmax over the chosen";
      break;
    case WeightSource::sigmoid_of_chosen:
      text = "; sigmoid of the chosen";
      break;
    case WeightSource::one:
      text = "; weights 1";
      break;
  }
  const RenormalizationRule& norm = rule.renormalization;
  const bool renormalizes = norm.kind != Renormalization::none;
  if (renormalizes && rule.weights_from == WeightSource::scores) text.clear();
  if (rule.weightless_experts > 0)
    text += text_of(text.empty() ? "; " : ", ", "0 for the last ", rule.weightless_experts,
                    renormalizes ? ", then " : "");
  else if (renormalizes)
    text += text.empty() ? "; " : ", ";
  if (!renormalizes) return text;
  const std::string epsilon = short_number(norm.epsilon);
  switch (norm.kind) {
    case Renormalization::sum:
      text += norm.epsilon > 0 ? text_of("divided by sum + ", epsilon) : "divided by their sum";
      break;
    case Renormalization::clamped_sum:
      text += text_of("divided by max(sum, ", epsilon, ")");
      break;
    default:
      text += text_of("divided by their ", short_number(norm.p), "-norm");
      break;
  }
  if (norm.after_drop) text += " of those kept";
  if (!norm.at_top_1) text += " for K > 1";
  return text;
}

}  // namespace detail

/// The rule in words, in the order in which it works. A router's selection bias is not part of the
/// rule, so the caller tells of it.
inline std::string describe(const RoutingRule& rule, bool has_selection_bias = false) {
  std::string text = detail::described_logits(rule) +
                     detail::described_choice(rule, has_selection_bias) +
                     detail::described_weights(rule);
  if (rule.scale != 1)
    text += detail::text_of(rule.scales_renormalized ? "; times " : ", else times ",
                            detail::short_number(rule.scale));
  if (rule.weight_target == WeightTarget::input) text += "; on the expert's input";
  if (rule.input_scale != 1)
    text += detail::text_of("; inputs times ", detail::short_number(rule.input_scale));
  if (rule.jitter.target != JitterTarget::none && rule.jitter.epsilon > 0)
    text += detail::text_of("; in training ",
                            rule.jitter.target == JitterTarget::router_input ? "the router's input"
                                                                             : "the hidden states",
                            " times 1 +- ", detail::short_number(rule.jitter.epsilon));
  if (rule.logits.noise > 0)
    text +=
        detail::text_of("; in training normal noise of ", detail::short_number(rule.logits.noise));
  return text;
}

}  // namespace moe::inline MOE_ABI
