// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Which choices a capacity keeps, and what becomes of those that it drops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/renormalization.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/thread_buffer.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/routing/capacity.hpp"
#include "moe/routing/noise.hpp"
#include "moe/routing/selection.hpp"

namespace moe::inline MOE_ABI {
namespace detail {

/// The tokens of a group in the order in which they claim places.
template <class Scalar>
void order_tokens(const char* where, const Routing<Scalar>& routing, DropOrder order, Index begin,
                  Index end, std::vector<Index>& tokens) {
  tokens.resize(static_cast<std::size_t>(end - begin));
  std::iota(tokens.begin(), tokens.end(), begin);
  if (order != DropOrder::batch_priority) return;
  check(routing.scores.size() != 0, where, "batch priority needs a routing with scores");
  struct Best;
  Scalar* const best = thread_buffer<Best, Scalar>(tokens.size());
  for (Index t = begin; t < end; ++t)
    best[t - begin] = kernels::row_kernels<Scalar>().largest(detail::row_data(routing.scores, t),
                                                             routing.num_experts);
  std::sort(tokens.begin(), tokens.end(), [&](Index a, Index b) {
    return best[a - begin] != best[b - begin] ? best[a - begin] > best[b - begin] : a < b;
  });
}

/// The place of every choice of tokens begin .. end - 1 in its expert's buffer by order of
/// position, -1 for an unused slot.
///
/// Shapes  place (T * K).
template <class Scalar>
void place_by_position(const char* where, const Routing<Scalar>& routing, const Capacity& capacity,
                       Index limit, Index begin, Index end, std::vector<Index>& place) {
  struct Memory {
    std::vector<Index> tokens;
    std::vector<Index> next;
  };
  std::vector<Index>& tokens = thread_object<Memory>().tokens;
  std::vector<Index>& next = thread_object<Memory>().next;
  order_tokens(where, routing, capacity.order, begin, end, tokens);
  const Index top_k = routing.top_k();
  next.assign(static_cast<std::size_t>(routing.num_experts), 0);
  const auto claim = [&](Index t, Index k) {
    const Index e = routing.experts(t, k);
    place[static_cast<std::size_t>(t * top_k + k)] =
        e == no_expert ? -1 : next[static_cast<std::size_t>(e)]++;
  };
  if (capacity.order == DropOrder::token_major) {
    for (const Index t : tokens)
      for (Index k = 0; k < top_k; ++k) claim(t, k);
    return;
  }
  for (Index k = 0; k < top_k; ++k) {
    for (const Index t : tokens) claim(t, k);
    if (capacity.slot_start == SlotStart::kept)
      for (Index& n : next) n = std::min(n, limit);
  }
}

/// The same by the largest weights or the largest noise.
template <class Scalar>
void place_by_key(const Routing<Scalar>& routing, const Capacity& capacity,
                  MatrixView<const Scalar> priority, Index begin, Index end,
                  std::vector<Index>& place) {
  struct Choice {
    Index expert;
    Scalar key;
    Index index;  // t * K + k
  };
  struct Memory {
    std::vector<Choice> choices;
  };
  std::vector<Choice>& choices = thread_object<Memory>().choices;
  choices.clear();
  choices.reserve(static_cast<std::size_t>((end - begin) * routing.top_k()));
  const std::uint64_t seed = stream_seed(capacity.seed, NoiseStream::capacity);
  const auto key_of = [&](Index t, Index k, Index e) {
    if (capacity.order == DropOrder::by_weight) return routing.weights(t, k);
    if (!priority.empty()) return selection_key(priority(t, e));
    return static_cast<Scalar>(
        draw(Noise::uniform, seed, static_cast<std::uint64_t>(t * routing.num_experts + e)));
  };
  for (Index t = begin; t < end; ++t) {
    for (Index k = 0; k < routing.top_k(); ++k) {
      const Index e = routing.experts(t, k);
      const Index index = t * routing.top_k() + k;
      place[static_cast<std::size_t>(index)] = -1;
      if (e != no_expert) choices.push_back({e, key_of(t, k, e), index});
    }
  }
  std::sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) {
    if (a.expert != b.expert) return a.expert < b.expert;
    return a.key != b.key ? a.key > b.key : a.index < b.index;
  });
  Index next = 0;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (i > 0 && choices[i].expert != choices[i - 1].expert) next = 0;
    place[static_cast<std::size_t>(choices[i].index)] = next++;
  }
}

