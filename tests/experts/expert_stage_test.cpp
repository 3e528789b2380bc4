// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The schedule: a bank that computes nothing writes down which tasks it was given, and when.
#include "moe/experts/expert_stage.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routing/plan.hpp>

#include "support/layers.hpp"
#include "support/threads.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using moe::detail::StageShape;
using moe::detail::StageSlice;

/// Counts what happens; a task begins and ends at two of its numbers.
std::atomic<int> moment{0};

struct Task {
  bool is_up;
  int begin;
  int end;
  StageSlice<float> slice;
};

class Recorder : public moe::detail::StagedBank<float> {
 public:
  Recorder(Index d_model, Index d_ff) {
    constexpr Index width = moe::kernels::panel_width;
    shape_ = {.d_model = d_model,
              .hidden = d_ff,
              .up_panels = 2 * d_ff / width,
              .down_panels = d_model / width,
              .d_ff = d_ff,
              .up_factor = 2,
              .weight_bytes = 4};
  }
  StageShape stage_shape() const noexcept override { return shape_; }
  void run_up(const StageSlice<float>& slice) const override { record(true, slice); }
  void run_down(const StageSlice<float>& slice) const override { record(false, slice); }

  const std::vector<Task>& tasks() const noexcept { return tasks_; }

 private:
  void record(bool is_up, const StageSlice<float>& slice) const {
    const int begin = ++moment;
    std::this_thread::yield();
    const int end = ++moment;
    const std::lock_guard lock(mutex_);
    tasks_.push_back({is_up, begin, end, slice});
  }

  StageShape shape_;
  mutable std::mutex mutex_;
  mutable std::vector<Task> tasks_;
};

/// A run of one bank on a routing, in which token t has the experts `expert(t, k)`.
struct StageRun {
  moe::Routing<float> routing;
  moe::DispatchPlan plan;
  Matrix<float> x;     // (T, D)
  Matrix<float> rows;  // (N, D)
  std::vector<int> combined;

  template <class Expert>
  StageRun(Index tokens, Index experts, Index top_k, Index d_model, const Expert& expert) {
    routing.resize(tokens, experts, top_k, {});
    routing.weights.setOnes();
    for (Index t = 0; t < tokens; ++t)
      for (Index k = 0; k < top_k; ++k)
        routing.experts(t, k) = static_cast<moe::ExpertIndex>(expert(t, k));
    moe::make_plan(routing, {}, plan);
    x = test_support::random_matrix<float>(tokens, d_model, 1);
    rows.resize(plan.num_rows(), d_model);
  }

  void on(std::vector<const Recorder*> banks) {
    moe::detail::ExpertStage<float> stage;
    const moe::ExpertInput<float> input{x, plan, {}, 1, {}};
    for (const Recorder* const bank : banks) stage.add({bank, &input, rows, {}, nullptr});
    combined.assign(3, 0);
    stage.run(3, [&](Index task) { combined[static_cast<std::size_t>(task)] = ++moment; });
  }
};

constexpr Index d_model = 256;
constexpr Index d_ff = 1024;
constexpr Index experts = 6;

