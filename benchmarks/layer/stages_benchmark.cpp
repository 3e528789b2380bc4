// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The steps of a forward by themselves, each on all threads:
// router    logits, scores, choice
// plan      the counting sort from a routing to a plan
// pack      every expert's rows brought into the kernels' order; bytes are read and written once
// up        gate and up products with the activation
// down      down products
// dispatch  gathering the rows of every expert; bytes are read and written once
// combine   the weighted sum of every token's rows; bytes are read and written once
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/moe.hpp>

#include "shapes.hpp"

namespace benchmarks {
namespace {

using moe::Index;
using moe::Matrix;

double bytes_of_rows(const Shape& shape, Index rows) {
  return static_cast<double>(rows * shape.d_model) * sizeof(float);
}

void router(benchmark::State& state, const Shape& shape, Index tokens) {
  std::mt19937_64 rng(1);
  const auto router = shape.router(rng);
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  moe::Routing<float> routing;
  router.route(x, {}, routing);
  measure(state,
          {.tokens = static_cast<double>(tokens),
           .flop = 2 * static_cast<double>(tokens * shape.d_model * shape.num_experts)},
          [&] {
            router.route(x, {}, routing);
            benchmark::DoNotOptimize(routing.experts.data());
          });
}

void plan(benchmark::State& state, const Shape& shape, Index tokens) {
  const moe::Routing<float> routing = make_routing(shape, tokens, Skew::uniform, 1);
  moe::DispatchPlan made;
  moe::make_plan(routing, {}, made);
  measure(state, {.tokens = static_cast<double>(tokens)}, [&] {
    moe::make_plan(routing, {}, made);
    benchmark::DoNotOptimize(made.rows.data());
  });
}

/// What a bank's steps work on: `rows` tokens in blocks, as every expert's. Of the same sizes for
/// every bank of a shape.
template <class Bank>
struct Steps {
  const Bank& bank;
  moe::DispatchPlan plan;
  Index block_rows = moe::kernels::tile_kernels<float, float>().most_rows;
  moe::AlignedBuffer<float> packed;
  moe::AlignedBuffer<float> hidden;
  moe::AlignedBuffer<float> sums;
  Matrix<float> rows;  // (N, D)

  Steps(const Bank& its_bank, const moe::Routing<float>& routing) : bank(its_bank) {
    moe::make_plan(routing, {}, plan);
    const auto n = static_cast<std::size_t>(plan.num_rows());
    packed.grow(n * static_cast<std::size_t>(bank.d_model()));
    hidden.grow(n * static_cast<std::size_t>(bank.stage_shape().hidden));
    // Memory that nobody has written to would be one page of zeros.
    std::fill_n(packed.data(), packed.size(), 0.5F);
    std::fill_n(hidden.data(), hidden.size(), 0.5F);
    sums.grow(static_cast<std::size_t>(moe::parallel::available_threads() *
                                       moe::detail::stage_sums_size));
    rows.resize(plan.num_rows(), bank.d_model());
  }

