// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/expert_cache.hpp>
#include <moe/io/packed_writer.hpp>
#include <moe/moe.hpp>

#include "support/layers.hpp"
#include "support/temporary_file.hpp"
#include "support/threads.hpp"

namespace expert_cache_test {

using moe::Index;
using moe::Matrix;
using Bank = moe::QuantizedExperts<moe::SwiGlu>;
using Cached = moe::io::CachedExperts<moe::SwiGlu>;

constexpr Index experts = 8;

/// A packed file of eight experts, some larger than others.
class ExpertCache : public test_support::TemporaryFile {
 protected:
  void SetUp() override {
    const moe::ExpertsConfig config{
        .num_experts = experts, .d_model = 64, .d_ff = 80, .biases = true};
    using Floats = moe::FeedForwardExperts<float, moe::SwiGlu>;
    const auto floats = test_support::random_bank<Floats>(config, 3);
    std::vector<moe::ExpertFormat> formats(
        static_cast<std::size_t>(experts),
        {moe::format_of("int4-g32"), moe::format_of("int4-g32")});
    formats[2] = {moe::format_of("int8"), moe::format_of("int8")};
    bank_ = std::make_unique<Bank>(config, formats);
    for (Index e = 0; e < experts; ++e) {
      const moe::ExpertMatrices<float> matrices = floats.expert(e);
      bank_->set_expert(e, matrices.weights());
    }
    moe::io::write_packed(path_, *bank_);
    largest_ = static_cast<double>(bank_->expert_bytes(2).size());
  }

  double bytes_of(std::initializer_list<Index> some) const {
    double bytes = 0;
    for (const Index e : some) bytes += static_cast<double>(bank_->expert_bytes(e).size());
    return bytes;
  }

