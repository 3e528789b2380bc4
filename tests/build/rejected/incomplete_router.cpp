// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <moe/moe.hpp>

struct SomeRouter {
  using Scalar = float;
  moe::Index d_model() const { return 4; }
  moe::Index num_experts() const { return 2; }
#ifndef REJECTED
  moe::Index top_k() const {
    return 1;
  }
#endif
  void route(moe::MatrixView<const float>, moe::RouteOptions, moe::Routing<float>&) const {}
};

using Layer = moe::SparseMoe<SomeRouter, moe::SwiGluExperts<float>>;
