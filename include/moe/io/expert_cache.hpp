// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// CachedExperts: a bank that lies in a packed file and keeps some of its experts in memory (POSIX).
// (optional: needs nlohmann_json)
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/coded_product.hpp"
#include "moe/experts/gather.hpp"
#include "moe/experts/quantized_experts.hpp"
#include "moe/io/expert_slots.hpp"
#include "moe/io/packed.hpp"
#include "moe/losses/metrics.hpp"

namespace moe::inline MOE_ABI::io {

/// The experts of a bank in a packed file, of which as many are in memory as a budget allows, each
/// in a slot as large as the largest one. A forward whose tokens need more than that runs in
/// rounds, with the bits of the bank in memory.
///
/// Values  forwards take turns, and the cache is shared by copies.
template <Activation<float> ActivationT>
class CachedExperts {
 public:
  using Scalar = float;

  /// Throws  as PackedFile::bank; std::invalid_argument if the budget, in bytes, is smaller than
  ///         the largest expert; std::system_error if the system gives no thread to read them.
  CachedExperts(const PackedFile& file, std::string_view bank, double budget)
      : state_(std::make_shared<State>(file.bank<ActivationT>(bank), file, bank, budget)) {}

  Index num_experts() const noexcept { return state_->bank.num_experts(); }
  Index d_model() const noexcept { return state_->bank.d_model(); }
  /// Experts that fit the budget.
  Index slots() const noexcept { return static_cast<Index>(state_->slots.size()); }
  CacheCounters counters() const { return state_->slots.counters(); }

  /// How weights are multiplied, as of QuantizedExperts, by all copies. Both wait for a forward
  /// that runs.
  ProductKind product() const {
    const std::lock_guard lock(state_->forwards);
    return state_->bank.product();
  }
  void set_product(ProductKind kind) {
    const std::lock_guard lock(state_->forwards);
    state_->bank.set_product(kind);
  }

  /// Experts that stay in memory, such as those that are chosen often; instead of earlier ones.
  /// Waits for a forward that runs.
  ///
  /// Throws  std::invalid_argument if an expert is out of range, or there is no room left for
  ///         others.
  void pin(std::span<const Index> experts) {
    check_experts("CachedExperts::pin", experts);
    const std::lock_guard lock(state_->forwards);
    state_->slots.pin(experts);
  }

  /// Begins to read experts that a forward will ask for, such as those of the next tokens once
  /// their routing is known, and returns at once. They stay until they are used, or until the
  /// third forward that begins after the call.
  ///
  /// Throws  std::invalid_argument if an expert is out of range.
  void prefetch(std::span<const Index> experts) const {
    check_experts("CachedExperts::prefetch", experts);
    state_->slots.prefetch(experts);
  }
  /// The same of all experts that a routing names, those with the most tokens first.
  void prefetch(const Routing<float>& routing) const {
    const std::vector<Index> load = metrics::expert_load(routing);
    std::vector<Index> experts;
    for (Index e = 0; e < routing.num_experts; ++e)
      if (load[static_cast<std::size_t>(e)] > 0) experts.push_back(e);
    std::stable_sort(experts.begin(), experts.end(), [&](Index a, Index b) {
      return load[static_cast<std::size_t>(a)] > load[static_cast<std::size_t>(b)];
    });
    prefetch(experts);
  }

  /// Throws  as QuantizedExperts::forward; std::system_error or FormatError if the file cannot be
  ///         read any more.
  void forward(const ExpertInput<float>& input, MatrixView<float> rows, Scratch& scratch) const {
    forward_weighted(input, rows, {}, scratch);
  }