  /// Waits until so many bytes were read.
  static bool reads(const Cached& cached, double bytes) {
    for (int i = 0; i < 10000 && cached.counters().bytes < bytes; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return cached.counters().bytes == bytes;
  }

  Cached cache(double slots) const {
    return {moe::io::PackedFile(path_), "experts", slots * largest_};
  }

  /// Rows of tokens that go to `first` and `second`, (token, choice) by (token, choice).
  template <class BankT>
  static Matrix<float> run(const BankT& bank, const Matrix<float>& x,
                           const std::vector<Index>& chosen) {
    moe::Routing<float> routing;
    routing.resize(x.rows(), experts, 2, {});
    routing.weights.setOnes();
    for (Index t = 0; t < x.rows(); ++t)
      for (Index k = 0; k < 2; ++k)
        routing.experts(t, k) = static_cast<moe::ExpertIndex>(
            chosen[static_cast<std::size_t>(2 * t + k) % chosen.size()]);
    moe::DispatchPlan plan;
    moe::make_plan(routing, {}, plan);
    Matrix<float> rows(plan.num_rows(), bank.d_model());
    moe::Scratch scratch;
    bank.forward({x, plan}, rows, scratch);
    Matrix<float> by_token(plan.num_rows(), bank.d_model());
    for (Index i = 0; i < plan.num_rows(); ++i)
      by_token.row(i) = rows.row(plan.row_of[static_cast<std::size_t>(i)]);
    return by_token;
  }

  std::unique_ptr<Bank> bank_;
  double largest_ = 0;
};

TEST_F(ExpertCache, HasTheBitsOfTheBankInMemoryWhateverTheBudget) {
  const Matrix<float> x = test_support::random_matrix<float>(33, 64, 5);
  const std::vector<std::vector<Index>> choices{
      {0, 1}, {2, 3, 4, 5}, {0, 1, 2, 3, 4, 5, 6, 7}, {7, 6, 5, 4, 3, 2, 1, 0}, {2, 7}};
  for (const double slots : {1.0, 2.0, 3.5, 7.0, 100.0}) {
    for (const int threads : {1, 3}) {
      const test_support::ScopedThreads scope(threads);
      const Cached cached = cache(slots);
      for (const std::vector<Index>& chosen : choices) {
        if (chosen.size() > 2) cached.prefetch(chosen);
        EXPECT_EQ(run(cached, x, chosen), run(*bank_, x, chosen)) << slots << " slots";
      }
    }
  }
}

/// As a model's tokens choose them: a few experts often, most of them now and then.
TEST_F(ExpertCache, HasTheBitsOfTheBankUnderZipfsLawWithHalfOfTheExperts) {
  std::vector<double> shares;
  double bytes = 0;
  for (Index e = 0; e < experts; ++e) {
    shares.push_back(1 / static_cast<double>(e + 1));
    bytes += bytes_of({e});
  }
  std::mt19937_64 rng(11);
  std::discrete_distribution<Index> draw(shares.begin(), shares.end());
  std::vector<std::vector<Index>> steps(40);
  for (std::vector<Index>& step : steps) {
    for (int t = 0; t < 3; ++t) {
      step.push_back(draw(rng));
      do {
        step.push_back(draw(rng));
        if (step.back() == step[step.size() - 2]) step.pop_back();
      } while (step.size() % 2 == 1);
    }
  }
  for (const bool is_ahead : {false, true}) {
    const Cached cached(moe::io::PackedFile(path_), "experts", bytes / 2);
    EXPECT_LT(cached.slots(), experts);
    for (std::size_t i = 0; i < steps.size(); ++i) {
      if (is_ahead && i + 1 < steps.size()) cached.prefetch(steps[i + 1]);
      const Matrix<float> x = test_support::random_matrix<float>(3, 64, 5 + i);
      EXPECT_EQ(run(cached, x, steps[i]), run(*bank_, x, steps[i])) << "step " << i;
    }
    const moe::io::CacheCounters counters = cached.counters();
    EXPECT_GT(counters.hits, 0U);
    EXPECT_GT(counters.misses + counters.awaited, 0U);
  }
}

TEST_F(ExpertCache, CountsWhatItDoes) {
  const Cached cached = cache(4);
  EXPECT_EQ(cached.slots(), 4);
  const Matrix<float> x = test_support::random_matrix<float>(4, 64, 5);
  run(cached, x, {0, 1});
  EXPECT_EQ(cached.counters().misses, 2U);
  run(cached, x, {0, 1});
  EXPECT_EQ(cached.counters().hits, 2U);
  EXPECT_EQ(cached.counters().bytes,
            static_cast<double>(bank_->expert_bytes(0).size() + bank_->expert_bytes(1).size()));
  EXPECT_GT(cached.counters().waiting_seconds, 0);
  // Experts 3, 4, 5 push out 0, which was used least recently, and leave 1.
  run(cached, x, {3, 4});
  run(cached, x, {5, 1});
  const auto before = cached.counters();
  run(cached, x, {1, 5});
  EXPECT_EQ(cached.counters().misses, before.misses);
  run(cached, x, {0, 0});
  EXPECT_EQ(cached.counters().misses, before.misses + 1);
}

TEST_F(ExpertCache, APrefetchReadsAsMuchAsThereIsRoomFor) {
  const Cached cached = cache(4);
  cached.prefetch(std::vector<Index>{7, 6, 5, 4, 3, 2, 1, 0});
  EXPECT_TRUE(reads(cached, bytes_of({7, 6, 5, 4})));
  const Matrix<float> x = test_support::random_matrix<float>(4, 64, 5);
  run(cached, x, {4, 5, 6, 7});
  EXPECT_EQ(cached.counters().hits, 4U);
  EXPECT_EQ(cached.counters().misses, 0U);
  EXPECT_EQ(cached.counters().bytes, bytes_of({7, 6, 5, 4}));
  // Those that are wanted and there stay, whatever else is.
  cached.prefetch(std::vector<Index>{0, 5, 1, 7});
  EXPECT_TRUE(reads(cached, bytes_of({7, 6, 5, 4, 0, 1})));
  run(cached, x, {0, 1, 5, 7});
  EXPECT_EQ(cached.counters().misses, 0U);
  EXPECT_EQ(cached.counters().awaited, 0U);
}

TEST_F(ExpertCache, WhatWasWantedAndUsedIsWantedNoMore) {
  const Cached cached = cache(4);
  const Matrix<float> x = test_support::random_matrix<float>(4, 64, 5);
  cached.prefetch(std::vector<Index>{0, 1});
  run(cached, x, {0, 1});
  run(cached, x, {3, 4});
  run(cached, x, {5, 5});  // in place of 0
  run(cached, x, {3, 4});
  EXPECT_EQ(cached.counters().misses, 3U);
  run(cached, x, {0, 0});
  EXPECT_EQ(cached.counters().misses, 4U);
}

TEST_F(ExpertCache, WhatWasWantedInVainIsWantedNoMoreAfterTwoForwards) {
  const Matrix<float> x = test_support::random_matrix<float>(4, 64, 5);
  const Cached cached = cache(4);
  cached.prefetch(std::vector<Index>{0, 1, 2});
  EXPECT_TRUE(reads(cached, bytes_of({0, 1, 2})));
  run(cached, x, {3, 3});
  run(cached, x, {4, 4});  // in place of 3
  run(cached, x, {5, 5});  // in place of 0, which nobody wants any more
  run(cached, x, {4, 5});
  EXPECT_EQ(cached.counters().misses, 3U);
  const Cached in_time = cache(4);
  in_time.prefetch(std::vector<Index>{0, 1, 2});
  run(in_time, x, {3, 3});
  EXPECT_TRUE(reads(in_time, bytes_of({0, 1, 2, 3})));
  run(in_time, x, {4, 4});
  run(in_time, x, {0, 1});
  EXPECT_EQ(in_time.counters().misses, 2U);
}

TEST_F(ExpertCache, PinningBesideForwardsEnds) {
  const Cached cached = cache(3);
  const Matrix<float> x = test_support::random_matrix<float>(4, 64, 5);
  const Matrix<float> expected = run(*bank_, x, {0, 1, 2, 3, 4, 5, 6, 7});
  std::thread pins([copy = cached]() mutable {
    for (Index i = 0; i < 50; ++i) copy.pin(std::vector<Index>{i % 8, (i + 3) % 8});
  });
  for (int i = 0; i < 50; ++i) EXPECT_EQ(run(cached, x, {0, 1, 2, 3, 4, 5, 6, 7}), expected);
  pins.join();
}

TEST_F(ExpertCache, AFileThatIsReplacedIsStillTheOneThatWasOpened) {
  const Cached cached = cache(2);
  const Matrix<float> x = test_support::random_matrix<float>(4, 64, 5);
  const Matrix<float> expected = run(*bank_, x, {0, 1, 2, 3});
  Bank other = *bank_;
  for (Index e = 0; e < experts; ++e)
    other.set_expert_bytes(e, std::vector<std::byte>(other.expert_bytes(e).size()));
  moe::io::write_packed(path_, other);
  EXPECT_EQ(run(cached, x, {0, 1, 2, 3}), expected);
}

TEST_F(ExpertCache, PinnedExpertsStay) {
  Cached cached = cache(3);
  const std::vector<Index> pinned{6, 7};
  cached.pin(pinned);
  const Matrix<float> x = test_support::random_matrix<float>(4, 64, 5);
  for (const Index e : {0, 1, 2, 3, 4, 5}) run(cached, x, {e, e});
  run(cached, x, {6, 7});
  EXPECT_EQ(cached.counters().misses, 6U);
  EXPECT_EQ(run(cached, x, {6, 7, 0, 1}), run(*bank_, x, {6, 7, 0, 1}));
  const std::vector<Index> many{0, 1, 2};
  EXPECT_THROW(cached.pin(many), std::invalid_argument);
  Cached whole = cache(100);
  const std::vector<Index> all{0, 1, 2, 3, 4, 5, 6, 7};
  whole.pin(all);
  EXPECT_EQ(run(whole, x, all), run(*bank_, x, all));
  EXPECT_EQ(whole.counters().misses, 0U);
}

TEST_F(ExpertCache, WorksInALayerAndPrefetchesByARouting) {
  const moe::TopKRouter<float> router(
      {.d_model = 64, .num_experts = experts, .top_k = 2},
      {.weight = test_support::random_matrix<float>(experts, 64, 8)});
  moe::SparseMoe layer(router, cache(4));
  moe::SparseMoe resident(router, *bank_);
  const Matrix<float> x = test_support::random_matrix<float>(16, 64, 5);
  moe::Routing<float> routing;
  router.route(x, {}, routing);
  const std::vector<Index> load = moe::metrics::expert_load(routing);
  std::vector<Index> order{0, 1, 2, 3, 4, 5, 6, 7};
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
    return load[static_cast<std::size_t>(a)] > load[static_cast<std::size_t>(b)];
  });
  ASSERT_GT(load[static_cast<std::size_t>(order[3])], 0);
  layer.experts().prefetch(routing);
  // As many as there is room for, those with the most tokens.
  EXPECT_TRUE(reads(layer.experts(), bytes_of({order[0], order[1], order[2], order[3]})));
  Matrix<float> y(16, 64);
  Matrix<float> expected(16, 64);
  layer.forward(x, y);
  resident.forward(x, expected);
  EXPECT_EQ(y, expected);
  EXPECT_EQ(layer.experts().counters().hits, 4U);
}

