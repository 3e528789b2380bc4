// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What a forward will do, and the least time that a machine can do it in.
#pragma once

#include <algorithm>
#include <iomanip>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/staged_bank.hpp"
#include "moe/kernels/active_isa.hpp"
#include "moe/kernels/dispatch.hpp"
#include "moe/parallel/parallel_for.hpp"

namespace moe::inline MOE_ABI {

/// What a machine can do at best with the threads in use.
struct MachineLimits {
  double flop_per_second = 0;
  double bytes_per_second = 0;    ///< read from memory
  double integer_per_second = 0;  ///< operations on codes of eight bits; 0: as many as of floats

  /// Operations on codes per second.
  double integer_rate() const noexcept {
    return integer_per_second > 0 ? integer_per_second : flop_per_second;
  }

  /// A guess for where nothing was measured: 3 GHz, two units of the level's width, four times as
  /// many operations on codes where the level has dot products of them, and 12 GB/s for each
  /// thread. The benchmarks measure all of them.
  static MachineLimits assumed() {
    const double threads = parallel::available_threads();
    const Isa isa = active_isa();
    const bool has_dots = isa == Isa::avx512_vnni || isa == Isa::neon_dotprod;
    const double lanes = isa == Isa::scalar                             ? 1
                         : isa == Isa::neon || isa == Isa::neon_dotprod ? 4
                         : isa == Isa::avx2                             ? 8
                                                                        : 16;
    const double flop = 3e9 * 2 * 2 * lanes * threads;
    return {flop, 12e9 * threads, has_dots ? 4 * flop : flop};
  }
};

/// The work of one expert that has rows.
struct ExpertWork {
  Index expert = 0;
  bool shared = false;  ///< of the shared experts
  Index rows = 0;
  Index tiles = 0;      ///< into which the rows are cut; products of codes may halve one
  Index tile_rows = 0;  ///< of the largest tile
  double flop = 0;
  double weight_bytes = 0;  ///< read once
  std::string kernel{};     ///< weights, and the form of their products
};

/// A forward, explained. Prints as a table.
struct Explanation {
  Isa isa = Isa::scalar;
  int threads = 1;
  Index tokens = 0;
  Index rows = 0;  ///< (token, slot) pairs that are run
  Index dropped = 0;
  bool complete = true;             ///< false if a bank does not tell what it does
  std::vector<ExpertWork> experts;  // by number, routed ones first
  double flop = 0;                  ///< without what fills up panels
  double integer_flop = 0;          ///< of them, those on codes of eight bits
  double padding_flop = 0;          ///< for outputs that only fill up panels
  double weight_bytes = 0;          ///< of the experts with rows, read once
  double row_bytes = 0;  ///< of packed rows, hidden values and results: written, then read
  double workspace_bytes = 0;
  MachineLimits limits;

  /// The larger of the time for the products and the time to read the weights.
  double roofline_seconds() const {
    return std::max(product_seconds(), weight_bytes / limits.bytes_per_second);
  }
  bool bound_by_memory() const {
    return weight_bytes / limits.bytes_per_second > product_seconds();
  }
  /// The time for the products alone.
  double product_seconds() const {
    const double on_floats =
        flop > integer_flop ? (flop - integer_flop) / limits.flop_per_second : 0;
    return on_floats + (integer_flop > 0 ? integer_flop / limits.integer_rate() : 0);
  }

  std::string text() const {
    std::ostringstream out;
    out << *this;
    return out.str();
  }

  friend std::ostream& operator<<(std::ostream& out, const Explanation& e) {
    const auto flags = out.flags();
    const auto precision = out.precision();
    out << std::fixed << std::setprecision(2);
    out << e.tokens << " tokens, " << e.rows << " rows";
    if (e.dropped > 0) out << ", " << e.dropped << " dropped";
    out << "; kernels " << isa_name(e.isa) << ", " << e.threads
        << (e.threads == 1 ? " thread\n" : " threads\n");
    out << "  expert    rows  tiles            Gflop   weights MB  kernel\n";
    for (const ExpertWork& work : e.experts)
      out << (work.shared ? "  shared" : "        ") << std::setw(4) << work.expert << std::setw(8)
          << work.rows << std::setw(7) << work.tiles << " of " << std::setw(2) << work.tile_rows
          << "x32" << std::setw(12) << work.flop / 1e9 << std::setw(13) << work.weight_bytes / 1e6
          << "  " << work.kernel << '\n';
    out << "  sum   " << std::setw(12) << e.rows << std::setw(28) << e.flop / 1e9 << std::setw(13)
        << e.weight_bytes / 1e6 << '\n';
    if (!e.complete) out << "  some experts do not tell what they do\n";
    const double share = e.flop > 0 ? 100 * e.padding_flop / e.flop : 0;
    out << "  padding " << share << " %, rows " << e.row_bytes / 1e6 << " MB, workspace "
        << e.workspace_bytes / 1e6 << " MB\n";
    out << "  at least " << e.roofline_seconds() * 1e3 << " ms, bound by "
        << (e.bound_by_memory() ? "memory" : "arithmetic") << " (at "
        << e.limits.flop_per_second / 1e9 << " Gflop/s";
    if (e.integer_flop > 0) out << ", " << e.limits.integer_rate() / 1e9 << " GOP/s in eight bits";
    out << " and " << e.limits.bytes_per_second / 1e9 << " GB/s)\n";
    out.flags(flags);
    out.precision(precision);
    return out;
  }
};

namespace detail {

/// Adds a bank's experts with rows.
template <class Scalar>
void explain_bank(const StagedBank<Scalar>* bank, const DispatchPlan& plan, bool shared,
                  Explanation& explanation) {
  const Index most = kernels::tile_kernels<Scalar, Scalar>().most_rows;
  StageShape shape;
  if (bank != nullptr) shape = bank->stage_shape();
  explanation.complete = explanation.complete && bank != nullptr;
  const auto d_model = static_cast<double>(shape.d_model);
  const auto d_ff = static_cast<double>(shape.d_ff);
  const double up = d_model * d_ff * static_cast<double>(shape.up_factor);
  const double weights = up + d_model * d_ff;
  const double width = kernels::panel_width;
  const double run = width * (static_cast<double>(shape.up_panels) * d_model +
                              static_cast<double>(shape.down_panels) * d_ff);
  for (Index e = 0; e < plan.num_experts; ++e) {
    const Index rows = plan.rows_of(e);
    if (rows == 0) continue;
    const Index tiles = (rows + most - 1) / most;
    const auto n = static_cast<double>(rows);
    explanation.experts.push_back({e, shared, rows, tiles, (rows + tiles - 1) / tiles,
                                   2 * n * weights, weights * shape.weight_bytes,
                                   bank != nullptr ? bank->kernel_of(e, rows) : ""});
    explanation.flop += 2 * n * weights;
    explanation.integer_flop += 2 * n * weights * shape.integer_share;
    explanation.padding_flop += 2 * n * (run - weights);
    explanation.weight_bytes += weights * shape.weight_bytes;
    explanation.row_bytes += 2 * n * sizeof(Scalar) * (2 * d_model + d_ff);
    explanation.rows += rows;
  }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI
