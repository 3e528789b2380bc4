// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Capacity: how many rows an expert takes at most, and which choices it drops beyond that.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_ABI {

/// The limit of an expert for T tokens with K choices each among E experts, before `minimum` and
/// `multiple`. Each formula rounds where its source rounds.
enum class CapacityFormula {
  choices_ceil,   ///< ceil(factor T K / E): V-MoE, with multiple = 4
  choices_round,  ///< factor T K / E rounded, halves to even: V-MoE, where its flag says 'round'
  tokens_floor,   ///< floor(factor T / E): Mesh TensorFlow, lingvo with minimum = multiple = 4
  tokens_round,   ///< factor T / E rounded, halves to even: flaxformer
  tokens_ceil,    ///< ceil(factor T / E)
  deepspeed,      ///< ceil(T / E * (factor K)), in single precision
  megatron,       ///< ceil(T K / E * factor)
  megablocks,     ///< floor(factor K T / E), where 0 stands for no limit
  tutel,          ///< K floor(|factor| ceil(T / E))
  fastmoe,        ///< floor(ceil(factor T) K / E)
  token_share,    ///< ceil(factor T): transformers' NLLB outside of training
  fixed,          ///< `fixed_rows` as they are, whatever minimum and multiple say: transformers'
                  ///< Switch and NLLB
};

/// Which choices an expert keeps when it has too many. Equal ones keep the order of the tokens.
enum class DropOrder {
  token_major,     ///< the earliest tokens', an earlier slot of the same token first: MegaBlocks,
                   ///< fastmoe, Megatron's and DeepSpeed's 'position'
  slot_major,      ///< first choices before second ones, then the earliest tokens': GShard, Mesh
                   ///< TensorFlow, lingvo, flaxformer, Tutel, NLLB, DeepSpeed for K = 2
  batch_priority,  ///< first choices before second ones, then the surest tokens' (by the largest
                   ///< score): V-MoE, Tutel and NLLB where asked
  by_weight,       ///< the largest weights: DeepSpeed's and Megatron's 'probs'
  random,          ///< the largest of uniform noise: DeepSpeed's random token selection
};

/// Where the places of a later slot begin, with the orders that put first choices first. Both drop
/// the same choices, since an expert that has dropped a first choice is full; they differ in the
/// place that a dropped choice would have had (see `choice_places`).
enum class SlotStart {
  undropped,  ///< after all choices of the earlier slots: NLLB, DeepSpeed
  kept,       ///< after those that were kept: GShard
};

/// How many rows an expert takes at most. The default has no limit.
///
/// Source  the systems named at CapacityFormula and DropOrder.
struct Capacity {
  double factor = 0;   ///< 0 for no limit
  Index minimum = 0;   ///< the computed limit is never less than this
  Index multiple = 1;  ///< the limit is rounded up to a multiple of this
  CapacityFormula formula = CapacityFormula::choices_ceil;
  Index fixed_rows = 0;
  DropOrder order = DropOrder::token_major;
  SlotStart slot_start = SlotStart::undropped;
  Index group_tokens = 0;  ///< tokens of a group with limits of its own, 0 for all in one
  bool reroute = false;    ///< dropped choices go to the next best expert with room
  std::uint64_t seed = 0;  ///< of the random order; a layer mixes RouteOptions::seed into it

  static constexpr Index unlimited = std::numeric_limits<Index>::max();

  /// True where nothing is ever dropped.
  bool is_unlimited() const noexcept { return factor == 0 && formula != CapacityFormula::fixed; }

  /// Tokens of one group among T; the last group may be shorter, with the same limit.
  Index group_size(Index tokens) const noexcept {
    return group_tokens > 0 ? std::min(group_tokens, tokens) : tokens;
  }

  /// The limit for a group of T tokens with K choices each among E experts.
  Index rows(Index tokens, Index top_k, Index num_experts) const {
    if (num_experts <= 0 || is_unlimited()) return unlimited;
    if (formula == CapacityFormula::fixed) return fixed_rows;
    const double limit = unrounded(static_cast<double>(tokens), static_cast<double>(top_k),
                                   static_cast<double>(num_experts));
    if (!(limit < 0x1p61)) return unlimited;
    auto result = static_cast<Index>(limit);
    if (formula == CapacityFormula::megablocks && result == 0) return unlimited;
    result = std::max(result, minimum);
    return (result + multiple - 1) / multiple * multiple;
  }

 private:
  double unrounded(double tokens, double top_k, double experts) const {
    switch (formula) {
      case CapacityFormula::tokens_floor:
        return std::floor(factor * tokens / experts);
      case CapacityFormula::tokens_round:
        return std::nearbyint(factor * tokens / experts);
      case CapacityFormula::choices_round:
        return std::nearbyint(factor * (tokens * top_k) / experts);
      case CapacityFormula::tokens_ceil:
        return std::ceil(factor * tokens / experts);
      case CapacityFormula::deepspeed:
        return static_cast<double>(
            std::ceil(static_cast<float>(tokens / experts) * static_cast<float>(factor * top_k)));
      case CapacityFormula::megatron:
        return std::ceil(tokens * top_k / experts * factor);
      case CapacityFormula::megablocks:
        return std::floor(factor * (top_k * tokens / experts));
      case CapacityFormula::tutel:
        return top_k * std::floor(std::fabs(factor) * std::ceil(tokens / experts));
      case CapacityFormula::token_share:
        return std::ceil(factor * tokens);
      case CapacityFormula::fastmoe:
        return std::floor(std::ceil(factor * tokens) * top_k / experts);
      default:
        // In this order every step is exact where factor * T * K and the result are whole numbers.
        return std::ceil(factor * (tokens * top_k) / experts);
    }
  }
};

namespace detail {

inline void check_capacity(const char* where, const Capacity& capacity) {
  check(std::isfinite(capacity.factor) &&
            (capacity.factor >= 0 || capacity.formula == CapacityFormula::tutel),
        where, "capacity.factor must be finite and not negative");
  // Bounds far above any number of tokens, so that sums of both stay in range.
  constexpr Index most = Index{1} << 61;
  check(capacity.minimum >= 0 && capacity.minimum <= most, where,
        "capacity.minimum must be from 0 to 2^61");
  check(capacity.multiple > 0 && capacity.multiple <= most, where,
        "capacity.multiple must be from 1 to 2^61");
  check(capacity.fixed_rows >= 0, where, "capacity.fixed_rows must not be negative");
  check(capacity.group_tokens >= 0, where, "capacity.group_tokens must not be negative");
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