/// choice_places with errors that begin with `where`.
///
/// Shapes  place becomes (T * K).
template <class Scalar>
void choice_places(const char* where, const Routing<Scalar>& routing, const Capacity& capacity,
                   MatrixView<const Scalar> priority, std::vector<Index>& place) {
  check_noise(where, "priority.rows()", "priority.cols()", priority, routing.tokens(),
              routing.num_experts);
  const Index group = std::max<Index>(capacity.group_size(routing.tokens()), 1);
  const Index limit = capacity.rows(group, routing.top_k(), routing.num_experts);
  place.resize(static_cast<std::size_t>(routing.tokens() * routing.top_k()));
  const bool by_key = capacity.order == DropOrder::by_weight || capacity.order == DropOrder::random;
  for (Index begin = 0; begin < routing.tokens(); begin += group) {
    const Index end = std::min(begin + group, routing.tokens());
    if (by_key) {
      place_by_key(routing, capacity, priority, begin, end, place);
    } else {
      place_by_position(where, routing, capacity, limit, begin, end, place);
    }
  }
}

/// 1 for each choice that an expert has room for.
///
/// Shapes  result (T * K), or empty where there is no limit; this thread's, until the next call.
template <class Scalar>
const std::vector<std::uint8_t>& kept_choices(const char* where, const Routing<Scalar>& routing,
                                              const Capacity& capacity,
                                              MatrixView<const Scalar> priority) {
  struct Memory {
    std::vector<Index> place;
    std::vector<std::uint8_t> kept;
  };
  auto& [place, kept] = thread_object<Memory>();
  kept.clear();
  if (capacity.is_unlimited()) return kept;
  const Index limit =
      capacity.rows(capacity.group_size(routing.tokens()), routing.top_k(), routing.num_experts);
  if (limit == Capacity::unlimited) return kept;
  choice_places(where, routing, capacity, priority, place);
  kept.resize(place.size());
  for (std::size_t i = 0; i < place.size(); ++i)
    kept[i] = place[i] >= 0 && place[i] < limit ? 1 : 0;
  return kept;
}

}  // namespace detail

/// The place that each choice has, or would have, in its expert's buffer: the choice is kept if its
/// place is below the limit. With several groups of tokens, places count within the group.
///
/// Shapes  result (T * K), -1 for an unused slot; priority (T, E) or empty, as for `make_plan`.
/// Throws  as `make_plan`.
template <class Scalar>
std::vector<Index> choice_places(const Routing<Scalar>& routing, const Capacity& capacity,
                                 std::type_identity_t<MatrixView<const Scalar>> priority = {}) {
  detail::check_routing("choice_places", routing);
  detail::check_capacity("choice_places", capacity);
  std::vector<Index> place;
  detail::choice_places<Scalar>("choice_places", routing, capacity, priority, place);
  return place;
}

/// The weights with which `combine` adds up: those of the routing, 0 for dropped choices, and
/// renormalised over the kept ones where the routing asks for it.
///
/// Shapes  weights, a Matrix or GrowingMatrix, becomes (T, K).
/// Throws  ShapeError if routing and plan differ in size.
template <class Scalar, class Weights>
void final_weights(const Routing<Scalar>& routing, const DispatchPlan& plan, Weights& weights) {
  constexpr const char* where = "final_weights";
  detail::check_size(where, "plan.tokens", routing.tokens(), plan.tokens);
  detail::check_size(where, "plan.top_k", routing.top_k(), plan.top_k);
  detail::check_size(where, "plan.row_of.size()", routing.experts.size(),
                     static_cast<Index>(plan.row_of.size()));
  detail::check_size(where, "routing.weights.rows()", routing.tokens(), routing.weights.rows());
  detail::check_size(where, "routing.weights.cols()", routing.top_k(), routing.weights.cols());
  weights = routing.weights;
  for (Index t = 0; t < plan.tokens; ++t) {
    Scalar* const weight = detail::row_data(weights, t);
    for (Index k = 0; k < plan.top_k; ++k)
      if (plan.row_of[static_cast<std::size_t>(t * plan.top_k + k)] == DispatchPlan::no_row)
        weight[k] = 0;
    if (!routing.renormalization.after_drop) continue;
    detail::renormalize(routing.renormalization, plan.top_k, weight, plan.top_k);
    for (Index k = 0; k < plan.top_k; ++k)
      weight[k] *= static_cast<Scalar>(routing.scale_after_drop);
  }
}

