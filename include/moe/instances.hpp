// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The usual layers, compiled once for a whole program: with MOE_EXTERN_INSTANCES, files that use
// them leave them to moe/instances.cpp, which is compiled beside them with the same flags (in
// CMake: link moe::instances). Whatever is not named here is compiled where it is used, as ever.
#pragma once

#include "moe/core/config.hpp"

#if defined(MOE_EXTERN_INSTANCES)
#include "moe/core/numeric.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/feed_forward.hpp"
#include "moe/layer/shared_experts.hpp"
#include "moe/layer/sparse_moe.hpp"
#include "moe/losses/balance.hpp"
#include "moe/losses/logit_losses.hpp"
#include "moe/routing/plan.hpp"
#include "moe/routing/topk_router.hpp"

#if defined(MOE_DEFINE_INSTANCES)
#define MOE_INSTANCE template
#else
#define MOE_INSTANCE extern template
#endif

namespace moe::inline MOE_ABI {

MOE_INSTANCE class TopKRouter<float>;
MOE_INSTANCE void make_plan(const Routing<float>&, const Capacity&, DispatchPlan&,
                            MatrixView<const float>);
MOE_INSTANCE float losses::load_balancing(const Routing<float>&, losses::BalanceScale,
                                          losses::TokenMask);
MOE_INSTANCE float losses::z_loss(const Routing<float>&, losses::TokenMask);

#define MOE_LAYER_INSTANCE(...)                                             \
  MOE_INSTANCE class FeedForwardExperts<float, __VA_ARGS__>;                \
  MOE_INSTANCE class SharedExperts<FeedForwardExperts<float, __VA_ARGS__>>; \
  MOE_INSTANCE class SparseMoe<TopKRouter<float>, FeedForwardExperts<float, __VA_ARGS__>>;

MOE_LAYER_INSTANCE(SwiGlu, float)
MOE_LAYER_INSTANCE(SwiGlu, bfloat16)
MOE_LAYER_INSTANCE(SwiGlu, half)
MOE_LAYER_INSTANCE(ClampedSwiGlu, float)
MOE_LAYER_INSTANCE(ClampedSwiGlu, bfloat16)
MOE_LAYER_INSTANCE(GeGlu, float)
MOE_LAYER_INSTANCE(GeGluTanh, float)
MOE_LAYER_INSTANCE(Gelu, float)
MOE_LAYER_INSTANCE(Relu, float)

#undef MOE_LAYER_INSTANCE
#undef MOE_INSTANCE

}  // namespace moe::inline MOE_ABI
#endif