TEST(ExpertStage, RunsEveryPanelOfEveryBlockOnceAndDownsBehindUps) {
  const auto even = [](Index t, Index k) { return (t + 3 * k) % experts; };
  const auto skewed = [](Index t, Index k) { return k == 0 ? 2 : 3 + t * t % 3; };
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads scoped(threads);
    for (const Index tokens : {1, 5, 40, 700}) {
      for (const bool is_even : {true, false}) {
        SCOPED_TRACE(testing::Message() << threads << " threads, " << tokens << " tokens");
        StageRun run(tokens, experts, 2, d_model,
                     [&](Index t, Index k) { return is_even ? even(t, k) : skewed(t, k); });
        const Recorder bank(d_model, d_ff);
        run.on({&bank});
        for (Index e = 0; e < experts; ++e) {
          int last_up = 0;
          int first_down = moment + 1;
          for (const bool is_up : {true, false}) {
            const StageShape shape = bank.stage_shape();
            const Index panels = is_up ? shape.up_panels : shape.down_panels;
            std::multiset<std::pair<Index, Index>> done;
            Index blocks = 0;
            for (const Task& task : bank.tasks()) {
              if (task.slice.expert != e || task.is_up != is_up) continue;
              blocks = task.slice.blocks;
              EXPECT_EQ(task.slice.num_rows, run.plan.rows_of(e));
              for (Index p = task.slice.first_panel; p < task.slice.last_panel; ++p)
                for (Index b = task.slice.first_block; b < task.slice.last_block; ++b)
                  done.emplace(p, b);
              if (is_up) last_up = std::max(last_up, task.end);
              if (!is_up) first_down = std::min(first_down, task.begin);
            }
            EXPECT_EQ(blocks > 0, run.plan.rows_of(e) > 0);
            EXPECT_EQ(done.size(), static_cast<std::size_t>(panels * blocks));
            for (Index p = 0; p < panels; ++p)
              for (Index b = 0; b < blocks; ++b) EXPECT_EQ(done.count({p, b}), 1U);
          }
          EXPECT_LT(last_up, first_down) << "expert " << e;
        }
      }
    }
  }
}

TEST(ExpertStage, BeginsWithTheCostliest) {
  const test_support::ScopedThreads scoped(1);
  // Experts 0 .. 5 get 30, 60, ... 180 of 630 tokens.
  StageRun run(630, experts, 1, d_model, [](Index t, Index /*k*/) {
    Index e = 0;
    while (t >= 15 * (e + 1) * (e + 2)) ++e;
    return e;
  });
  const Recorder bank(d_model, d_ff);
  run.on({&bank});
  std::vector<Index> order;
  for (const Task& task : bank.tasks())
    if (task.is_up && (order.empty() || order.back() != task.slice.expert))
      order.push_back(task.slice.expert);
  EXPECT_EQ(order, (std::vector<Index>{5, 4, 3, 2, 1, 0}));
}

TEST(ExpertStage, CutsOneExpertsWorkForAllThreads) {
  for (const int threads : {2, 3, 7}) {
    const test_support::ScopedThreads scoped(threads);
    for (const Index tokens : {1, 8, 500}) {
      StageRun run(tokens, experts, 1, d_model, [](Index /*t*/, Index /*k*/) { return 4; });
      const Recorder bank(d_model, 4 * d_ff);
      run.on({&bank});
      for (const bool is_up : {true, false}) {
        const auto count = std::count_if(bank.tasks().begin(), bank.tasks().end(),
                                         [&](const Task& task) { return task.is_up == is_up; });
        // 8 panels of a down projection make 2 tasks, further ones need rows.
        EXPECT_GE(count, is_up ? threads : std::min<Index>(2, threads))
            << threads << " threads, " << tokens << " tokens";
      }
    }
  }
}

TEST(ExpertStage, SharedExpertsAreInTheSameQueueAndCombineComesLast) {
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads scoped(threads);
    StageRun run(300, experts, 2, d_model, [](Index t, Index k) { return (t + 3 * k) % experts; });
    const Recorder routed(d_model, d_ff);
    const Recorder shared(d_model, 2 * d_ff);
    run.on({&routed, &shared});
    int last = 0;
    int first_of_routed = moment;
    int first_of_shared = moment;
    for (const Task& task : routed.tasks()) {
      last = std::max(last, task.end);
      first_of_routed = std::min(first_of_routed, task.begin);
    }
    for (const Task& task : shared.tasks()) {
      last = std::max(last, task.end);
      first_of_shared = std::min(first_of_shared, task.begin);
    }
    // Theirs are twice as wide, and so come first; how threads hurry, nobody can say.
    if (threads == 1) {
      EXPECT_LT(first_of_shared, first_of_routed);
    }
    for (const int at : run.combined) EXPECT_GT(at, last);
  }
}

}  // namespace
