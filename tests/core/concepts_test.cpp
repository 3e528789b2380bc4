// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Every router and bank models its concept. Not in their headers, where every user's file would
// check it again: that took a tenth of a second.
#include <random>

#include <gtest/gtest.h>

#include <moe/moe.hpp>

namespace concepts_test {

template <template <class> class R>
constexpr bool is_router = moe::Router<R<float>>&& moe::Router<R<double>>;

static_assert(is_router<moe::TopKRouter> && is_router<moe::AnyRouter>);
static_assert(is_router<moe::HashRouter> && is_router<moe::BaseRouter>);
static_assert(is_router<moe::ExpertChoiceRouter> && is_router<moe::NoisyTopKRouter>);
static_assert(is_router<moe::SparseMixerRouter> && is_router<moe::GShardRouter>);
static_assert(moe::Router<moe::GroupRouter<moe::TopKRouter<float>>>);
static_assert(moe::Router<moe::ModalityRouter<moe::TopKRouter<float>>>);

static_assert(moe::ExpertBank<moe::AnyExperts<float>> && moe::ExpertBank<moe::AnyExperts<double>>);
static_assert(moe::ExpertBank<moe::FeedForwardExperts<float, moe::SwiGlu>>);
static_assert(moe::ExpertBank<moe::FeedForwardExperts<float, moe::SwiGlu, moe::bfloat16>>);
static_assert(moe::ExpertBank<moe::FeedForwardExperts<double, moe::Relu>>);
static_assert(moe::ExpertBank<moe::ZeroCostExperts<moe::ReluExperts<float>>>);

static_assert(moe::BitGenerator<std::mt19937> && moe::BitGenerator<std::mt19937_64>);
static_assert(moe::BitGenerator<std::minstd_rand> && moe::BitGenerator<std::random_device>);
static_assert(!moe::BitGenerator<int>);

TEST(Concepts, HoldAtCompileTime) {}

}  // namespace concepts_test
