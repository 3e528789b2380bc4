// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What moe/instances.hpp declares.
#define MOE_DEFINE_INSTANCES
#include "moe/moe.hpp"

#if !defined(MOE_EXTERN_INSTANCES)
#error "moe: compile all files of the program with MOE_EXTERN_INSTANCES, or leave this one out"
#endif
