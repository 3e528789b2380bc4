// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// RoutingRule: the conventions of a token-choice family as one aggregate value.
#pragma once

#include <cmath>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/renormalization.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// How a router's weights make logits of a token x.
enum class LogitForm {
  linear,     ///< W x
  two_layer,  ///< W tanh(P x), with the router's projection P
  cosine,     ///< cos(w_e, P x) / temperature, or cos(w_e, x) / temperature without a projection
};

/// From a token to its logits. Bias and residual are added where the router has such weights.
///
/// Source  cosine: Chi et al. (2022), arXiv:2204.09179; Tutel, whose learnt parameter is
///         log(1 / temperature) and is clamped so that the temperature is at least 0.01.
struct LogitRule {
  LogitForm form = LogitForm::linear;
  double temperature = 1;         ///< of cosine logits
  double standard_deviation = 0;  ///< if positive, logits are scaled to this deviation (n - 1)
  double noise = 0;               ///< in training: deviation of normal noise, for choice and score
};

/// What is multiplied by uniform noise from 1 - epsilon to 1 + epsilon in training.
enum class JitterTarget {
  none,
  router_input,   ///< what the router sees: Switch
  hidden_states,  ///< what router and experts see: transformers' Mixtral
};

struct JitterRule {
  JitterTarget target = JitterTarget::none;
  double epsilon = 0;
};

/// How a group of experts is scored.
enum class GroupScore {
  maximum,  ///< its best expert
  top_sum,  ///< the sum of its `GroupRule::top` best experts
};

/// What the selection scores of a group that was not kept become.
enum class GroupFill {
  negative_infinity,  ///< its experts cannot be chosen
  zero,               ///< its experts count as 0, and win against negative scores
};

/// Experts in `count` equal, adjacent groups, of which `kept` stay eligible for a token. Ties
/// between groups go to the lower one.
struct GroupRule {
  Index count = 1;
  Index kept = 1;
  GroupScore score = GroupScore::top_sum;
  Index top = 2;
  GroupFill fill = GroupFill::negative_infinity;

  /// False where every group is kept, so that groups decide nothing.
  bool active() const noexcept { return kept < count; }
};

/// How many of the K best experts a token uses.
enum class ChoiceLimitKind {
  none,                ///< all K
  top_p,               ///< the fewest whose scores sum to `value` or more
  threshold,           ///< those that score above `value`
  relative_threshold,  ///< those that score above `value` times the best
};

/// Slots beyond the limit hold `no_expert` and weight 0, and do not take part in renormalisation.
///
/// Source  top_p: Huang et al. (2024), arXiv:2403.07652.
struct ChoiceLimit {
  ChoiceLimitKind kind = ChoiceLimitKind::none;
  double value = 0;
  Index minimum = 1;  ///< a token uses at least so many
};

/// Where the weight of a chosen expert comes from, before renormalisation.
enum class WeightSource {
  scores,             ///< its score, never with the selection bias
  softmax_of_chosen,  ///< softmax over the logits of the K chosen
  sigmoid_of_chosen,  ///< sigmoid of its logit
  one,                ///< 1
};

/// From tokens to weights, in the order of the fields: logits; scores; selection scores (score plus
/// the router's selection bias, if it has one); groups; the K best; the limit; weights, which are 0
/// for the last `weightless_experts`; renormalisation; scale.
///
/// Ties    lower expert index first.
/// Source  each family's own, see presets.hpp.
struct RoutingRule {
  LogitRule logits = {};
  ScoreFunction score = ScoreFunction::softmax;
  GroupRule groups = {};
  ChoiceLimit limit = {};
  WeightSource weights_from = WeightSource::scores;
  Index weightless_experts = 0;
  RenormalizationRule renormalization = {};
  double scale = 1;
  bool scales_renormalized = true;  ///< false: `scale` is left out where weights were renormalised
  WeightTarget weight_target = WeightTarget::output;
  double input_scale = 1;  ///< of every expert's input
  JitterRule jitter = {};
};

namespace detail {

/// Throws std::invalid_argument if the rule cannot work for E experts and K choices.
inline void check_rule(const char* where, const RoutingRule& rule, Index num_experts, Index top_k) {
  const GroupRule& groups = rule.groups;
  check(groups.count > 0, where, "groups.count must be positive");
  check(groups.kept > 0 && groups.kept <= groups.count, where,
        "groups.kept must be from 1 to groups.count");
  check(num_experts % groups.count == 0, where, "num_experts must be a multiple of groups.count");
  if (groups.active()) {
    const Index group_size = num_experts / groups.count;
    check(groups.score != GroupScore::top_sum || (groups.top > 0 && groups.top <= group_size),
          where, "groups.top must be from 1 to the size of a group");
    check(groups.fill == GroupFill::zero || groups.kept * group_size >= top_k, where,
          "the kept groups hold fewer than top_k experts");
  }
  check_renormalization(where, rule.renormalization);
  const LogitRule& logits = rule.logits;
  check(std::isfinite(logits.temperature) && logits.temperature > 0, where,
        "logits.temperature must be finite and positive");
  check(std::isfinite(logits.standard_deviation) && logits.standard_deviation >= 0, where,
        "logits.standard_deviation must be finite and not negative");
  check(std::isfinite(logits.noise) && logits.noise >= 0, where,
        "logits.noise must be finite and not negative");
  check(std::isfinite(rule.limit.value), where, "limit.value must be finite");
  check(rule.limit.minimum >= 0 && rule.limit.minimum <= top_k, where,
        "limit.minimum must be from 0 to top_k");
  check(rule.weightless_experts >= 0 && rule.weightless_experts <= num_experts, where,
        "weightless_experts must be from 0 to num_experts");
  check(rule.scales_renormalized || !rule.renormalization.after_drop, where,
        "renormalisation after the drop always scales");
  const bool compares_scores = rule.limit.kind == ChoiceLimitKind::top_p ||
                               rule.limit.kind == ChoiceLimitKind::relative_threshold;
  check(!compares_scores || rule.score != ScoreFunction::identity, where,
        "a share of the scores needs scores that are not logits");
  check(std::isfinite(rule.input_scale), where, "input_scale must be finite");
  check(logits.form == LogitForm::cosine || logits.temperature == 1, where,
        "logits.temperature belongs to cosine logits");
  check(rule.jitter.target != JitterTarget::none || rule.jitter.epsilon == 0, where,
        "jitter.epsilon needs a target");
  check(rule.jitter.epsilon >= 0 && rule.jitter.epsilon < 1, where,
        "jitter.epsilon must be at least 0 and below 1");
  check(std::isfinite(rule.scale), where, "scale must be finite");
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
