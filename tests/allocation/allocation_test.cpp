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
#include <unistd.h>
#include <utility>

#include <gtest/gtest.h>

#include <moe/moe.hpp>

#include "support/layers.hpp"

namespace {

std::atomic<bool> counting{false};
std::atomic<int> count{0};

void note() {
  if (counting.load(std::memory_order_relaxed)) count.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

// glibc's own functions, under their other names.
extern "C" {
void* __libc_malloc(std::size_t);                 // NOLINT(bugprone-reserved-identifier)
void* __libc_calloc(std::size_t, std::size_t);    // NOLINT(bugprone-reserved-identifier)
void* __libc_realloc(void*, std::size_t);         // NOLINT(bugprone-reserved-identifier)
void* __libc_memalign(std::size_t, std::size_t);  // NOLINT(bugprone-reserved-identifier)

void* malloc(std::size_t size) {
  note();
  return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) {
  note();
  return __libc_calloc(n, size);
}
void* realloc(void* p, std::size_t size) {
  note();
  return __libc_realloc(p, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  note();
  return __libc_memalign(alignment, size);
}
void* mmap(void* address, std::size_t length, int protection, int flags, int file, off_t offset) {
  note();
  return reinterpret_cast<void*>(
      syscall(SYS_mmap, address, length, protection, flags, file, offset));
}
}

namespace {

using moe::Index;
using moe::Matrix;
using test_support::random_matrix;

template <class Function>
int allocations_of(const Function& function) {
  count = 0;
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
void expect_none_when_warm(Layer& layer, Index tokens) {
  const Index width = layer.d_model();
  const auto warm_up = random_matrix<float>(tokens, width, 1);
  const auto x = random_matrix<float>(tokens, width, 2);
  Matrix<float> y(tokens, width);  // (T, D)
  for (int i = 0; i < 2; ++i) layer.forward(warm_up, y);
  // Other tokens go to other experts; fewer need less.
  for (const Index fewer : {tokens, tokens / 2 + 1, Index{1}, tokens})
    EXPECT_EQ(allocations_of([&] { layer.forward(x.topRows(fewer), y.topRows(fewer)); }), 0)
        << fewer << " tokens";
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
}

TEST(Allocations, ThereAreNoneWithLargeBuffersAndStoredHalves) {
  std::mt19937_64 rng(2);
  auto router = moe::TopKRouter<float>::random({.d_model = 512, .num_experts = 8, .top_k = 2}, rng);
  auto experts = moe::GeluExperts<float, moe::half>::random(
      {.num_experts = 8, .d_model = 512, .d_ff = 700, .biases = true}, rng);
  moe::SparseMoe layer(std::move(router), std::move(experts));
  expect_none_when_warm(layer, 1100);
}

TEST(Allocations, ThereAreNoneUnderACapacity) {
  std::mt19937_64 rng(3);
  auto router = moe::TopKRouter<float>::random(
      {.d_model = 32, .num_experts = 8, .top_k = 2, .rule = moe::presets::deepseek_v3()}, rng);
  auto experts =
      moe::SwiGluExperts<float>::random({.num_experts = 8, .d_model = 32, .d_ff = 40}, rng);
  moe::SparseMoe layer(std::move(router), std::move(experts), {}, {.factor = 0.9});
  expect_none_when_warm(layer, 300);
}

}  // namespace
