// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What moe/instances.hpp declares. By definitions after the declarations, so that a precompiled
// header or another file before this one in a unity build changes nothing.
#include "moe/kernels/coded/levels.hpp"
#include "moe/kernels/levels.hpp"
#include "moe/moe.hpp"

#if !defined(MOE_EXTERN_INSTANCES)
#error "moe: compile all files of the program with MOE_EXTERN_INSTANCES, or leave this one out"
#endif

namespace moe::inline MOE_ABI {
#define MOE_INSTANCE template
#include "moe/instances.inl"
#undef MOE_INSTANCE
}  // namespace moe::inline MOE_ABI
