// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The expert stage: every bank of a layer in one parallel region. Three steps for each expert with
// rows (pack them, up, down) and then the caller's combine, as one queue of tasks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "moe/core/aligned_buffer.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/staged_bank.hpp"
#include "moe/kernels/cache.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI::detail {

/// Plans and runs a stage. Its memory grows only, so that a warm run allocates nothing.
template <class Scalar>
class ExpertStage {
 public:
  ExpertStage() = default;

  /// Bytes of the lists of jobs, tasks and counters for all parts together, whatever the routing.
  static double list_bytes(Index experts, Index blocks, int threads, bool prepares) noexcept {
    const ListSizes sizes = list_sizes(experts, blocks, threads, prepares);
    return static_cast<double>(sizes.jobs * sizeof(Job) + sizes.tasks * sizeof(Task) +
                               sizes.counters * sizeof(std::atomic<std::int32_t>));
  }

  void clear() noexcept { parts_.clear(); }
  void add(const StagePart<Scalar>& part) { parts_.push_back(part); }

  /// Runs all parts, then combine(task) for every task in 0 .. combine_tasks - 1. The parts, which
  /// refer to the caller's values, are forgotten after it.
  ///
  /// Throws  the first exception that a bank or combine threw.
  template <class Combine>
  void run(Index combine_tasks, Combine&& combine) {
    struct Forget {
      ExpertStage& stage;
      ~Forget() { stage.clear(); }
    };
    const Forget forget{*this};
    threads_ = parallel::available_threads();
    most_rows_ = kernels::tile_kernels<Scalar, Scalar>().most_rows;
    make_jobs();
    make_tasks();
    failed_.store(false, std::memory_order_relaxed);
    const auto stage_tasks = static_cast<Index>(tasks_.size());
    parallel::for_each_task(stage_tasks + combine_tasks, [&](Index task, int thread) {
      try {
        if (task < stage_tasks) {
          run_task(tasks_[static_cast<std::size_t>(task)], thread);
        } else if (wait_for(counter(downs_left))) {
          combine(task - stage_tasks);
        }
      } catch (...) {
        failed_.store(true, std::memory_order_relaxed);  // Lets those go who wait for this task.
        throw;
      }
    });
  }

 private:
  enum class Step : std::uint8_t { pack, up, hidden, down, all };

  /// An expert with rows.
  struct Job {
    Index part;
    Index expert;
    Index first_row;  // of the part's plan
    Index num_rows;
    Index blocks;
    Index packed;  // where its values begin
    Index hidden;
    Index weights;
    double cost;
    bool is_small;  // run by one thread from its rows to its results
  };

  struct Task {
    Step step;
    Index job;
    Index first_panel;
    Index last_panel;
    Index first_block;
    Index last_block;
  };

  struct ListSizes {
    std::size_t jobs;
    std::size_t tasks;
    std::size_t counters;
  };

  // Of each step of all jobs together: `fewest` spread the work evenly, `most` leave next to no
  // thread waiting at the end.
  static constexpr double fewest_tasks_per_thread = 8;
  static constexpr double most_tasks_per_thread = 32;
  /// Rows whose products take as long as reading a weight's byte does. On one core that multiplies
  /// 32 pairs a cycle and reads 3 bytes of memory a cycle, 23 for 4-byte weights.
  static constexpr double rows_per_byte = 6;
  // The cost of both steps of a job whose weights take 8 MiB and are only streamed.
  static constexpr double short_cost = rows_per_byte * (8 << 20) / kernels::panel_width;

  // Counters of tasks that are not done: one for all downs, then for each job its packs, ups and
  // what is done with its hidden values.
  static constexpr std::size_t downs_left = 0;
  static std::size_t packs_left(Index job) noexcept {
    return 1 + 3 * static_cast<std::size_t>(job);
  }
  static std::size_t ups_left(Index job) noexcept { return packs_left(job) + 1; }
  static std::size_t hidden_left(Index job) noexcept { return packs_left(job) + 2; }
  std::atomic<std::int32_t>& counter(std::size_t i) noexcept { return counters_[i]; }

  const StagePart<Scalar>& part_of(const Job& job) const noexcept {
    return parts_[static_cast<std::size_t>(job.part)];
  }

