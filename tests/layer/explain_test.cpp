// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <random>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include <moe/moe.hpp>

#include "support/layers.hpp"
#include "support/memory.hpp"

namespace explain_test {

using moe::Index;
using moe::Matrix;

auto make_layer() {
  std::mt19937_64 rng(1);
  auto router = moe::TopKRouter<float>::random({.d_model = 40, .num_experts = 4, .top_k = 2}, rng);
  auto experts =
      moe::SwiGluExperts<float>::random({.num_experts = 4, .d_model = 40, .d_ff = 24}, rng);
  auto shared =
      moe::SwiGluExperts<float>::random({.num_experts = 1, .d_model = 40, .d_ff = 48}, rng);
  return moe::SparseMoe(std::move(router), std::move(experts),
                        moe::SharedExperts(std::move(shared)));
}

moe::Routing<float> routing_of(Index tokens) {
  moe::Routing<float> routing;
  routing.resize(tokens, 4, 2, {.keep_logits = false, .keep_scores = false});
  for (Index t = 0; t < tokens; ++t) {
    routing.experts.row(t) << 0, static_cast<moe::ExpertIndex>(1 + t % 2);
    routing.weights.row(t) << 0.5F, 0.5F;
  }
  return routing;
}

TEST(Explain, CountsTheWorkOfEveryExpert) {
  auto layer = make_layer();
  const moe::Explanation e =
      layer.explain(routing_of(30), {.flop_per_second = 1e9, .bytes_per_second = 1e9});
  ASSERT_EQ(e.experts.size(), 4U);  // Expert 3 has no rows; the shared one has all.
  EXPECT_EQ(e.experts[0].rows, 30);
  EXPECT_EQ(e.experts[1].rows, 15);
  EXPECT_EQ(e.experts[2].expert, 2);
  EXPECT_TRUE(e.experts[3].shared);
  EXPECT_EQ(e.experts[3].rows, 30);
  EXPECT_EQ(e.tokens, 30);
  EXPECT_EQ(e.rows, 90);
  EXPECT_TRUE(e.complete);
  // Three matrices of 40 x 24, or 40 x 48.
  EXPECT_EQ(e.experts[1].flop, 2.0 * 15 * 3 * 40 * 24);
  EXPECT_EQ(e.experts[1].weight_bytes, 4.0 * 3 * 40 * 24);
  EXPECT_EQ(e.flop, 2.0 * (60 * 3 * 40 * 24 + 30 * 3 * 40 * 48));
  // 24 hidden values fill up to 32, and 40 outputs to 64.
  EXPECT_EQ(e.padding_flop, 2.0 * 60 * (2 * 8 * 40 + 24 * 24) + 2.0 * 30 * (24 * 48));
  const int most = moe::kernels::tile_kernels<float, float>().most_rows;
  EXPECT_EQ(e.experts[0].tiles, (30 + most - 1) / most);
  EXPECT_LE(e.experts[0].tile_rows, most);
  // One operation a nanosecond, one byte a nanosecond.
  EXPECT_NEAR(e.roofline_seconds(), e.flop * 1e-9, 1e-15);
  EXPECT_FALSE(e.bound_by_memory());
  EXPECT_TRUE(layer.explain(routing_of(1), {.flop_per_second = 1e12, .bytes_per_second = 1e9})
                  .bound_by_memory());
}

TEST(Explain, CountsTheMemoryOfTheRoutingThatIsGiven) {
  const auto layer = make_layer();
  const moe::Routing<float> two = routing_of(30);
  moe::Routing<float> one;
  one.resize(30, 4, 1, {.keep_logits = false, .keep_scores = false});
  one.experts = two.experts.leftCols(1);
  one.weights.setOnes();
  const double saved = layer.explain(two).workspace_bytes - layer.explain(one).workspace_bytes;
  EXPECT_GE(saved, 30 * 40 * 4) << "a row of results for each choice";
}

TEST(Explain, CountsDrops) {
  auto layer = make_layer();
  layer.capacity() = {.factor = 1};  // 15 rows an expert
  const moe::Explanation e = layer.explain(routing_of(30));
  EXPECT_EQ(e.dropped, 15);
  EXPECT_EQ(e.experts[0].rows, 15);
}

TEST(Explain, SeesWhatIsRerouted) {
  std::mt19937_64 rng(1);
  auto layer = make_layer();
  layer.capacity() = {.factor = 1, .reroute = true};
  const auto x = test_support::random_matrix<float>(60, 40, 1);
  Matrix<float> y(60, 40);
  moe::Routing<float> routing;
  layer.router().route(x, {}, routing);
  const moe::Explanation e = layer.explain(routing);
  layer.forward(x, routing, y);
  EXPECT_EQ(e.dropped, static_cast<Index>(layer.plan().dropped.size()));
  EXPECT_EQ(e.rows, layer.plan().num_rows() + 60);
  layer.capacity().reroute = false;
  EXPECT_GT(layer.explain(routing).dropped, e.dropped);
}

TEST(Explain, Prints) {
  auto layer = make_layer();
  const std::string text = layer.explain(routing_of(30)).text();
  EXPECT_NE(text.find("30 tokens, 90 rows; kernels "), std::string::npos) << text;
  EXPECT_NE(text.find("shared"), std::string::npos) << text;
  EXPECT_NE(text.find("f32, "), std::string::npos) << text;
  EXPECT_NE(text.find("at least "), std::string::npos) << text;
}

TEST(Explain, KnowsTheWorkspaceBeforeTheRun) {
  auto layer = make_layer();
  const auto x = test_support::random_matrix<float>(50, 40, 1);
  Matrix<float> y(50, 40);
  moe::Workspace<float> workspace;
  layer.forward(x, y, workspace);
  const auto size = [](const auto& m) { return static_cast<double>(m.size()) * sizeof(*m.data()); };
  const auto& routing = workspace.routing;
  const double seen =
      size(routing.experts) + size(routing.weights) + size(routing.logits) + size(routing.scores) +
      static_cast<double>(workspace.plan.rows.size() * sizeof(moe::TokenSlot) +
                          workspace.plan.row_of.size() * sizeof(std::int32_t) +
                          workspace.plan.offsets.size() * sizeof(Index)) +
      size(workspace.rows) + size(workspace.shared_rows) +
      static_cast<double>(workspace.shared_plan.rows.size() * sizeof(moe::TokenSlot) +
                          workspace.shared_plan.row_of.size() * sizeof(std::int32_t));
  // The rest: packed rows and hidden values of 100 routed and 50 shared rows, and what each thread
  // has, and lists of tasks. A test that counts allocations compares the whole.
  const Index most_rows = moe::kernels::tile_kernels<float, float>().most_rows;
  const double rest = 100.0 * (40 + 32 + 1) * 4 + 50.0 * (40 + 48) * 4;
  const double of_threads =
      layer.workspace_bytes(50) - seen - rest -
      moe::parallel::available_threads() *
          (32768.0 * 4 + static_cast<double>(moe::kernels::second_level_cache()) / 2) -
      moe::detail::ExpertStage<float>::list_bytes(layer.experts().num_experts() + 1,
                                                  100 / most_rows + 50 / most_rows,
                                                  moe::parallel::available_threads(), false);
  EXPECT_GE(of_threads, 0);
  EXPECT_LE(of_threads, moe::parallel::available_threads() * 8192.0);
}

TEST(Explain, NamesTheKernelOfEveryExpert) {
  std::mt19937_64 rng(1);
  const moe::ExpertsConfig sizes{.num_experts = 4, .d_model = 64, .d_ff = 96};
  const auto router =
      moe::TopKRouter<float>::random({.d_model = 64, .num_experts = 4, .top_k = 2}, rng);
  const auto floats =
      moe::SparseMoe(router, moe::SwiGluExperts<float, moe::bfloat16>::random(sizes, rng));
  const auto& tiles = moe::kernels::tile_kernels<float, moe::bfloat16>();
  for (const bool streams : {false, true}) {
    const test_support::Streams scope(streams);
    for (const Index tokens : {1, 9, 100}) {
      const moe::Explanation e = floats.explain(routing_of(tokens));
      const Index rows = e.experts[0].rows;
      const bool is_side = streams && rows <= tiles.most_rows && tiles.side_panels[rows - 1] > 0;
      const Index asking = moe::detail::most_waiting_blocks * tiles.most_rows;
      const Index tile_rows = e.experts[0].tile_rows;
      const bool is_asked = streams && rows <= asking && tiles.in_streams[tile_rows - 1] != nullptr;
      EXPECT_EQ(e.experts[0].kernel, is_side ? "bf16, up to " +
                                                   std::to_string(tiles.side_panels[rows - 1]) +
                                                   " panels side by side"
                                     : is_asked ? "bf16, next panel in 8 streams"
                                                : "bf16, panel by panel");
    }
  }
}

TEST(Explain, NamesTheProductsOfQuantisedExperts) {
  std::mt19937_64 rng(1);
  const moe::ExpertsConfig sizes{.num_experts = 4, .d_model = 64, .d_ff = 96};
  const auto router =
      moe::TopKRouter<float>::random({.d_model = 64, .num_experts = 4, .top_k = 2}, rng);
  const auto kernel = [&](const char* up, const char* down, Index tokens, bool in_streams) {
    const test_support::Streams scope(in_streams);
    moe::QuantizedExperts<moe::SwiGlu> bank(sizes, {moe::format_of(up), moe::format_of(down)});
    return moe::SparseMoe(router, std::move(bank)).explain(routing_of(tokens)).experts[0].kernel;
  };
  EXPECT_EQ(kernel("int8", "int8", 1, false), "int8 in integers, panel by panel");
  const bool has_pair = moe::kernels::coded_kernels(moe::format_of("fp8")).widened_pair.panels == 2;
  const std::string of_fp8 = has_pair ? "up to 2 panels side by side" : "panel by panel";
  EXPECT_EQ(kernel("int4-g32", "fp8", 1, false),
            "int4-g32 in integers, panel by panel; fp8 widened, " + of_fp8);
  EXPECT_EQ(kernel("fp8-e5m2", "fp8-e5m2", 1, false), "fp8-e5m2 widened, panel by panel");
  EXPECT_EQ(kernel("fp8", "fp8", 2, true), "fp8 widened, panel by panel");
  EXPECT_EQ(kernel("fp8", "fp8", 5, true), "fp8 widened, slice by slice");
  EXPECT_EQ(kernel("int8", "int8", 100, true), "int8 in integers, panel by panel");
  const auto& kernels = moe::kernels::coded_kernels(moe::format_of("int8"));
  if (kernels.side_panels > 0) {
    EXPECT_EQ(
        kernel("int8", "int8", 1, true),
        "int8 in integers, up to " + std::to_string(kernels.side_panels) + " panels side by side");
  }
  if (kernels.few_rows < 4 && kernels.most_rows >= 4) {
    EXPECT_EQ(kernel("int8", "int8", 4, true), "int8 in integers, next panel in 8 streams");
    EXPECT_EQ(kernel("int4-g32", "int8-g128", 4, true),
              "int4-g32 in integers, next panel in 8 streams; "
              "int8-g128 in integers, next panel in 8 streams");
  }
}

TEST(Explain, CountsOperationsOnCodesApart) {
  const moe::ExpertsConfig sizes{.num_experts = 4, .d_model = 64, .d_ff = 96};
  moe::TopKRouter<float> router({.d_model = 64, .num_experts = 4, .top_k = 2},
                                {test_support::random_matrix<float>(4, 64, 1)});
  const auto explain = [&](const char* up, const char* down, moe::ProductKind product) {
    moe::QuantizedExperts<moe::SwiGlu> bank(sizes, {moe::format_of(up), moe::format_of(down)});
    bank.set_product(product);
    return moe::SparseMoe(router, std::move(bank))
        .explain(routing_of(1),
                 {.flop_per_second = 1e9, .bytes_per_second = 1e15, .integer_per_second = 4e9});
  };
  const auto both = explain("int8", "int4-g32", moe::ProductKind::integer);
  EXPECT_GT(both.flop, 0);
  EXPECT_EQ(both.integer_flop, both.flop);
  EXPECT_DOUBLE_EQ(both.roofline_seconds(), both.flop / 4e9);
  EXPECT_NE(both.text().find("4.00 GOP/s in eight bits"), std::string::npos) << both;
  const auto mixed = explain("int8", "fp8", moe::ProductKind::integer);
  EXPECT_DOUBLE_EQ(mixed.integer_flop, mixed.flop * 2 / 3);
  EXPECT_DOUBLE_EQ(mixed.roofline_seconds(), mixed.flop * (2.0 / 3 / 4e9 + 1.0 / 3 / 1e9));
  const auto widened = explain("int8", "int4-g32", moe::ProductKind::widened);
  EXPECT_EQ(widened.integer_flop, 0);
  EXPECT_EQ(widened.text().find("eight bits"), std::string::npos);
}

TEST(Explain, RefusesWhatForwardRefuses) {
  auto layer = make_layer();
  moe::Routing<float> routing = routing_of(2);
  routing.num_experts = 5;
  EXPECT_THROW((void)layer.explain(routing), moe::ShapeError);
  routing = routing_of(2);
  routing.experts(0, 0) = 9;
  EXPECT_THROW((void)layer.explain(routing), std::invalid_argument);
}

}  // namespace explain_test