namespace detail {

/// reroute_dropped of a plan that is known to be the routing's.
template <class Scalar>
Index reroute_dropped(const DispatchPlan& plan, const Capacity& capacity,
                      Routing<Scalar>& routing) {
  if (plan.dropped.empty()) return 0;
  check(routing.scores.size() != 0, "reroute_dropped", "the routing was made without scores");
  const Index group = std::max<Index>(capacity.group_size(plan.tokens), 1);
  const Index limit = capacity.rows(group, plan.top_k, plan.num_experts);
  const Index groups = (plan.tokens + group - 1) / group;
  struct Load;
  const MatrixView<Index> load(
      thread_buffer<Load, Index>(static_cast<std::size_t>(groups * plan.num_experts)), groups,
      plan.num_experts);
  std::fill_n(load.data(), groups * plan.num_experts, Index{0});
  for (Index e = 0; e < plan.num_experts; ++e)
    for (Index r = plan.first_row(e); r < plan.first_row(e + 1); ++r)
      ++load(plan.rows[static_cast<std::size_t>(r)].token / group, e);
  const bool of_logits = routing.score_function == ScoreFunction::identity;
  const Scalar least = of_logits ? -std::numeric_limits<Scalar>::infinity() : Scalar(0);
  Index moved = 0;
  for (const TokenSlot choice : plan.dropped) {
    const Index t = choice.token;
    const ExpertIndex* const chosen = &routing.experts(t, 0);
    const Scalar* const score = &routing.scores(t, 0);
    Index best = no_expert;
    for (Index e = 0; e < plan.num_experts; ++e) {
      const bool is_chosen = std::find(chosen, chosen + plan.top_k, e) != chosen + plan.top_k;
      if (is_chosen || load(t / group, e) >= limit || !(score[e] > least)) continue;
      if (best == no_expert || score[e] > score[best]) best = e;
    }
    if (best == no_expert) continue;
    const Index before = routing.experts(t, choice.slot);
    Scalar& weight = routing.weights(t, choice.slot);
    if (of_logits) {
      Scalar* const weights = &routing.weights(t, 0);
      const auto sum_of_all = [&] {
        Scalar sum = 0;
        for (Index k = 0; k < plan.top_k; ++k) sum += weights[k];
        return sum;
      };
      const Scalar sum = sum_of_all();
      weight *= std::exp(score[best] - score[before]);
      const Scalar changed = sum_of_all();
      const bool counts = std::isfinite(changed) && changed > 0;
      for (Index k = 0; k < plan.top_k; ++k)
        weights[k] = counts ? weights[k] * (sum / changed) : Scalar(0);
    } else {
      weight = score[before] > 0 ? weight * (score[best] / score[before]) : Scalar(0);
    }
    routing.experts(t, choice.slot) = static_cast<ExpertIndex>(best);
    ++load(t / group, best);
    ++moved;
  }
  return moved;
}

}  // namespace detail

/// Gives every dropped choice of `plan` the next best expert, by score without selection bias or
/// groups, that the token has not yet chosen and that has room. Its weight changes in proportion to
/// the score; where scores are logits, to their exponentials, and the token's weights keep their
/// sum, as a softmax over the chosen has it. Choices for which there is no such expert stay as they
/// are. Slots claim room in the order of plan.dropped.
///
/// Values  the number of choices that were given another expert; make the plan again after it.
/// Throws  ShapeError or std::invalid_argument if routing and plan do not fit each other, or the
///         routing was made without scores.
template <class Scalar>
Index reroute_dropped(const DispatchPlan& plan, const Capacity& capacity,
                      Routing<Scalar>& routing) {
  detail::check_plan_of("reroute_dropped", routing, plan);
  return detail::reroute_dropped(plan, capacity, routing);
}

}  // namespace moe::inline MOE_ABI
