// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The list of instances.
//
// Uses: MOE_INSTANCE, `extern template` or `template`.

// All kernels of every level, whatever layer calls them.
#define MOE_ACTIVATION_INSTANCES(Scalar, ...)                                 \
  MOE_INSTANCE kernels::ActivationKernel<Scalar>                              \
  kernels::activation_kernel<Scalar, kernels::ActivationKind::__VA_ARGS__>(); \
  MOE_INSTANCE kernels::ActivationGradientKernel<Scalar>                      \
  kernels::activation_gradient_kernel<Scalar, kernels::ActivationKind::__VA_ARGS__>();
#define MOE_KERNEL_INSTANCES(Scalar)                                                    \
  MOE_INSTANCE const kernels::RowKernels<Scalar>& kernels::row_kernels<Scalar>();       \
  MOE_INSTANCE const kernels::ColumnKernels<Scalar>& kernels::column_kernels<Scalar>(); \
  MOE_INSTANCE kernels::TransposeKernel<Scalar> kernels::transpose_kernel<Scalar>();    \
  MOE_INSTANCE const kernels::TileKernels<Scalar, Scalar>&                              \
  kernels::tile_kernels<Scalar, Scalar>();                                              \
  MOE_INSTANCE kernels::MapKernel<Scalar>                                               \
  kernels::map_kernel<Scalar, kernels::MapKind::exponential>();                         \
  MOE_INSTANCE kernels::MapKernel<Scalar>                                               \
  kernels::map_kernel<Scalar, kernels::MapKind::error_function>();                      \
  MOE_ACTIVATION_INSTANCES(Scalar, relu, true)                                          \
  MOE_ACTIVATION_INSTANCES(Scalar, relu, false)                                         \
  MOE_ACTIVATION_INSTANCES(Scalar, silu, true)                                          \
  MOE_ACTIVATION_INSTANCES(Scalar, silu, false)                                         \
  MOE_ACTIVATION_INSTANCES(Scalar, gelu, true)                                          \
  MOE_ACTIVATION_INSTANCES(Scalar, gelu, false)                                         \
  MOE_ACTIVATION_INSTANCES(Scalar, gelu_tanh, true)                                     \
  MOE_ACTIVATION_INSTANCES(Scalar, gelu_tanh, false)                                    \
  MOE_ACTIVATION_INSTANCES(Scalar, clamped, true)

MOE_KERNEL_INSTANCES(float)
MOE_KERNEL_INSTANCES(double)
MOE_INSTANCE const kernels::TileKernels<float, bfloat16>& kernels::tile_kernels<float, bfloat16>();
MOE_INSTANCE const kernels::TileKernels<float, half>& kernels::tile_kernels<float, half>();
MOE_INSTANCE const kernels::CodedKernels& kernels::coded_kernels<WeightFormat>(WeightFormat);

#undef MOE_KERNEL_INSTANCES
#undef MOE_ACTIVATION_INSTANCES

// What all layers share.
MOE_INSTANCE class detail::LinearMap<float>;
MOE_INSTANCE class detail::ExpertStage<float>;
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
MOE_INSTANCE class QuantizedExperts<SwiGlu>;
MOE_INSTANCE class QuantizedExperts<ClampedSwiGlu>;

// What a checkpoint gives.
MOE_INSTANCE class FeedForwardExperts<float, GatedBy<Relu>>;
MOE_INSTANCE class FeedForwardExperts<float, GeluTanh>;
MOE_INSTANCE class FeedForwardExperts<float, Silu>;
MOE_INSTANCE class SparseMoe<AnyRouter<float>, AnyExperts<float>>;

#undef MOE_LAYER_INSTANCE
