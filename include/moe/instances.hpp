// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The kernels and the usual layers, compiled once for a program: with MOE_EXTERN_INSTANCES, files
// that include <moe/moe.hpp> leave them to moe/instances.cpp, which is compiled beside them with
// the same flags (in CMake: link moe::instances). Layers that are not in the list are compiled
// where they are used, with the kernels of instances.cpp.
#pragma once

#include "moe/core/config.hpp"

#if defined(MOE_EXTERN_INSTANCES)
#include "moe/core/numeric.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/view.hpp"
#include "moe/core/weight_format.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/expert_stage.hpp"
#include "moe/experts/feed_forward.hpp"
#include "moe/experts/quantized_experts.hpp"
#include "moe/kernels/coded/dispatch.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/layer/shared_experts.hpp"
#include "moe/layer/sparse_moe.hpp"
#include "moe/losses/balance.hpp"
#include "moe/losses/logit_losses.hpp"
#include "moe/losses/loss_gradient.hpp"
#include "moe/losses/token_mask.hpp"
#include "moe/routing/any_router.hpp"
#include "moe/routing/capacity.hpp"
#include "moe/routing/linear_map.hpp"
#include "moe/routing/plan.hpp"
#include "moe/routing/topk_router.hpp"

namespace moe::inline MOE_ABI {
#define MOE_INSTANCE extern template
#include "moe/instances.inl"
#undef MOE_INSTANCE
}  // namespace moe::inline MOE_ABI
#endif