TEST_F(ExpertCache, MultipliesAsItIsTold) {
  Cached cached = cache(3);
  Bank widened = *bank_;
  cached.set_product(moe::ProductKind::widened);
  widened.set_product(moe::ProductKind::widened);
  EXPECT_EQ(cached.product(), moe::ProductKind::widened);
  const Matrix<float> x = test_support::random_matrix<float>(5, 64, 5);
  const std::vector<Index> chosen{0, 1, 2, 3, 4};
  EXPECT_EQ(run(cached, x, chosen), run(widened, x, chosen));
  EXPECT_NE(run(cached, x, chosen), run(*bank_, x, chosen));
}

TEST_F(ExpertCache, RefusesWhatCannotWork) {
  for (const double slots : {0.99, 0.0, -3.0, std::nan("")})
    EXPECT_THROW(cache(slots), std::invalid_argument) << slots;
  try {
    cache(0.5);
    ADD_FAILURE() << "half an expert is enough";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find(path_), std::string::npos) << error.what();
    const moe::io::PackedFile packed(path_);
    const auto offset = packed.file().tensors().at("experts.2").offset;
    const std::string place = "'experts.2' at byte " + std::to_string(offset);
    EXPECT_NE(std::string(error.what()).find(place), std::string::npos) << error.what();
  }
  EXPECT_EQ(cache(std::numeric_limits<double>::infinity()).slots(), experts);
  const Cached cached = cache(2);
  const std::vector<Index> beyond{8};
  EXPECT_THROW(cached.prefetch(beyond), std::invalid_argument);
  EXPECT_THROW(Cached(moe::io::PackedFile(path_), "others", 1e9), moe::FormatError);
}

TEST_F(ExpertCache, AFileThatIsCutShortIsAnErrorOfTheForward) {
  // Read, not mapped: what is gone is an error, and the cache goes on.
  const Cached cached = cache(2);
  const Matrix<float> x = test_support::random_matrix<float>(4, 64, 5);
  run(cached, x, {0, 1});
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) / 4);
  EXPECT_THROW(run(cached, x, {6, 7}), moe::FormatError);
  EXPECT_EQ(run(cached, x, {0, 0}), run(*bank_, x, {0, 0}));
}

}  // namespace expert_cache_test
