// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// What a model remembers of the sequences that it reads.
#pragma once

#include <cstddef>
#include <vector>

#include <moe/core/types.hpp>
#include <moe/layer/workspace.hpp>

#include "language_model/config.hpp"

namespace language_model {

using moe::Matrix;

/// One layer's keys and values of every position read so far. Sequence s has the rows from
/// s * capacity on.
template <class Scalar>
struct KeyValues {
  Matrix<Scalar> keys;    // (sequences * capacity, key and value heads * head_dim)
  Matrix<Scalar> values;  // (sequences * capacity, key and value heads * head_dim)
};

/// Sequences of equal length that a model reads in step, and the memory that it needs for them.
/// The model itself stays constant, so several sessions may share it.
template <class Scalar>
class Session {
 public:
  /// Room for `capacity` positions of each of `sequences` sequences.
  Session(const ModelConfig& config, Index sequences, Index capacity)
      : sequences_(sequences), capacity_(capacity) {
    const Index width = config.num_key_value_heads * config.head_dim;
    for (Index layer = 0; layer < config.num_layers; ++layer)
      layers_.push_back({Matrix<Scalar>(sequences * capacity, width),
                         Matrix<Scalar>(sequences * capacity, width)});
  }

  Index sequences() const noexcept { return sequences_; }
  Index capacity() const noexcept { return capacity_; }
  /// Positions that every sequence has had.
  Index length() const noexcept { return length_; }
  KeyValues<Scalar>& layer(Index layer) { return layers_[static_cast<std::size_t>(layer)]; }
  moe::Workspace<Scalar>& workspace() noexcept { return workspace_; }

  void advance(Index positions) noexcept { length_ += positions; }
  /// Forgets what was read; the memory stays.
  void restart() noexcept { length_ = 0; }

 private:
  Index sequences_;
  Index capacity_;
  Index length_ = 0;
  std::vector<KeyValues<Scalar>> layers_;
  moe::Workspace<Scalar> workspace_;  // of the MoE layers, which run one after the other
};

}  // namespace language_model
