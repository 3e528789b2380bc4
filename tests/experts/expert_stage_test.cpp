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
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/routing/plan.hpp>

#include "support/layers.hpp"
#include "support/memory.hpp"
#include "support/threads.hpp"

namespace expert_stage_test {

using moe::Index;
using moe::Matrix;
using moe::detail::StageShape;
using moe::detail::StageSlice;

/// Counts what happens; a task begins and ends at two of its numbers.
std::atomic<int> moment{0};

enum class Step { up, hidden, down };

struct Task {
  Step step;
  int begin;
  int end;
  StageSlice<float> slice;
};

class Recorder : public moe::detail::StagedBank<float> {
 public:
  Recorder(Index d_model, Index d_ff, bool prepares_hidden = false) {
    constexpr Index width = moe::kernels::panel_width;
    shape_ = {.d_model = d_model,
              .packed = d_model,
              .hidden = d_ff,
              .up_panels = 2 * d_ff / width,
              .down_panels = d_model / width,
              .d_ff = d_ff,
              .up_factor = 2,
              .weight_bytes = 4,
              .prepares_hidden = prepares_hidden};
  }
  StageShape stage_shape() const noexcept override { return shape_; }
  void run_up(const StageSlice<float>& slice) const override { record(Step::up, slice); }
  void run_hidden(const StageSlice<float>& slice) const override { record(Step::hidden, slice); }
  void run_down(const StageSlice<float>& slice) const override { record(Step::down, slice); }

  const std::vector<Task>& tasks() const noexcept { return tasks_; }

 private:
  void record(Step step, const StageSlice<float>& slice) const {
    const int begin = ++moment;
    std::this_thread::yield();
    const int end = ++moment;
    const std::lock_guard lock(mutex_);
    tasks_.push_back({step, begin, end, slice});
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

/// Checks one step of an expert: every panel of every block once, or every block where the step
/// knows no panels. Gives the moments at which its first task began and its last one ended.
std::pair<int, int> expect_each_once(const Recorder& bank, Index expert, Step step, Index rows) {
  const StageShape shape = bank.stage_shape();
  const Index panels = step == Step::up ? shape.up_panels : shape.down_panels;
  std::multiset<std::pair<Index, Index>> done;
  Index blocks = 0;
  std::pair<int, int> moments(moment + 1, 0);
  for (const Task& task : bank.tasks()) {
    if (task.slice.expert != expert || task.step != step) continue;
    blocks = task.slice.blocks;
    EXPECT_EQ(task.slice.num_rows, rows);
    const bool has_panels = step != Step::hidden;
    for (Index p = task.slice.first_panel; p < (has_panels ? task.slice.last_panel : 1); ++p)
      for (Index b = task.slice.first_block; b < task.slice.last_block; ++b) done.emplace(p, b);
    moments = {std::min(moments.first, task.begin), std::max(moments.second, task.end)};
  }
  EXPECT_EQ(blocks > 0, rows > 0);
  EXPECT_EQ(done.size(), static_cast<std::size_t>((step == Step::hidden ? 1 : panels) * blocks));
  EXPECT_EQ(std::set(done.begin(), done.end()).size(), done.size());
  return moments;
}

TEST(ExpertStage, RunsEveryPanelOfEveryBlockOnceAndStepsInTheirOrder) {
  const auto even = [](Index t, Index k) { return (t + 3 * k) % experts; };
  const auto skewed = [](Index t, Index k) { return k == 0 ? 2 : 3 + t * t % 3; };
  for (const int threads : test_support::thread_counts) {
    const test_support::ScopedThreads scoped(threads);
    for (const Index tokens : {1, 5, 40, 700}) {
      for (const int form : {0, 1, 2, 3}) {
        const bool is_even = form % 2 == 0;
        const bool prepares = form / 2 == 1;
        SCOPED_TRACE(testing::Message()
                     << threads << " threads, " << tokens << " tokens, form " << form);
        StageRun run(tokens, experts, 2, d_model,
                     [&](Index t, Index k) { return is_even ? even(t, k) : skewed(t, k); });
        const Recorder bank(d_model, d_ff, prepares);
        run.on({&bank});
        for (Index e = 0; e < experts; ++e) {
          const Index rows = run.plan.rows_of(e);
          const auto ups = expect_each_once(bank, e, Step::up, rows);
          const auto downs = expect_each_once(bank, e, Step::down, rows);
          EXPECT_LT(ups.second, downs.first) << "expert " << e;
          if (!prepares) continue;
          const auto between = expect_each_once(bank, e, Step::hidden, rows);
          EXPECT_LT(ups.second, between.first) << "expert " << e;
          EXPECT_LT(between.second, downs.first) << "expert " << e;
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
    if (task.step == Step::up && (order.empty() || order.back() != task.slice.expert))
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
      for (const Step step : {Step::up, Step::down}) {
        const auto count = std::count_if(bank.tasks().begin(), bank.tasks().end(),
                                         [&](const Task& task) { return task.step == step; });
        // 8 panels of a down projection make 2 tasks, further ones need rows.
        EXPECT_GE(count, step == Step::up ? threads : std::min<Index>(2, threads))
            << threads << " threads, " << tokens << " tokens";
      }
    }
  }
}

/// A task with fewer panels than one row streams side by side would read them one by one.
TEST(ExpertStage, PanelsThatAreStreamedSideBySideStayTogether) {
  constexpr Index group = moe::kernels::most_side_panels;
  const test_support::ScopedThreads scoped(2);
  const auto tasks_of = [&](Index d, Index hidden, Index top_k) {
    const test_support::Streams streams(true);
    StageRun run(1, experts, top_k, d, [](Index /*t*/, Index k) { return k; });
    const Recorder bank(d, hidden);
    run.on({&bank});
    for (Index k = 0; k < top_k; ++k) {
      expect_each_once(bank, k, Step::up, 1);
      expect_each_once(bank, k, Step::down, 1);
    }
    return bank.tasks();
  };
  struct Case {
    Index d;
    Index hidden;
    Index top_k;
  };
  // Mixtral's sizes, and others whose experts have 32 to 35 panels to go down.
  for (const Case& c : {Case{4096, 14336, 2}, Case{1024, 4096, 1}, Case{1120, 4096, 1}}) {
    for (const Task& task : tasks_of(c.d, c.hidden, c.top_k)) {
      EXPECT_EQ(task.slice.first_panel % group, 0) << "width " << c.d;
      EXPECT_GE(task.slice.last_panel - task.slice.first_panel, group) << "width " << c.d;
    }
  }
  // Where there are too few groups for both threads, an even spread comes first.
  Index downs = 0;
  for (const Task& task : tasks_of(768, 1536, 1)) downs += task.step == Step::down ? 1 : 0;
  EXPECT_EQ(downs, 6) << "of 24 panels, 4 each";
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

}  // namespace expert_stage_test