  void make_jobs() {
    reserve_lists();
    std::size_t packed = 0;
    std::size_t hidden = 0;
    std::size_t weights = 0;
    total_cost_ = 0;
    for (std::size_t p = 0; p < parts_.size(); ++p) {
      const DispatchPlan& plan = parts_[p].input->plan;
      const StageShape shape = parts_[p].bank->stage_shape();
      for (Index e = 0; e < plan.num_experts; ++e) {
        const Index rows = plan.rows_of(e);
        if (rows == 0) continue;
        const Index first = plan.first_row(e);
        const double cost =
            std::max(static_cast<double>(rows), rows_per_byte * shape.weight_bytes) *
            static_cast<double>(shape.up_panels * shape.d_model + shape.down_panels * shape.d_ff);
        jobs_.push_back({static_cast<Index>(p), e, first, rows,
                         (rows + most_rows_ - 1) / most_rows_,
                         static_cast<Index>(packed) + first * shape.packed,
                         static_cast<Index>(hidden) + first * shape.hidden,
                         static_cast<Index>(weights) + first, cost, false});
        total_cost_ += cost;
      }
      // By the most rows that the plan's tokens could have, so that every routing finds room.
      packed += plan.row_of.size() * static_cast<std::size_t>(shape.packed);
      hidden += plan.row_of.size() * static_cast<std::size_t>(shape.hidden);
      if (!parts_[p].weights.empty()) weights += plan.row_of.size();
    }
    packed_.grow(packed);
    hidden_.grow(hidden);
    weights_.grow(weights);
    sums_.grow(static_cast<std::size_t>(threads_ * (stage_sums_size + stage_expert_size())));
    // By cost, then in order of the experts: std::stable_sort would allocate.
    std::sort(jobs_.begin(), jobs_.end(), [](const Job& a, const Job& b) {
      if (a.cost != b.cost) return a.cost > b.cost;
      return a.part != b.part ? a.part < b.part : a.expert < b.expert;
    });
  }

  /// Packs, and as many of hidden values: one for each block at most. Ups and downs: `splits` adds
  /// up to most_tasks_per_thread for each thread and, by rounding, up to 2 for each job, and
  /// add_slices at most doubles it.
  static ListSizes list_sizes(Index experts, Index blocks, int threads, bool prepares) noexcept {
    const auto jobs = static_cast<std::size_t>(experts);
    return {jobs,
            (prepares ? 2 : 1) * (static_cast<std::size_t>(blocks) + jobs) +
                4 * (static_cast<std::size_t>(most_tasks_per_thread * threads) + 2 * jobs),
            1 + 3 * jobs};
  }

  /// Room for the jobs and tasks of any routing of as many tokens.
  void reserve_lists() {
    jobs_.clear();
    tasks_.clear();
    Index experts = 0;
    Index blocks = 0;
    bool prepares = false;
    for (const StagePart<Scalar>& part : parts_) {
      prepares = prepares || part.bank->stage_shape().prepares_hidden;
      experts += part.input->plan.num_experts;
      blocks += static_cast<Index>(part.input->plan.row_of.size()) / most_rows_;
    }
    const ListSizes sizes = list_sizes(experts, blocks, threads_, prepares);
    jobs_.reserve(sizes.jobs);
    tasks_.reserve(sizes.tasks);
    if (sizes.counters > counters_size_) {
      counters_ = std::make_unique<std::atomic<std::int32_t>[]>(sizes.counters);
      counters_size_ = sizes.counters;
    }
  }

  /// In an order in which every task stands behind those that it waits for: whoever waits, waits
  /// for a task that another thread is busy with. The downs of a job follow some jobs later, when
  /// its ups will be done, but while its hidden values are still in the cache.
  void make_tasks() {
    counter(downs_left).store(0, std::memory_order_relaxed);
    const auto jobs = static_cast<Index>(jobs_.size());
    Index lag = 0;
    if (!jobs_.empty())
      lag = std::min<Index>(threads_ - 1, (threads_ + splits(jobs_[0]) - 1) / splits(jobs_[0]));
    for (Job& job : jobs_) job.is_small = is_small(job);
    for (Index j = 0; j < jobs + lag; ++j) {
      if (j < jobs && jobs_[static_cast<std::size_t>(j)].is_small) {
        const Job& job = jobs_[static_cast<std::size_t>(j)];
        tasks_.push_back({Step::all, j, 0, 0, 0, job.blocks});
        counter(downs_left).fetch_add(1, std::memory_order_relaxed);
      } else if (j < jobs) {
        add_blocks(Step::pack, j, packs_left(j));
        const StageShape shape = part_of(jobs_[static_cast<std::size_t>(j)]).bank->stage_shape();
        counter(ups_left(j))
            .store(add_slices(Step::up, j, shape.up_panels), std::memory_order_relaxed);
      }
      if (j >= lag && !jobs_[static_cast<std::size_t>(j - lag)].is_small) {
        const StageShape shape =
            part_of(jobs_[static_cast<std::size_t>(j - lag)]).bank->stage_shape();
        counter(hidden_left(j - lag)).store(0, std::memory_order_relaxed);
        if (shape.prepares_hidden) add_blocks(Step::hidden, j - lag, hidden_left(j - lag));
        counter(downs_left)
            .fetch_add(add_slices(Step::down, j - lag, shape.down_panels),
                       std::memory_order_relaxed);
      }
    }
  }

