// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A warm forward takes no memory. This program counts what is taken from the heap and from the
// system, so it stands apart from the others, and sanitizers, which do so too, leave it out.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <random>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <gtest/gtest.h>

#include <moe/moe.hpp>

#include "support/layers.hpp"
#include "support/threads.hpp"

namespace allocation_test {

std::atomic<bool> counting{false};
std::atomic<int> count{0};
std::atomic<std::size_t> counted_bytes{0};
std::atomic<std::size_t> mappings{0};

void note(std::size_t bytes) {
  if (!counting.load(std::memory_order_relaxed)) return;
  count.fetch_add(1, std::memory_order_relaxed);
  counted_bytes.fetch_add(bytes, std::memory_order_relaxed);
}

}  // namespace allocation_test

// glibc's own functions, under their other names.
extern "C" {
void* __libc_malloc(std::size_t);                 // NOLINT(bugprone-reserved-identifier)
void* __libc_calloc(std::size_t, std::size_t);    // NOLINT(bugprone-reserved-identifier)
void* __libc_realloc(void*, std::size_t);         // NOLINT(bugprone-reserved-identifier)
void* __libc_memalign(std::size_t, std::size_t);  // NOLINT(bugprone-reserved-identifier)

void* malloc(std::size_t size) {
  allocation_test::note(size);
  return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) {
  allocation_test::note(n * size);
  return __libc_calloc(n, size);
}
void* realloc(void* p, std::size_t size) {
  allocation_test::note(size);
  return __libc_realloc(p, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  allocation_test::note(size);
  return __libc_memalign(alignment, size);
}
void* mmap(void* address, std::size_t length, int protection, int flags, int file, off_t offset) {
  allocation_test::note(length);
  if (allocation_test::counting) ++allocation_test::mappings;
  return reinterpret_cast<void*>(
      syscall(SYS_mmap, address, length, protection, flags, file, offset));
}
int munmap(void* address, std::size_t length) {
  // What was cut off a mapping, to begin and end it at a huge page.
  if (allocation_test::counting) allocation_test::counted_bytes -= length;
  return static_cast<int>(syscall(SYS_munmap, address, length));
}
}

namespace allocation_test {

using moe::Index;
using moe::Matrix;
using test_support::random_matrix;

template <class Function>
int allocations_of(const Function& function) {
  count = 0;
  counted_bytes = 0;
  mappings = 0;
  counting = true;
  function();
  counting = false;
  return count;
}

TEST(Allocations, AreCounted) {
  EXPECT_GT(allocations_of([] { ::operator delete(::operator new(8)); }), 0);
  EXPECT_GT(allocations_of([] { const Matrix<float> m = Matrix<float>::Zero(100, 100); }), 0);
  EXPECT_GT(allocations_of([] { const moe::AlignedBuffer<char> b(100); }), 0);
  EXPECT_GT(allocations_of([] { const moe::AlignedBuffer<char> b(std::size_t{1} << 22); }), 0);
}

template <class Layer>
void expect_none_when_warm(Layer& layer, Index tokens, int threads) {
  SCOPED_TRACE(testing::Message() << threads << " threads");
  const test_support::ScopedThreads scoped(threads);
  const Index width = layer.d_model();
  const auto warm_up = random_matrix<float>(tokens, width, 1);
  const auto x = random_matrix<float>(tokens, width, 2);
  Matrix<float> y(tokens, width);  // (T, D)
  moe::Workspace<float> workspace;
  for (int i = 0; i < 2; ++i) layer.forward(warm_up, y, workspace);
  // Other tokens go to other experts; fewer need less.
  for (const Index fewer : {tokens, tokens / 2 + 1, Index{1}, tokens})
    EXPECT_EQ(allocations_of([&] { layer.forward(x.topRows(fewer), y.topRows(fewer), workspace); }),
              0)
        << fewer << " tokens";
  // All tokens go to the same experts, and back again.
  const Matrix<float> same = x.row(0).replicate(tokens, 1);
  EXPECT_EQ(allocations_of([&] { layer.forward(same, y, workspace); }), 0) << "skewed";
  EXPECT_EQ(allocations_of([&] { layer.forward(x, y, workspace); }), 0) << "no longer skewed";
  // A workspace is the caller's, not the thread's. OpenMP's own threads belong to the thread that
  // begins a region, so here it begins none.
  int elsewhere = -1;
  std::thread([&] {
#if defined(_OPENMP)
    omp_set_num_threads(1);
#endif
    layer.forward(warm_up.topRows(1), y.topRows(1), workspace);
    elsewhere = allocations_of([&] { layer.forward(x, y, workspace); });
  }).join();
  EXPECT_EQ(elsewhere, 0) << "from another thread";
}

template <class Layer>
void expect_none_when_warm(Layer& layer, Index tokens) {
  for (const int threads : test_support::thread_counts)
    expect_none_when_warm(layer, tokens, threads);
}

/// A first forward takes what the layer said, but for some objects of fixed size.
template <class Layer>
void expect_bytes(const Layer& layer, Index tokens) {
  const test_support::ScopedThreads scoped(2);
  const auto x = random_matrix<float>(tokens, layer.d_model(), 1);
  Matrix<float> y(tokens, layer.d_model());  // (T, D)
  moe::Workspace<float> warm;
  layer.forward(x, y, warm);  // OpenMP's own memory.
  moe::Workspace<float> workspace;
  allocations_of([&] { layer.forward(x, y, workspace); });
  const double said = layer.workspace_bytes(tokens);
  EXPECT_GE(static_cast<double>(counted_bytes), said);
  // Large buffers, as threads have with a large second-level cache, take whole huge pages.
  const double rounding = static_cast<double>(mappings) * (1 << 21);
  EXPECT_LE(static_cast<double>(counted_bytes), said + 4096 + rounding);
}

TEST(Allocations, OfManyExpertsAreWhatTheLayerSays) {
  std::mt19937_64 rng(7);
  const moe::SparseMoe layer(
      moe::TopKRouter<float>::random({.d_model = 16, .num_experts = 1024, .top_k = 4}, rng),
      moe::SwiGluExperts<float>::random({.num_experts = 1024, .d_model = 16, .d_ff = 8}, rng));
  // Buffers below 2 MiB; larger ones take whole huge pages.
  for (const Index tokens : {1, 7, 300}) expect_bytes(layer, tokens);
}

TEST(Allocations, ThereAreNoneInAWarmForward) {
  std::mt19937_64 rng(1);
  auto router = moe::TopKRouter<float>::random({.d_model = 64, .num_experts = 8, .top_k = 2}, rng);
  auto experts =
      moe::SwiGluExperts<float>::random({.num_experts = 8, .d_model = 64, .d_ff = 96}, rng);
  auto shared =
      moe::SwiGluExperts<float>::random({.num_experts = 2, .d_model = 64, .d_ff = 32}, rng);
  moe::SparseMoe layer(std::move(router), std::move(experts),
                       moe::SharedExperts(std::move(shared), random_matrix<float>(2, 64, 3)));
  expect_none_when_warm(layer, 700);
  expect_bytes(layer, 700);
}

TEST(Allocations, ATapeTakesWhatTheLayerSays) {
  std::mt19937_64 rng(6);
  const Index tokens = 64;
  const auto router =
      moe::TopKRouter<float>::random({.d_model = 32, .num_experts = 8, .top_k = 2}, rng);
  const auto experts =
      moe::SwiGluExperts<float>::random({.num_experts = 8, .d_model = 32, .d_ff = 40}, rng);
  const auto shared =
      moe::SwiGluExperts<float>::random({.num_experts = 2, .d_model = 32, .d_ff = 24}, rng);
  const auto x = random_matrix<float>(tokens, 32, 1);
  Matrix<float> y(tokens, 32);  // (T, D)
  for (const moe::Capacity& capacity : {moe::Capacity{}, moe::Capacity{.factor = 0.75}}) {
    const moe::SparseMoe layer(
        router, experts, moe::SharedExperts(shared, random_matrix<float>(2, 32, 3)), capacity);
    for (const moe::TapePolicy policy :
         {moe::TapePolicy::keep_all, moe::TapePolicy::keep_preactivations,
          moe::TapePolicy::recompute}) {
      moe::Workspace<float> workspace;
      for (int i = 0; i < 2; ++i) {
        moe::Tape<float> warm_up{.policy = policy};
        layer.forward(x, y, warm_up, workspace);
      }
      moe::Tape<float> tape{.policy = policy};
      EXPECT_GT(allocations_of([&] { layer.forward(x, y, tape, workspace); }), 0);
      // All sizes are multiples of 64 bytes, to which memory is aligned.
      EXPECT_EQ(static_cast<double>(counted_bytes),
                layer.tape_bytes(tokens, tape.plan.num_rows(), policy));
      EXPECT_EQ(allocations_of([&] { layer.forward(x, y, tape, workspace); }), 0) << "warm";
    }
  }
}

TEST(Allocations, ThereAreNoneWithLargeBuffersAndStoredHalves) {
  std::mt19937_64 rng(2);
  auto router = moe::TopKRouter<float>::random({.d_model = 512, .num_experts = 8, .top_k = 2}, rng);
  auto experts = moe::GeluExperts<float, moe::half>::random(
      {.num_experts = 8, .d_model = 512, .d_ff = 700, .biases = true}, rng);
  moe::SparseMoe layer(std::move(router), std::move(experts));
  expect_none_when_warm(layer, 1100);
}

TEST(Allocations, ThereAreNoneWithQuantisedExperts) {
  std::mt19937_64 rng(7);
  for (const char* name : {"int8", "int4-g32", "fp8"}) {
    const moe::ExpertsConfig config{.num_experts = 8, .d_model = 96, .d_ff = 80};
    const auto floats = moe::SwiGluExperts<float>::random(config, rng);
    const moe::WeightFormat format = moe::format_of(name);
    moe::QuantizedExperts<moe::SwiGlu> bank(config, moe::ExpertFormat{format, format});
    for (Index e = 0; e < 8; ++e) {
      const moe::ExpertMatrices<float> matrices = floats.expert(e);
      bank.set_expert(e, matrices.weights());
    }
    moe::SparseMoe layer(
        moe::TopKRouter<float>::random({.d_model = 96, .num_experts = 8, .top_k = 2}, rng), bank);
    expect_none_when_warm(layer, 65);
    expect_bytes(layer, 100);
  }
}

TEST(Allocations, ThereAreNoneUnderACapacity) {
  std::mt19937_64 rng(3);
  auto router = moe::TopKRouter<float>::random(
      {.d_model = 32, .num_experts = 8, .top_k = 2, .rule = moe::presets::deepseek_v3()}, rng);
  auto experts =
      moe::SwiGluExperts<float>::random({.num_experts = 8, .d_model = 32, .d_ff = 40}, rng);
  for (const moe::DropOrder order :
       {moe::DropOrder::token_major, moe::DropOrder::slot_major, moe::DropOrder::batch_priority,
        moe::DropOrder::by_weight, moe::DropOrder::random}) {
    for (const bool reroute : {false, true}) {
      moe::SparseMoe layer(router, experts, {},
                           {.factor = 0.9, .order = order, .reroute = reroute});
      expect_none_when_warm(layer, 300);
    }
  }
}

TEST(Allocations, ThereAreNoneWhereTokensUseDifferentNumbersOfExperts) {
  std::mt19937_64 rng(4);
  const moe::RoutingRule rule{
      .limit = {.kind = moe::ChoiceLimitKind::relative_threshold, .value = 0.6}};
  auto router = moe::TopKRouter<float>::random(
      {.d_model = 32, .num_experts = 8, .top_k = 4, .rule = rule}, rng);
  auto experts =
      moe::SwiGluExperts<float>::random({.num_experts = 8, .d_model = 32, .d_ff = 40}, rng);
  moe::SparseMoe layer(std::move(router), std::move(experts));
  expect_none_when_warm(layer, 300);
}

TEST(Allocations, ThereAreNoneBesideExpertsThatCostNothing) {
  std::mt19937_64 rng(5);
  auto router = moe::TopKRouter<float>::random({.d_model = 32, .num_experts = 6, .top_k = 2}, rng);
  auto experts =
      moe::SwiGluExperts<float>::random({.num_experts = 4, .d_model = 32, .d_ff = 40}, rng);
  moe::SparseMoe layer(std::move(router), moe::ZeroCostExperts<moe::SwiGluExperts<float>>(
                                              std::move(experts), {{moe::ZeroCostKind::identity},
                                                                   {moe::ZeroCostKind::zero}}));
  expect_none_when_warm(layer, 300);
}

/// A user's own expert.
struct Doubling {
  using Scalar = float;
  Index d_model() const { return 32; }
  void forward(moe::MatrixView<const float> x, moe::MatrixView<float> y) const {
    y.map() = 2 * x.map();
  }
};

TEST(Allocations, ThereAreNoneAroundCustomExperts) {
  std::mt19937_64 rng(5);
  auto router = moe::TopKRouter<float>::random({.d_model = 32, .num_experts = 40, .top_k = 2}, rng);
  moe::SparseMoe layer(std::move(router), moe::CustomExperts(std::vector<Doubling>(40)));
  expect_none_when_warm(layer, 300);
}

}  // namespace allocation_test
