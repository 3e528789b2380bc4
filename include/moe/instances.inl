// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The list of instances.
//
// Uses: MOE_INSTANCE, `extern template` or `template`.

MOE_INSTANCE class TopKRouter<float>;
MOE_INSTANCE void make_plan(const Routing<float>&, const Capacity&, DispatchPlan&,
                            MatrixView<const float>);
MOE_INSTANCE float losses::load_balancing(const Routing<float>&, losses::BalanceScale,
                                          losses::TokenMask, losses::LossGradient<float>);
MOE_INSTANCE float losses::z_loss(const Routing<float>&, losses::TokenMask,
                                  losses::LossGradient<float>);

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

// What a checkpoint gives.
MOE_INSTANCE class SparseMoe<AnyRouter<float>, AnyExperts<float>>;

#undef MOE_LAYER_INSTANCE