  /// Calls run(slice) for some panels of every expert with rows, in parallel.
  template <class Run>
  void for_each_slice(Index panels, const Run& run) {
    const Index parts = std::min<Index>(panels, 8);
    moe::parallel::for_each_task(plan.num_experts * parts, [&](Index task, int thread) {
      const Index e = task / parts;
      const Index first = plan.first_row(e);
      const Index count = plan.rows_of(e);
      if (count == 0) return;
      moe::detail::StageSlice<float> slice;
      slice.expert = e;
      slice.first_panel = panels * (task % parts) / parts;
      slice.last_panel = panels * (task % parts + 1) / parts;
      slice.blocks = slice.last_block = (count + block_rows - 1) / block_rows;
      slice.num_rows = count;
      slice.packed = packed.data() + first * bank.d_model();
      slice.hidden = hidden.data() + first * bank.stage_shape().hidden;
      slice.sums = sums.data() + thread * moe::detail::stage_sums_size;
      slice.rows = moe::MatrixView<float>(rows).middle_rows(first, count);
      run(slice);
    });
  }
};

template <class Bank>
const std::vector<Bank>& banks_of(const Shape& shape) {
  return Kept::get<std::vector<Bank>>(std::string("stages/") + shape.name, [&] {
    std::mt19937_64 rng(1);
    const double bytes = static_cast<double>(shape.num_experts * shape.weights_per_expert()) *
                         sizeof(typename Bank::Storage);
    std::vector<Bank> banks;
    for (std::size_t i = 0; i < copies_needed(bytes); ++i)
      banks.push_back(Bank::random(shape.experts(), rng));
    return banks;
  });
}

template <class Bank>
void products(benchmark::State& state, const Shape& shape, Index tokens, bool up) {
  const RoutingSet set(shape, tokens, Skew::uniform, tokens > 64 ? 2 : 16);
  const std::vector<Bank>& banks = banks_of<Bank>(shape);
  std::vector<Steps<Bank>> steps;  // One for each routing: few where their rows are large.
  for (const moe::Routing<float>& routing : set.routings) steps.emplace_back(banks[0], routing);
  std::size_t turn = 0;
  const moe::detail::StageShape stage = banks[0].stage_shape();
  const auto run = [&] {
    const Bank& bank = banks[turn % banks.size()];
    steps[turn++ % steps.size()].for_each_slice(
        up ? stage.up_panels : stage.down_panels,
        [&](const auto& slice) { up ? bank.run_up(slice) : bank.run_down(slice); });
  };
  run();
  const double of_all =
      static_cast<double>(shape.d_model * shape.d_ff) * (!up                             ? 1
                                                         : shape.gating == Gating::gated ? 2
                                                                                         : 1);
  measure_against_limits(state,
                         {.tokens = static_cast<double>(tokens),
                          .flop = 2 * of_all * static_cast<double>(tokens * shape.top_k),
                          .weight_bytes = of_all * set.mean_touched * sizeof(float)},
                         run);
}

void pack(benchmark::State& state, const Shape& shape, Index tokens) {
  moe::DispatchPlan made;
  moe::make_plan(make_routing(shape, tokens, Skew::uniform, 1), {}, made);
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  moe::AlignedBuffer<float> packed(static_cast<std::size_t>(made.num_rows() * shape.d_model));
  const auto& kernels = moe::kernels::row_kernels<float>();
  const auto run = [&] {
    moe::parallel::for_each_block(
        made.num_rows(), moe::kernels::most_tile_rows, [&](Index begin, Index end) {
          const float* rows[moe::kernels::most_tile_rows];
          for (Index r = begin; r < end; ++r)
            rows[r - begin] = x.row(made.rows[static_cast<std::size_t>(r)].token).data();
          kernels.pack(rows, nullptr, end - begin, shape.d_model,
                       packed.data() + begin * shape.d_model);
        });
  };
  run();
  measure(state, {.moved_bytes = bytes_of_rows(shape, 2 * made.num_rows())}, run);
}

void dispatch(benchmark::State& state, const Shape& shape, Index tokens) {
  moe::DispatchPlan made;
  moe::make_plan(make_routing(shape, tokens, Skew::uniform, 1), {}, made);
  const Matrix<float> x = Matrix<float>::Random(tokens, shape.d_model);  // (T, D)
  Matrix<float> rows(made.num_rows(), shape.d_model);                    // (N, D)
  measure(state, {.moved_bytes = bytes_of_rows(shape, 2 * made.num_rows())}, [&] {
    moe::dispatch<float>(x, made, rows);
    benchmark::DoNotOptimize(rows.data());
  });
}

void combine(benchmark::State& state, const Shape& shape, Index tokens) {
  const moe::Routing<float> routing = make_routing(shape, tokens, Skew::uniform, 1);
  moe::DispatchPlan made;
  moe::make_plan(routing, {}, made);
  const Matrix<float> rows = Matrix<float>::Random(made.num_rows(), shape.d_model);  // (N, D)
  Matrix<float> y(tokens, shape.d_model);                                            // (T, D)
  measure(state, {.moved_bytes = bytes_of_rows(shape, made.num_rows() + tokens)}, [&] {
    moe::combine<float>(rows, made, routing.weights, y);
    benchmark::DoNotOptimize(y.data());
  });
}

using Stage = void (*)(benchmark::State&, const Shape&, Index);

void add_stage(const char* name, const Shape& shape, Index tokens, benchmark::TimeUnit unit,
               Stage run) {
  add_benchmark(label(name, shape, "f32", tokens), unit,
                [=](benchmark::State& state) { run(state, shape, tokens); });
}

template <class Bank>
void register_products(const Shape& shape) {
  for (const Index tokens : token_counts) {
    add_stage("up", shape, tokens, benchmark::kMillisecond,
              [](benchmark::State& state, const Shape& s, Index t) {
                products<Bank>(state, s, t, true);
              });
    add_stage("down", shape, tokens, benchmark::kMillisecond,
              [](benchmark::State& state, const Shape& s, Index t) {
                products<Bank>(state, s, t, false);
              });
  }
}

}  // namespace

void register_stages(const Shape& shape) {
  for (const Index tokens : token_counts) {
    add_stage("router", shape, tokens, benchmark::kMicrosecond, router);
    add_stage("plan", shape, tokens, benchmark::kMicrosecond, plan);
    add_stage("pack", shape, tokens, benchmark::kMicrosecond, pack);
    add_stage("dispatch", shape, tokens, benchmark::kMicrosecond, dispatch);
    add_stage("combine", shape, tokens, benchmark::kMicrosecond, combine);
  }
  if (shape.gating == Gating::gated) {
    register_products<moe::SwiGluExperts<float>>(shape);
  } else {
    register_products<moe::ReluExperts<float>>(shape);
  }
}

void register_many_stages() {
  add_stage("router", many_experts, 16384, benchmark::kMillisecond, router);
  add_stage("plan", many_experts, 16384, benchmark::kMillisecond, plan);
}

}  // namespace benchmarks
