// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include <moe/kernels/active_isa.hpp>
#include <moe/kernels/dispatch.hpp>

#include "support/levels.hpp"

namespace isa_test {

using moe::Isa;

TEST(Isa, EveryMachineHasTheLowestLevel) {
  const std::vector<Isa> levels = moe::available_isas();
  EXPECT_EQ(levels.front(), Isa::scalar);
  EXPECT_TRUE(std::is_sorted(levels.begin(), levels.end()));
}

TEST(Isa, TheHighestLevelIsInUseUnlessTheEnvironmentNamesAnother) {
  const char* const name = std::getenv("MOE_ISA");
  if (name != nullptr && *name != 0) {
    EXPECT_EQ(moe::isa_name(moe::active_isa()), name);
  } else {
    EXPECT_EQ(moe::active_isa(), moe::available_isas().back());
  }
}

TEST(Isa, AScopeForcesALevelAndGivesItBack) {
  const Isa before = moe::active_isa();
  for (const Isa level : moe::available_isas()) {
    const moe::ScopedIsa scoped(level);
    EXPECT_EQ(moe::active_isa(), level);
  }
  EXPECT_EQ(moe::active_isa(), before);
}

TEST(Isa, RefusesWhatTheMachineDoesNotHave) {
  const auto message = [](const auto& run) -> std::string {
    try {
      run();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return {};
  };
  EXPECT_EQ(message([] { moe::detail::isa_of("sse9"); }).find("MOE_ISA: 'sse9' is not a level"),
            0U);
#if MOE_ARCH_X86_64
  EXPECT_NE(message([] { const moe::ScopedIsa scoped(Isa::neon); }), "");
#else
  EXPECT_NE(message([] { const moe::ScopedIsa scoped(Isa::avx2); }), "");
#endif
}

TEST(Isa, EveryLevelHasTilesOfItsOwn) {
  int most = 0;
  for (const Isa level : moe::available_isas()) {
    const moe::ScopedIsa scoped(level);
    const auto& tiles = moe::kernels::tile_kernels<float, float>();
    EXPECT_GE(tiles.most_rows, most);
    most = tiles.most_rows;
    for (int rows = 1; rows <= most; ++rows) EXPECT_NE(tiles.of_rows[rows - 1], nullptr);
  }
}

}  // namespace isa_test
