// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Tests that run at every level of instructions that the machine has, and that MOE_ISA allows.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/active_isa.hpp>

namespace test_support {

/// The levels to test: all, or the one that the environment names.
inline std::vector<moe::Isa> tested_levels() {
  if (const char* const name = std::getenv("MOE_ISA"); name != nullptr && *name != 0)
    return {moe::active_isa()};
  return moe::available_isas();
}

/// A fixture whose parameter is the level in use.
class EachLevel : public testing::TestWithParam<moe::Isa> {
 private:
  moe::ScopedIsa level_{GetParam()};
};

inline std::string name_of_level(const testing::TestParamInfo<moe::Isa>& level) {
  return std::string(moe::isa_name(level.param));
}

}  // namespace test_support

#define MOE_FOR_EACH_LEVEL(fixture)                                                           \
  INSTANTIATE_TEST_SUITE_P(Levels, fixture, testing::ValuesIn(test_support::tested_levels()), \
                           test_support::name_of_level)
