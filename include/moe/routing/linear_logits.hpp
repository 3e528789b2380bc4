// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Logits of a linear router, token by token: what routers with a choice of their own share.
#pragma once

#include <cstddef>

#include "moe/core/config.hpp"
#include "moe/core/thread_buffer.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/parallel/parallel_for.hpp"
#include "moe/routing/linear_map.hpp"

namespace moe::inline MOE_ABI::detail {

/// Tokens that one task of a router handles.
inline constexpr Index router_block_tokens = 16;

/// Calls body(t, z) for every token, where z (E) are the logits x[t] weight^T; in parallel.
///
/// Shapes  x (T, D).
/// Values  a token's logits have the same bits whatever the other tokens.
template <class Scalar, class Body>
void for_each_logits(MatrixView<const Scalar> x, const LinearMap<Scalar>& map, Body&& body) {
  struct Logits;
  const Index size = map.outputs();
  const MatrixView<Scalar> logits(
      thread_buffer<Logits, Scalar>(static_cast<std::size_t>(x.rows() * size)), x.rows(), size);
  map.run(x, logits);
  parallel::for_each_block(x.rows(), router_block_tokens, [&](Index begin, Index end) {
    for (Index t = begin; t < end; ++t) body(t, logits.row(t));
  });
}

}  // namespace moe::inline MOE_ABI::detail