  /// Into how many tasks each step of a job is cut: as many as make them short against the whole,
  /// but not so many that they are short in themselves, since each begins by waiting for memory. A
  /// token's 8 experts of 9 MB in bfloat16 took 1.65 ms with 32 tasks a thread, 1.54 with 16, 1.47
  /// with 8 and 1.44 with 4, which spread 7 experts over 2 threads badly.
  Index splits(const Job& job) const noexcept {
    if (threads_ == 1) return 1;
    const double share = threads_for(job);
    const double wanted = std::clamp(job.cost / short_cost, share * fewest_tasks_per_thread,
                                     share * most_tasks_per_thread);
    return std::max<Index>(1, static_cast<Index>(std::llround(wanted)));
  }

  /// How many of the threads a job keeps busy, if all work is spread evenly.
  double threads_for(const Job& job) const noexcept { return job.cost / total_cost_ * threads_; }

  /// Whether one thread runs the expert from its rows to its results: it need not be cut, and what
  /// lies between fits that thread's cache. Nobody waits for it but combine.
  bool is_small(const Job& job) const noexcept {
    const StageShape shape = part_of(job).bank->stage_shape();
    return splits(job) == 1 && job.num_rows * (shape.packed + shape.hidden) <= stage_expert_size();
  }

  /// Steps that go block by block, through some hundred KiB a task.
  void add_blocks(Step step, Index j, std::size_t left) {
    const Job& job = jobs_[static_cast<std::size_t>(j)];
    const StageShape shape = part_of(job).bank->stage_shape();
    const Index values = step == Step::pack ? shape.d_model : shape.d_ff;
    const Index blocks = std::max<Index>(1, 65536 / std::max<Index>(1, most_rows_ * values));
    std::int32_t count = 0;
    for (Index b = 0; b < job.blocks; b += blocks, ++count)
      tasks_.push_back({step, j, 0, 0, b, std::min(b + blocks, job.blocks)});
    counter(left).store(count, std::memory_order_relaxed);
  }

  /// Cuts a step along the panels, at least 4 a task, and along the rows where that is not enough.
  /// Where few rows stream panels side by side, it cuts between groups of 8, if every thread has
  /// two of them: with fewer, an even spread is worth more than streams.
  std::int32_t add_slices(Step step, Index j, Index panels) {
    const Job& job = jobs_[static_cast<std::size_t>(j)];
    const Index wanted = splits(job);
    constexpr Index group = kernels::most_side_panels;
    const bool in_groups = job.num_rows <= kernels::most_side_rows &&
                           kernels::fetches_in_streams() &&
                           static_cast<double>(panels) >= 2 * group * threads_for(job);
    const Index least = in_groups ? group : 4;
    const Index panel_splits = std::clamp<Index>(wanted, 1, std::max<Index>(1, panels / least));
    const Index row_splits =
        std::clamp<Index>((wanted + panel_splits - 1) / panel_splits, 1, (job.blocks + 3) / 4);
    const Index unit = in_groups ? group : 1;
    const auto cut = [&](Index p) {
      return p == panel_splits ? panels : panels * p / panel_splits / unit * unit;
    };
    for (Index p = 0; p < panel_splits; ++p)
      for (Index r = 0; r < row_splits; ++r)
        tasks_.push_back({step, j, cut(p), cut(p + 1), job.blocks * r / row_splits,
                          job.blocks * (r + 1) / row_splits});
    return static_cast<std::int32_t>(panel_splits * row_splits);
  }

  /// False if a task failed, so that waiting makes no sense.
  bool wait_for(const std::atomic<std::int32_t>& left) const noexcept {
    for (int spins = 0; left.load(std::memory_order_acquire) != 0; ++spins) {
      if (failed_.load(std::memory_order_relaxed)) return false;
      parallel::pause(spins);
    }
    return true;
  }

