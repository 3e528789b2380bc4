// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Which level's kernels run. Chosen once, at the first use: the highest that the machine has, or
// the one that the environment variable MOE_ISA names.
#pragma once

#include <atomic>
#include <cstdlib>

#include "moe/core/config.hpp"
#include "moe/kernels/isa.hpp"

namespace moe::inline MOE_ABI {
namespace detail {

/// The level in use.
inline std::atomic<Isa>& isa_in_use() {
  static std::atomic<Isa> isa{[] {
    const char* const name = std::getenv("MOE_ISA");
    return name != nullptr && *name != 0 ? isa_of(name) : available_isas().back();
  }()};
  return isa;
}

}  // namespace detail

/// The level whose kernels calls use from now on.
///
/// Throws  std::invalid_argument at the first use if MOE_ISA names no level of this machine.
inline Isa active_isa() {
  return detail::isa_in_use().load(std::memory_order_relaxed);
}

/// Forces a level for as long as it lives, for tests and comparisons. Not for use while another
/// thread runs a layer.
///
/// Throws  std::invalid_argument if this machine cannot run the level.
class ScopedIsa {
 public:
  explicit ScopedIsa(Isa isa) : previous_(active_isa()) {
    detail::isa_in_use() = detail::isa_of(isa_name(isa));
  }
  ScopedIsa(const ScopedIsa&) = delete;
  ScopedIsa& operator=(const ScopedIsa&) = delete;
  ~ScopedIsa() { detail::isa_in_use() = previous_; }

 private:
  Isa previous_;
};

}  // namespace moe::inline MOE_ABI
