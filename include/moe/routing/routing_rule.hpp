// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// RoutingRule: the conventions of a token-choice family as one aggregate value.
#pragma once

#include <cmath>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

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

/// Where the weight of a chosen expert comes from, before renormalisation.
enum class WeightSource {
  scores,             ///< its score, never with the selection bias
  softmax_of_chosen,  ///< softmax over the logits of the K chosen
  sigmoid_of_chosen,  ///< sigmoid of its logit
  one,                ///< 1
};

/// How the K weights of a token are brought to a common sum.
enum class Renormalization {
  none,
  sum,          ///< w / (sum + epsilon)
  clamped_sum,  ///< w / max(sum, epsilon)
  p_norm,       ///< w / (sum |w|^p)^(1/p)
};

/// A divisor of 0 leaves weights of 0.
struct RenormalizationRule {
  Renormalization kind = Renormalization::none;
  double epsilon = 0;
  double p = 1;
  bool at_top_1 = true;  ///< false: a single choice keeps its weight as it is
};

/// From logits to weights, in the order of the fields: scores; selection scores (score plus the
/// router's selection bias, if it has one); groups; the K best; weights; renormalisation; scale.
///
/// Ties    lower expert index first.
/// Source  each family's own, see presets.hpp.
struct RoutingRule {
  ScoreFunction score = ScoreFunction::softmax;
  GroupRule groups = {};
  WeightSource weights_from = WeightSource::scores;
  RenormalizationRule renormalization = {};
  double scale = 1;
  WeightTarget weight_target = WeightTarget::output;
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
  const RenormalizationRule& norm = rule.renormalization;
  check(std::isfinite(norm.epsilon) && norm.epsilon >= 0, where,
        "renormalization.epsilon must be finite and not negative");
  check(std::isfinite(norm.p) && norm.p > 0, where,
        "renormalization.p must be finite and positive");
  check(std::isfinite(rule.scale), where, "scale must be finite");
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
