// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See attention.hpp.
#include "language_model/attention.hpp"

#include <algorithm>
#include <cmath>

#include <moe/parallel/parallel_for.hpp>

#include "language_model/load.hpp"

namespace language_model {
namespace {

/// Normalises every head of every row by itself, in place.
template <class Scalar>
void normalize_heads(const RmsNorm<Scalar>& norm, Index head_dim, Matrix<Scalar>& x) {
  MatrixView<Scalar> heads(x.data(), x.size() / head_dim, head_dim);  // (T * heads, head_dim)
  norm(heads, heads);
}

/// Appends the new rows of every sequence to what is cached of it.
template <class Scalar>
void store(const Matrix<Scalar>& fresh, const Session<Scalar>& session, Matrix<Scalar>& cached) {
  const Index positions = fresh.rows() / session.sequences();
  for (Index s = 0; s < session.sequences(); ++s)
    cached.middleRows(s * session.capacity() + session.length(), positions) =
        fresh.middleRows(s * positions, positions);
}

}  // namespace

template <class Scalar>
Attention<Scalar>::Attention(const moe::io::Tensors& tensors, const ModelConfig& config,
                             const std::string& prefix)
    : num_heads_(config.num_heads),
      group_size_(config.num_heads / config.num_key_value_heads),
      head_dim_(config.head_dim),
      sliding_window_(config.sliding_window),
      query_(load_linear<Linear<Scalar>>(tensors, prefix + "q_proj",
                                         config.num_heads * config.head_dim, config.d_model,
                                         config.has_input_biases)),
      key_(load_linear<Linear<Scalar>>(tensors, prefix + "k_proj",
                                       config.num_key_value_heads * config.head_dim, config.d_model,
                                       config.has_input_biases)),
      value_(load_linear<Linear<Scalar>>(tensors, prefix + "v_proj",
                                         config.num_key_value_heads * config.head_dim,
                                         config.d_model, config.has_input_biases)),
      output_(load_linear<Linear<Scalar>>(tensors, prefix + "o_proj", config.d_model,
                                          config.num_heads * config.head_dim,
                                          config.has_output_bias)) {
  if (!config.has_query_key_norm) return;
  const auto load_norm = [&](const char* name) {
    return RmsNorm<Scalar>(tensors.vector<Scalar>(prefix + name, config.head_dim),
                           config.norm_epsilon);
  };
  query_norm_ = load_norm("q_norm.weight");
  key_norm_ = load_norm("k_norm.weight");
}

template <class Scalar>
Matrix<Scalar> Attention<Scalar>::operator()(const Matrix<Scalar>& x, const Rotary<Scalar>& rotary,
                                             const Session<Scalar>& session,
                                             KeyValues<Scalar>& cache) const {
  Matrix<Scalar> query = query_(x);  // (T, heads * head_dim)
  Matrix<Scalar> key = key_(x);      // (T, key and value heads * head_dim)
  if (query_norm_) normalize_heads(*query_norm_, head_dim_, query);
  if (key_norm_) normalize_heads(*key_norm_, head_dim_, key);
  rotary(query);
  rotary(key);
  store(key, session, cache.keys);
  store(value_(x), session, cache.values);

  const Index positions = x.rows() / session.sequences();
  const Index tiles = (positions + tile_rows - 1) / tile_rows;
  Matrix<Scalar> mixed(query.rows(), query.cols());  // (T, heads * head_dim)
  moe::parallel::for_each_task(
      session.sequences() * num_heads_ * tiles, [&](Index task, int /*thread*/) {
        // Later tiles see more keys, and the largest tasks go first.
        const Index begin = (tiles - 1 - task % tiles) * tile_rows;
        const Index head = task / tiles % num_heads_;
        const Index sequence = task / tiles / num_heads_;
        attend({sequence, head, begin, std::min(tile_rows, positions - begin)}, query, session,
               cache, mixed);
      });
  return output_(mixed);
}

template <class Scalar>
void Attention<Scalar>::attend(const Task& task, const Matrix<Scalar>& query,
                               const Session<Scalar>& session, const KeyValues<Scalar>& cache,
                               Matrix<Scalar>& result) const {
  const Index first = session.length() + task.begin;  // position of the first row
  const Index oldest = sliding_window_ > 0 ? std::max<Index>(0, first - sliding_window_ + 1) : 0;
  const Index num_keys = first + task.rows - oldest;
  const Index row = task.sequence * (query.rows() / session.sequences()) + task.begin;
  const Index column = task.head * head_dim_;
  const Index cache_row = task.sequence * session.capacity() + oldest;
  const Index cache_column = task.head / group_size_ * head_dim_;
  const Eigen::OuterStride<> wide(query.cols());
  const Eigen::OuterStride<> narrow(cache.keys.cols());
  const ConstMap<Scalar> q(&query(row, column), task.rows, head_dim_, wide);
  const ConstMap<Scalar> k(&cache.keys(cache_row, cache_column), num_keys, head_dim_, narrow);
  const ConstMap<Scalar> v(&cache.values(cache_row, cache_column), num_keys, head_dim_, narrow);

  Tile<Scalar> scores(task.rows, num_keys);  // (rows, keys)
  scores.noalias() = q * k.transpose();
  weigh(scores, first - oldest + 1);
  TileMap<Scalar>(&result(row, column), task.rows, head_dim_, wide).noalias() = scores * v;
}

/// Turns scores into weights: a softmax over the keys that a row may see, zero elsewhere. The first
/// row sees the first `first_row_sees` keys at most, each next row one more.
template <class Scalar>
void Attention<Scalar>::weigh(Tile<Scalar>& scores, Index first_row_sees) const {
  const Scalar scale = 1 / std::sqrt(static_cast<Scalar>(head_dim_));
  for (Index r = 0; r < scores.rows(); ++r) {
    const Index end = first_row_sees + r;
    const Index begin = sliding_window_ > 0 ? std::max<Index>(0, end - sliding_window_) : 0;
    auto seen = scores.row(r).segment(begin, end - begin).array();
    const Scalar largest = seen.maxCoeff();
    seen = (scale * (seen - largest)).exp();
    seen /= seen.sum();
    scores.row(r).head(begin).setZero();
    scores.row(r).tail(scores.cols() - end).setZero();
  }
}

template class Attention<float>;
template class Attention<double>;

}  // namespace language_model
