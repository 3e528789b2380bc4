// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See attention.hpp.
#include "language_model/training/attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <moe/kernels/dispatch.hpp>
#include <moe/parallel/parallel_for.hpp>

#include "language_model/load.hpp"

namespace language_model::training {
namespace {

/// Every head of every row as a row of its own.
template <class Scalar>
MatrixView<Scalar> heads_of(Matrix<Scalar>& m, Index head_dim) {
  return {m.data(), m.size() / head_dim, head_dim};
}

}  // namespace

template <class Scalar>
TrainableAttention<Scalar>::TrainableAttention(const moe::io::Tensors& tensors,
                                               const ModelConfig& config, const std::string& prefix)
    : config_(config),
      num_heads_(config.num_heads),
      group_size_(config.num_heads / config.num_key_value_heads),
      head_dim_(config.head_dim),
      sliding_window_(config.sliding_window) {
  const Index width = config.num_heads * config.head_dim;
  const Index narrow = config.num_key_value_heads * config.head_dim;
  const auto load = [&](const char* name, Index outputs, Index inputs, bool has_bias) {
    return load_linear<TrainableLinear<Scalar>>(tensors, prefix + name, outputs, inputs, has_bias);
  };
  query_map_ = load("q_proj", width, config.d_model, config.has_input_biases);
  key_map_ = load("k_proj", narrow, config.d_model, config.has_input_biases);
  value_map_ = load("v_proj", narrow, config.d_model, config.has_input_biases);
  output_map_ = load("o_proj", config.d_model, width, config.has_output_bias);
  if (!config.has_query_key_norm) return;
  const auto load_norm = [&](const char* name) {
    return TrainableNorm<Scalar>(tensors.vector<Scalar>(prefix + name, config.head_dim),
                                 config.norm_epsilon);
  };
  query_norm_ = load_norm("q_norm.weight");
  key_norm_ = load_norm("k_norm.weight");
}

template <class Scalar>
void TrainableAttention<Scalar>::add_parameters(const std::string& prefix,
                                                Parameters<Scalar>& parameters) {
  query_map_.add_parameters(prefix + "q_proj", parameters);
  key_map_.add_parameters(prefix + "k_proj", parameters);
  value_map_.add_parameters(prefix + "v_proj", parameters);
  output_map_.add_parameters(prefix + "o_proj", parameters);
  if (query_norm_) query_norm_->add_parameters(prefix + "q_norm", parameters);
  if (key_norm_) key_norm_->add_parameters(prefix + "k_norm", parameters);
}

template <class Scalar>
void TrainableAttention<Scalar>::save(const std::string& prefix,
                                      const TensorUse<Scalar>& use) const {
  query_map_.save(prefix + "q_proj", use);
  key_map_.save(prefix + "k_proj", use);
  value_map_.save(prefix + "v_proj", use);
  output_map_.save(prefix + "o_proj", use);
  if (query_norm_) use(prefix + "q_norm.weight", query_norm_->weight(), true);
  if (key_norm_) use(prefix + "k_norm.weight", key_norm_->weight(), true);
}

template <class Scalar>
Scalar TrainableAttention<Scalar>::scale() const {
  return 1 / std::sqrt(static_cast<Scalar>(head_dim_));
}

template <class Scalar>
void TrainableAttention<Scalar>::forward(MatrixView<const Scalar> x, Index positions,
                                         Matrix<Scalar>& y) {
  if (positions != positions_ || !rotary_) {
    positions_ = positions;
    rotary_.emplace(config_, 0, positions);
  }
  query_map_.forward(x, query_);
  key_map_.forward(x, key_);
  value_map_.forward(x, value_);
  const auto normalize = [&](std::optional<TrainableNorm<Scalar>>& norm, Matrix<Scalar>& m,
                             Matrix<Scalar>& plain) {
    if (!norm) return;
    plain = m;
    norm->forward(heads_of(plain, head_dim_), heads_of(m, head_dim_));
  };
  normalize(query_norm_, query_, plain_query_);
  normalize(key_norm_, key_, plain_key_);
  (*rotary_)(query_);
  (*rotary_)(key_);
  mixed_.resize(query_.rows(), query_.cols());
  weights_.resize(static_cast<std::size_t>(sequences() * num_heads_ * positions_ * positions_));
  const Index groups = num_heads_ / group_size_;
  moe::parallel::for_each_task(sequences() * groups, [&](Index task, int /*thread*/) {
    attend(task / groups, task % groups);
  });
  output_map_.forward(mixed_, y);
}

/// The query heads of one key and value head.
template <class Scalar>
void TrainableAttention<Scalar>::attend(Index sequence, Index group) {
  static thread_local HeadMemory memory;
  RowTile<Scalar>& tile = RowTile<Scalar>::of_thread();
  memory.by_position.pack_rows(head(key_, sequence, group));
  memory.by_column.pack_columns(head(value_, sequence, group));
  for (Index h = group * group_size_; h < (group + 1) * group_size_; ++h) {
    const MatrixView<Scalar> query = head(query_, sequence, h);
    const MatrixView<Scalar> scores = weights_of(sequence, h);
    const MatrixView<Scalar> mixed = head(mixed_, sequence, h);
    for (Index first = 0; first < positions_; first += RowTile<Scalar>::most_rows()) {
      const Index count = std::min(RowTile<Scalar>::most_rows(), positions_ - first);
      const Index seen = first + count;  // Later keys are none of these rows'.
      tile.take_rows(query, first, count, head_dim_, scale());
      for (Index p = 0; p * panel_width < seen; ++p)
        tile.multiply(memory.by_position.panel(p), memory.by_position.columns(p),
                      scores.row(first) + p * panel_width, scores.row_stride(), false);
      weigh(scores, first, count);
      tile.take_rows(scores, first, count, seen);
      for (Index p = 0; p < memory.by_column.count(); ++p)
        tile.multiply(memory.by_column.panel(p), memory.by_column.columns(p),
                      mixed.row(first) + p * panel_width, mixed.row_stride(), false);
    }
  }
}

/// Turns rows of scores into weights: a softmax over the keys that a row may see, zero elsewhere.
template <class Scalar>
void TrainableAttention<Scalar>::weigh(MatrixView<Scalar> scores, Index first, Index count) const {
  const auto& kernels = moe::kernels::row_kernels<Scalar>();
  for (Index r = first; r < first + count; ++r) {
    const Index end = r + 1;
    const Index begin = sliding_window_ > 0 ? std::max<Index>(0, end - sliding_window_) : 0;
    Scalar* const row = scores.row(r);
    const Scalar largest = kernels.largest(row + begin, end - begin);
    const Scalar sum = kernels.exponentials(row + begin, end - begin, largest, row + begin);
    kernels.divide_all(row + begin, end - begin, sum);
    std::fill(row, row + begin, Scalar(0));
    std::fill(row + end, row + positions_, Scalar(0));
  }
}

template <class Scalar>
void TrainableAttention<Scalar>::backward(MatrixView<const Scalar> x, MatrixView<const Scalar> dy,
                                          MatrixView<Scalar> dx) {
  d_mixed_.resize(mixed_.rows(), mixed_.cols());
  columns_.pack_columns(mixed_);
  output_map_.backward(columns_, dy, d_mixed_, false);
  d_query_.resize(query_.rows(), query_.cols());
  d_key_.resize(key_.rows(), key_.cols());
  d_value_.resize(value_.rows(), value_.cols());
  const Index groups = num_heads_ / group_size_;
  moe::parallel::for_each_task(sequences() * groups, [&](Index task, int /*thread*/) {
    attend_back(task / groups, task % groups);
  });
  rotary_->back(d_query_);
  rotary_->back(d_key_);
  const auto denormalize = [&](std::optional<TrainableNorm<Scalar>>& norm, Matrix<Scalar>& d_m,
                               Matrix<Scalar>& plain) {
    if (!norm) return;
    Matrix<Scalar> result = Matrix<Scalar>::Zero(d_m.rows(), d_m.cols());
    norm->backward(heads_of(plain, head_dim_), heads_of(d_m, head_dim_),
                   heads_of(result, head_dim_));
    d_m.swap(result);
  };
  denormalize(query_norm_, d_query_, plain_query_);
  denormalize(key_norm_, d_key_, plain_key_);
  columns_.pack_columns(x);
  query_map_.backward(columns_, d_query_, dx, false);
  key_map_.backward(columns_, d_key_, dx, true);
  value_map_.backward(columns_, d_value_, dx, true);
}

/// With S = q k^T / sqrt(head_dim) and P = softmax(S): dV = P^T dO, dP = dO V^T,
/// dS = P (dP - <dP, P>), dq = dS k, dk = dS^T q, both over sqrt(head_dim).
template <class Scalar>
void TrainableAttention<Scalar>::attend_back(Index sequence, Index group) {
  static thread_local HeadMemory memory;
  RowTile<Scalar>& tile = RowTile<Scalar>::of_thread();
  const Index most = RowTile<Scalar>::most_rows();
  memory.slopes.resize(positions_, positions_);
  const MatrixView<Scalar> slopes = memory.slopes;
  const MatrixView<Scalar> d_key = head(d_key_, sequence, group);
  const MatrixView<Scalar> d_value = head(d_value_, sequence, group);
  memory.by_position.pack_rows(head(value_, sequence, group));
  memory.by_column.pack_columns(head(key_, sequence, group), scale());
  const auto multiply = [&](const Panels<Scalar>& panels, Index k, MatrixView<Scalar> to,
                            Index first, bool adds) {
    for (Index p = 0; p < panels.count(); ++p)
      tile.multiply(panels.panel(p, k), panels.columns(p), to.row(first) + p * panel_width,
                    to.row_stride(), adds);
  };
  for (Index h = group * group_size_; h < (group + 1) * group_size_; ++h) {
    const MatrixView<Scalar> weights = weights_of(sequence, h);
    const MatrixView<Scalar> d_mixed = head(d_mixed_, sequence, h);
    const MatrixView<Scalar> d_query = head(d_query_, sequence, h);
    const bool adds = h > group * group_size_;  // to what an earlier head gave
    for (Index first = 0; first < positions_; first += most) {
      const Index count = std::min(most, positions_ - first);
      const Index seen = first + count;
      tile.take_rows(d_mixed, first, count, head_dim_);
      for (Index p = 0; p * panel_width < seen; ++p)
        tile.multiply(memory.by_position.panel(p), memory.by_position.columns(p),
                      slopes.row(first) + p * panel_width, slopes.row_stride(), false);
      for (Index r = first; r < seen; ++r) {
        auto slope = slopes.map().row(r).head(seen).array();
        const auto weight = weights.map().row(r).head(seen).array();
        const Scalar mean = (slope * weight).sum();
        slope = weight * (slope - mean);
      }
      tile.take_rows(slopes, first, count, seen);
      multiply(memory.by_column, 0, d_query, first, false);
    }
    // Of a key, the queries from its own position on.
    memory.other.pack_columns(d_mixed);
    for (Index first = 0; first < positions_; first += most) {
      tile.take_columns(weights, first, std::min(most, positions_ - first), first);
      multiply(memory.other, first, d_value, first, adds);
    }
    memory.other.pack_columns(head(query_, sequence, h), scale());
    for (Index first = 0; first < positions_; first += most) {
      tile.take_columns(slopes, first, std::min(most, positions_ - first), first);
      multiply(memory.other, first, d_key, first, adds);
    }
  }
}

template class TrainableAttention<float>;
template class TrainableAttention<double>;

}  // namespace language_model::training