  void run_task(const Task& task, int thread) {
    const Job& job = jobs_[static_cast<std::size_t>(task.job)];
    const StagePart<Scalar>& part = part_of(job);
    StageSlice<Scalar> slice{
        .expert = job.expert,
        .first_panel = task.first_panel,
        .last_panel = task.last_panel,
        .first_block = task.first_block,
        .last_block = task.last_block,
        .blocks = job.blocks,
        .num_rows = job.num_rows,
        .packed = packed_.data() + job.packed,
        .hidden = hidden_.data() + job.hidden,
        .sums = sums_.data() + thread * (stage_sums_size + stage_expert_size()),
        .kept_sums = part.kept_sums == nullptr
                         ? nullptr
                         : part.kept_sums + job.first_row * part.bank->stage_shape().up_panels *
                                                kernels::panel_width,
        .rows = part.rows.middle_rows(job.first_row, job.num_rows),
        .past_caches = goes_past_caches(part.rows),
        .weights = part.weights.empty() ? nullptr : weights_.data() + job.weights,
        .dropout = part.input->dropout,
        .choices = part.input->plan.rows.data() + job.first_row,
        .top_k = part.input->plan.top_k,
    };
    if (task.step == Step::all) {
      const StageShape shape = part.bank->stage_shape();
      slice.packed = slice.sums + stage_sums_size;
      slice.hidden = slice.packed + job.num_rows * shape.packed;
      for (Index b = 0; b < job.blocks; ++b) pack_block(part, job, slice, b);
      slice.last_panel = shape.up_panels;
      part.bank->run_up(slice);
      if (shape.prepares_hidden) part.bank->run_hidden(slice);
      slice.last_panel = shape.down_panels;
      part.bank->run_down(slice);
      counter(downs_left).fetch_sub(1, std::memory_order_release);
    } else if (task.step == Step::pack) {
      for (Index b = task.first_block; b < task.last_block; ++b) pack_block(part, job, slice, b);
      counter(packs_left(task.job)).fetch_sub(1, std::memory_order_release);
    } else if (task.step == Step::up) {
      if (!wait_for(counter(packs_left(task.job)))) return;
      part.bank->run_up(slice);
      counter(ups_left(task.job)).fetch_sub(1, std::memory_order_release);
    } else if (task.step == Step::hidden) {
      if (!wait_for(counter(ups_left(task.job)))) return;
      part.bank->run_hidden(slice);
      counter(hidden_left(task.job)).fetch_sub(1, std::memory_order_release);
    } else {
      if (!wait_for(counter(ups_left(task.job))) || !wait_for(counter(hidden_left(task.job))))
        return;
      part.bank->run_down(slice);
      counter(downs_left).fetch_sub(1, std::memory_order_release);
    }
  }

  void pack_block(const StagePart<Scalar>& part, const Job& job, const StageSlice<Scalar>& slice,
                  Index b) {
    const ExpertInput<Scalar>& input = *part.input;
    const Scalar* rows[kernels::most_tile_rows];
    Scalar scale[kernels::most_tile_rows];
    const Index first = slice.block_row(b);
    const Index count = slice.block_row(b + 1) - first;
    const bool scaled = !input.scales.empty() || input.factor != 1;
    for (Index r = 0; r < count; ++r) {
      const TokenSlot choice = input.plan.rows[static_cast<std::size_t>(job.first_row + first + r)];
      rows[r] = input.x.row(choice.token);
      // In order here, so that the panels of the down projection need not look for them.
      if (!part.weights.empty())
        weights_.data()[job.weights + first + r] = part.weights(choice.token, choice.slot);
      if (scaled)
        scale[r] = input.factor *
                   (input.scales.empty() ? Scalar(1) : input.scales(choice.token, choice.slot));
    }
    part.bank->run_pack(slice, b, rows, scaled ? scale : nullptr);
  }

  int threads_ = 1;
  Index most_rows_ = 1;
  double total_cost_ = 0;
  std::vector<StagePart<Scalar>> parts_;
  std::vector<Job> jobs_;
  std::vector<Task> tasks_;
  std::unique_ptr<std::atomic<std::int32_t>[]> counters_;
  std::size_t counters_size_ = 0;
  std::atomic<bool> failed_{false};
  AlignedBuffer<Scalar> packed_;
  AlignedBuffer<Scalar> hidden_;
  AlignedBuffer<Scalar> weights_;
  AlignedBuffer<Scalar> sums_;
};

}  // namespace moe::inline MOE_ABI::detail
