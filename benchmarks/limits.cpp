// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// limit/fma             fused multiply-adds in registers
// limit/vnni            eight-bit dot products in registers
// limit/read_bandwidth  reading memory in several patterns
#include "limits.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <omp.h>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/core/aligned_buffer.hpp>
#include <moe/kernels/cache.hpp>
#include <moe/kernels/isa.hpp>
#include <moe/kernels/target.hpp>

#if MOE_ARCH_X86_64
#include <immintrin.h>
#endif

namespace benchmarks {
namespace {

/// The amount per second when run(thread) is on all threads at once.
template <class Run>
double rate_of(double amount_of_thread, const Run& run) {
  const auto start = Clock::now();
  int threads = 1;
#pragma omp parallel
  {
#pragma omp single
    threads = omp_get_num_threads();
    run(omp_get_thread_num());
  }
  return amount_of_thread * threads / seconds_since(start);
}

template <class Run>
void add_form(Limit& limit, const char* name, double amount_of_thread, const Run& run) {
  limit.forms.push_back({name, 0, [=] { return rate_of(amount_of_thread, run); }});
}

/// The best of many times for every form. The forms take turns, so that each of them sees the
/// machine's better moments.
void measure(Limit& limit) {
  for (int repetition = 0; repetition < 40; ++repetition)
    for (LimitForm& form : limit.forms) form.per_second = std::max(form.per_second, form.once());
}

bool runs(moe::Isa level) {
  const auto levels = moe::available_isas();
  return std::find(levels.begin(), levels.end(), level) != levels.end();
}

constexpr long rounds = 400'000;  // About 2 ms.
constexpr int chains = 12;        // Above latency times units, below the number of registers.

#if MOE_ARCH_X86_64

__attribute__((target("avx2,fma"), noinline)) void fma_avx2(int /*thread*/) {
  __m256 sum[chains];
  MOE_UNROLL
  for (int i = 0; i < chains; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  __m256 factor = _mm256_set1_ps(0.5F);
  __asm__("" : "+x"(factor));
  for (long k = 0; k < rounds; ++k) {
    MOE_UNROLL
    for (int i = 0; i < chains; ++i) sum[i] = _mm256_fmadd_ps(sum[i], factor, factor);
  }
  MOE_UNROLL
  for (int i = 0; i < chains; ++i) __asm__ volatile("" : : "x"(sum[i]));
}

__attribute__((target("avx512f"), noinline)) void fma_avx512(int /*thread*/) {
  __m512 sum[chains];
  MOE_UNROLL
  for (int i = 0; i < chains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  __m512 factor = _mm512_set1_ps(0.5F);
  __asm__("" : "+v"(factor));
  for (long k = 0; k < rounds; ++k) {
    MOE_UNROLL
    for (int i = 0; i < chains; ++i) sum[i] = _mm512_fmadd_ps(sum[i], factor, factor);
  }
  MOE_UNROLL
  for (int i = 0; i < chains; ++i) __asm__ volatile("" : : "v"(sum[i]));
}

__attribute__((target("avx512f,avx512vnni,avx512vl"), noinline)) void vnni_256(int /*thread*/) {
  __m256i sum[chains];
  MOE_UNROLL
  for (int i = 0; i < chains; ++i) sum[i] = _mm256_set1_epi32(i);
  __m256i factor = _mm256_set1_epi8(1);
  __asm__("" : "+v"(factor));
  for (long k = 0; k < rounds; ++k) {
    MOE_UNROLL
    for (int i = 0; i < chains; ++i) sum[i] = _mm256_dpbusd_epi32(sum[i], factor, factor);
  }
  MOE_UNROLL
  for (int i = 0; i < chains; ++i) __asm__ volatile("" : : "v"(sum[i]));
}

__attribute__((target("avx512f,avx512vnni"), noinline)) void vnni_512(int /*thread*/) {
  __m512i sum[chains];
  MOE_UNROLL
  for (int i = 0; i < chains; ++i) sum[i] = _mm512_set1_epi32(i);
  __m512i factor = _mm512_set1_epi8(1);
  __asm__("" : "+v"(factor));
  for (long k = 0; k < rounds; ++k) {
    MOE_UNROLL
    for (int i = 0; i < chains; ++i) sum[i] = _mm512_dpbusd_epi32(sum[i], factor, factor);
  }
  MOE_UNROLL
  for (int i = 0; i < chains; ++i) __asm__ volatile("" : : "v"(sum[i]));
}

/// Reads `streams` pieces of the memory side by side, `ahead` bytes of each asked for in advance.
/// They lie apart by some lines more than a piece, of which the last one ends a page too late: at
/// powers of two, all would be in one set of each cache.
template <int streams, int ahead>
__attribute__((target("avx2"), noinline)) void read_avx2(const std::byte* data, std::size_t bytes) {
  const std::size_t piece = bytes / streams / 128 * 128;
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                    _mm256_setzero_si256()};
  for (std::size_t at = 0; at < piece; at += 128) {
    MOE_UNROLL
    for (int s = 0; s < streams; ++s) {
      const std::byte* const p = data + static_cast<std::size_t>(s) * (piece + 576) + at;
      if (ahead > 0) {
        _mm_prefetch(reinterpret_cast<const char*>(p + ahead), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(p + ahead + 64), _MM_HINT_T0);
      }
      MOE_UNROLL
      for (int i = 0; i < 4; ++i)
        sum[i] = _mm256_xor_si256(sum[i],
                                  _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32 * i)));
    }
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  __asm__ volatile("" : : "x"(all));
}

/// The same as one stream of wider loads.
template <int ahead>
__attribute__((target("avx512f"), noinline)) void read_avx512(const std::byte* data,
                                                              std::size_t bytes) {
  __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (std::size_t at = 0; at + 128 <= bytes; at += 128) {
    const std::byte* const p = data + at;
    if (ahead > 0) {
      _mm_prefetch(reinterpret_cast<const char*>(p + ahead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(p + ahead + 64), _MM_HINT_T0);
    }
    sum[0] = _mm512_xor_si512(sum[0], _mm512_load_si512(p));
    sum[1] = _mm512_xor_si512(sum[1], _mm512_load_si512(p + 64));
  }
  const __m512i all = _mm512_xor_si512(sum[0], sum[1]);
  __asm__ volatile("" : : "v"(all));
}

#endif

/// In plain code, for every machine.
__attribute__((noinline)) void fma_plain(int /*thread*/) {
  float sum[chains];
  for (int i = 0; i < chains; ++i) sum[i] = static_cast<float>(i);
  float factor = 0.5F;
  benchmark::DoNotOptimize(factor);
  for (long k = 0; k < rounds; ++k) {
    MOE_UNROLL
    for (float& s : sum) s = s * factor + factor;
    benchmark::DoNotOptimize(sum);
  }
}

__attribute__((noinline)) void read_plain(const std::byte* data, std::size_t bytes) {
  std::uint64_t sum = 0;
  const auto* const words = reinterpret_cast<const std::uint64_t*>(data);
  for (std::size_t i = 0; i < bytes / sizeof(std::uint64_t); ++i) sum ^= words[i];
  benchmark::DoNotOptimize(sum);
}

void run_limit(benchmark::State& state, const Limit& limit) {
  for (auto _ : state) benchmark::DoNotOptimize(limit.best());
  for (const LimitForm& form : limit.forms) state.counters[form.name] = form.per_second;
  state.counters["best"] = limit.best();
}

}  // namespace

double Limit::best() const {
  double most = 0;
  for (const LimitForm& form : forms) most = std::max(most, form.per_second);
  return most;
}

double Limit::now() {
  std::vector<LimitForm*> by_rate;
  for (LimitForm& form : forms) by_rate.push_back(&form);
  std::sort(by_rate.begin(), by_rate.end(),
            [](const LimitForm* a, const LimitForm* b) { return a->per_second > b->per_second; });
  by_rate.resize(std::min<std::size_t>(by_rate.size(), 2));
  double most = 0;
  for (int shot = 0; shot < 2; ++shot) {
    for (LimitForm* const form : by_rate) {
      const double rate = form->once();
      form->per_second = std::max(form->per_second, rate);
      most = std::max(most, rate);
    }
  }
  return most;
}

Limit& fma_limit() {
  static Limit limit = [] {
    Limit result;
    const double per_lane = 2.0 * chains * static_cast<double>(rounds);
    add_form(result, "plain", per_lane, fma_plain);
#if MOE_ARCH_X86_64
    if (runs(moe::Isa::avx2)) add_form(result, "avx2", 8 * per_lane, fma_avx2);
    if (runs(moe::Isa::avx512)) add_form(result, "avx512", 16 * per_lane, fma_avx512);
#endif
    measure(result);
    return result;
  }();
  return limit;
}

Limit& vnni_limit() {
  static Limit limit = [] {
    Limit result;
#if MOE_ARCH_X86_64
    if (runs(moe::Isa::avx512_vnni)) {
      const double per_lane = 8.0 * chains * static_cast<double>(rounds);
      add_form(result, "256_bit", 8 * per_lane, vnni_256);
      add_form(result, "512_bit", 16 * per_lane, vnni_512);
    }
#endif
    measure(result);
    return result;
  }();
  return limit;
}

Limit& read_limit() {
  static Limit limit = [] {
    Limit result;
    // Each time another piece of every thread's part, which is long gone from the cache when its
    // turn comes again.
    constexpr std::size_t pieces = 4;
    const auto threads = static_cast<std::size_t>(omp_get_max_threads());
    const auto wanted = static_cast<std::size_t>(8 * last_level_cache()) / threads / pieces;
    const std::size_t piece =
        (std::max<std::size_t>(wanted, std::size_t{1} << 26) + 4095) / 4096 * 4096;
    const std::size_t part = pieces * piece;
    static moe::AlignedBuffer<std::byte> memory(part * threads + 65536);
    static std::size_t turn = 0;
#pragma omp parallel
    {
      const auto thread = static_cast<std::size_t>(omp_get_thread_num());
      std::fill_n(memory.data() + thread * part, part, std::byte{1});
    }
    const auto add = [&](const char* name, auto read) {
      result.forms.push_back(
          {name, 0, [=] {
             const std::size_t first = turn++ % pieces * piece;
             return rate_of(static_cast<double>(piece), [=](int thread) {
               read(memory.data() + static_cast<std::size_t>(thread) * part + first, piece);
             });
           }});
    };
    add("plain", read_plain);
#if MOE_ARCH_X86_64
    if (runs(moe::Isa::avx2)) {
      add("avx2_1_stream", read_avx2<1, 0>);
      add("avx2_1_stream_prefetch", read_avx2<1, 2048>);
      add("avx2_4_streams_prefetch", read_avx2<4, 1024>);
      add("avx2_8_streams", read_avx2<8, 0>);
      add("avx2_8_streams_prefetch", read_avx2<8, 1024>);
    }
    if (runs(moe::Isa::avx512)) {
      add("avx512_1_stream", read_avx512<0>);
      add("avx512_1_stream_prefetch", read_avx512<2048>);
    }
#endif
    measure(result);
    return result;
  }();
  return limit;
}

double last_level_cache() {
  return static_cast<double>(moe::kernels::third_level_cache());
}

void register_limits() {
  const auto add = [](const char* name, Limit& (*limit)()) {
    benchmark::RegisterBenchmark(name, [limit](benchmark::State& state) {
      run_limit(state, limit());
    })->Iterations(1);
  };
  add("limit/fma", fma_limit);
  if (!vnni_limit().forms.empty()) add("limit/vnni", vnni_limit);
  add("limit/read_bandwidth", read_limit);
}

}  // namespace benchmarks
