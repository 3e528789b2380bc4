// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Matrix products of other libraries, and the layer that a user would build on them: for each
// expert gather, products, activation, scatter.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <moe/moe.hpp>

#include "shapes.hpp"

namespace benchmarks {

/// y = x W^T for one weight matrix, in the form that the library likes best.
class PeerProduct {
 public:
  PeerProduct() = default;
  PeerProduct(const PeerProduct&) = delete;
  PeerProduct& operator=(const PeerProduct&) = delete;
  virtual ~PeerProduct() = default;

  /// Shapes  x (rows, inner), y (rows, outputs), contiguous.
  virtual void run(const float* x, moe::Index rows, float* y) const = 0;
};

/// A whole block of a library that has one.
class PeerBlock {
 public:
  PeerBlock() = default;
  PeerBlock(const PeerBlock&) = delete;
  PeerBlock& operator=(const PeerBlock&) = delete;
  virtual ~PeerBlock() = default;

  /// Shapes  x, y (T, D); routing (T, K).
  virtual void forward(const moe::Matrix<float>& x, const moe::Routing<float>& routing,
                       moe::Matrix<float>& y) = 0;
};

/// The matrices of one expert, by its number.
using ExpertSource = std::function<moe::ExpertMatrices<float>(moe::Index)>;

/// A library: one that has products, or one that has blocks.
class Peer {
 public:
  Peer() = default;
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  virtual ~Peer() = default;

  virtual std::string name() const = 0;

  /// Its weights are of eight bits, with a scale for each output, and so are activations, with one
  /// for each row.
  virtual bool is_int8() const { return false; }

  /// A block of its own, or null where it is built from products.
  virtual std::unique_ptr<PeerBlock> block(const Shape& /*shape*/,
                                           const ExpertSource& /*experts*/) const {
    return nullptr;
  }

  /// Takes over a copy of the weights, packed where the library can.
  virtual std::unique_ptr<PeerProduct> prepare(const moe::Matrix<float>& /*weights*/) const {
    return nullptr;
  }

  /// How many threads one product may use from now on.
  virtual void set_threads(int /*threads*/) const {}
};

/// Those that this program was built with.
std::vector<std::unique_ptr<Peer>> make_peers();

std::unique_ptr<Peer> make_eigen();
std::unique_ptr<Peer> make_openblas();
std::unique_ptr<Peer> make_onednn();
std::unique_ptr<Peer> make_onednn_int8();
std::unique_ptr<Peer> make_torch();
std::unique_ptr<Peer> make_ggml();
std::unique_ptr<Peer> make_onnxruntime();

}  // namespace benchmarks