  /// The same with rows times the weights of their slots, as QuantizedExperts.
  void forward_weighted(const ExpertInput<float>& input, MatrixView<float> rows,
                        MatrixView<const float> weights, Scratch& scratch) const {
    State& state = *state_;
    moe::detail::check_bank_call("CachedExperts::forward", input, rows, num_experts(), d_model());
    const std::lock_guard lock(state.forwards);
    state.slots.begin_forward();
    std::vector<Index> left;
    for (Index e = 0; e < num_experts(); ++e)
      if (input.plan.rows_of(e) > 0) left.push_back(e);
    const std::size_t all = left.size();
    while (!left.empty()) {
      const std::vector<Index> now = state.slots.acquire(left);
      struct Release {
        detail::ExpertSlots& slots;
        ~Release() { slots.release(); }
      };
      const Release release{state.slots};
      for (const Index e : now) state.bank.set_expert_view(e, state.slots.data(e));
      if (now.size() == all) {
        state.bank.forward_weighted(input, rows, weights, scratch);
        return;
      }
      run_some(state, now, input, rows, weights, scratch);
      const std::set<Index> done(now.begin(), now.end());
      std::erase_if(left, [&](Index e) { return done.count(e) != 0; });
    }
  }

  const float* unweighted_bias(Index e) const noexcept { return state_->bank.unweighted_bias(e); }

 private:
  struct State {
    State(QuantizedExperts<ActivationT> its_bank, const PackedFile& file, std::string_view name,
          double budget)
        : bank(std::move(its_bank)),
          slots(file.file().mapped(), pieces(file, name, bank), budget) {}

    static std::vector<detail::ExpertSlots::Piece> pieces(
        const PackedFile& file, std::string_view name, const QuantizedExperts<ActivationT>& bank) {
      std::vector<detail::ExpertSlots::Piece> result;
      for (Index e = 0; e < bank.num_experts(); ++e) {
        const std::string expert = moe::detail::text_of(name, ".", e);
        const TensorView& tensor = file.file().tensors().at(expert);
        result.push_back({expert, tensor.offset, tensor.data.size()});
      }
      return result;
    }

    QuantizedExperts<ActivationT> bank;
    detail::ExpertSlots slots;
    std::mutex forwards;
    DispatchPlan plan;  // of some experts
    AlignedBuffer<float> rows;
  };

  void check_experts(const char* where, std::span<const Index> experts) const {
    for (const Index e : experts)
      moe::detail::check(e >= 0 && e < num_experts(), where, "expert is out of range");
  }

  /// Some experts' rows, by a plan of theirs alone.
  static void run_some(State& state, std::vector<Index> experts, const ExpertInput<float>& input,
                       MatrixView<float> rows, MatrixView<const float> weights, Scratch& scratch) {
    std::sort(experts.begin(), experts.end());
    const DispatchPlan& whole = input.plan;
    DispatchPlan& plan = state.plan;
    plan = whole;
    plan.rows.clear();
    plan.offsets.assign(static_cast<std::size_t>(whole.num_experts) + 1, 0);
    std::fill(plan.row_of.begin(), plan.row_of.end(), DispatchPlan::no_row);
    std::vector<Index> row_in_whole;
    for (Index e = 0; e < whole.num_experts; ++e) {
      if (std::binary_search(experts.begin(), experts.end(), e)) {
        for (Index r = whole.first_row(e); r < whole.first_row(e + 1); ++r) {
          const TokenSlot choice = whole.rows[static_cast<std::size_t>(r)];
          plan.row_of[static_cast<std::size_t>(choice.token * whole.top_k + choice.slot)] =
              static_cast<std::int32_t>(plan.rows.size());
          plan.rows.push_back(choice);
          row_in_whole.push_back(r);
        }
      }
      plan.offsets[static_cast<std::size_t>(e) + 1] = plan.num_rows();
    }
    const Index width = rows.cols();
    state.rows.grow(static_cast<std::size_t>(plan.num_rows() * width));
    const MatrixView<float> some(state.rows.data(), plan.num_rows(), width);
    state.bank.forward_weighted({input.x, plan, input.scales, input.factor, input.dropout}, some,
                                weights, scratch);
    for (Index r = 0; r < plan.num_rows(); ++r)
      std::copy_n(some.row(r), width, rows.row(row_in_whole[static_cast<std::size_t>(r)]));
  }

  std::shared_ptr<State> state_;
};

}  // namespace moe::inline MOE_ABI::io
