// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See model.hpp.
#include "language_model/training/model.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <utility>

#include <moe/core/random.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/parallel/parallel_for.hpp>

#include "language_model/load.hpp"

namespace language_model::training {
template <class Scalar>
TrainableModel<Scalar>::TrainableModel(const moe::io::Checkpoint& checkpoint,
                                       const TrainOptions& options)
    : config_(read_config(checkpoint.config(), checkpoint.config_source())), options_(options) {
  const moe::io::Tensors& tensors = checkpoint.tensors();
  embedding_ =
      tensors.matrix<Scalar>("model.embed_tokens.weight", config_.vocab_size, config_.d_model);
  embedding_gradient_.setZero(embedding_.rows(), embedding_.cols());
  norm_ = load_norm<TrainableNorm<Scalar>>(tensors, config_, "model.norm.weight");
  if (!config_.has_tied_head)
    head_ = TrainableLinear<Scalar>(
        tensors.matrix<Scalar>("lm_head.weight", config_.vocab_size, config_.d_model));
  for (Index n = 0; n < config_.num_layers; ++n) {
    const std::string prefix = layer_prefix(n);
    const auto load_feed_forward = [&]() -> std::variant<Mixture, Dense> {
      if (config_.is_dense(n))
        return Dense(load_dense_bank<Scalar>(tensors, config_, prefix + "mlp."));
      return Mixture(checkpoint.layer<Scalar>(n), options_);
    };
    layers_.push_back(
        {load_norm<TrainableNorm<Scalar>>(tensors, config_, prefix + "input_layernorm.weight"),
         TrainableAttention<Scalar>(tensors, config_, prefix + "self_attn."),
         load_norm<TrainableNorm<Scalar>>(tensors, config_,
                                          prefix + "post_attention_layernorm.weight"),
         load_feed_forward(),
         {},
         {},
         {},
         {}});
  }
}

template <class Scalar>
Parameters<Scalar> TrainableModel<Scalar>::parameters() {
  Parameters<Scalar> parameters;
  parameters.push_back(
      {"model.embed_tokens.weight", values_of(embedding_), values_of(embedding_gradient_), true});
  for (std::size_t n = 0; n < layers_.size(); ++n) {
    Layer& layer = layers_[n];
    const std::string prefix = layer_prefix(static_cast<Index>(n));
    layer.attention_norm.add_parameters(prefix + "input_layernorm", parameters);
    layer.attention.add_parameters(prefix + "self_attn.", parameters);
    layer.feed_forward_norm.add_parameters(prefix + "post_attention_layernorm", parameters);
    std::visit([&](auto& block) { block.add_parameters(prefix, parameters); }, layer.feed_forward);
  }
  norm_.add_parameters("model.norm", parameters);
  if (!config_.has_tied_head) head_.add_parameters("lm_head", parameters);
  return parameters;
}

template <class Scalar>
void TrainableModel<Scalar>::zero_gradients() {
  for (const Parameter<Scalar>& parameter : parameters()) {
    const std::span<Scalar> values = parameter.gradient;
    moe::parallel::for_each_block(
        static_cast<Index>(values.size()), 65536, [&](Index begin, Index end) {
          std::fill(values.begin() + begin, values.begin() + end, Scalar(0));
        });
  }
}

template <class Scalar>
void TrainableModel<Scalar>::refresh(const StepReport& report) {
  auto step = report.layers.begin();
  for (Layer& layer : layers_)
    if (auto* const mixture = std::get_if<Mixture>(&layer.feed_forward))
      mixture->refresh((step++)->expert_load);
}

template <class Scalar>
void TrainableModel<Scalar>::save(const TensorUse<Scalar>& use) const {
  use("model.embed_tokens.weight", embedding_, false);
  for (std::size_t n = 0; n < layers_.size(); ++n) {
    const Layer& layer = layers_[n];
    const std::string prefix = layer_prefix(static_cast<Index>(n));
    use(prefix + "input_layernorm.weight", layer.attention_norm.weight(), true);
    layer.attention.save(prefix + "self_attn.", use);
    use(prefix + "post_attention_layernorm.weight", layer.feed_forward_norm.weight(), true);
    if (const auto* const mixture = std::get_if<Mixture>(&layer.feed_forward)) {
      mixture->save(MixtureNames(config_.model_type, static_cast<Index>(n)), use);
    } else {
      std::get<Dense>(layer.feed_forward).save(static_cast<Index>(n), use);
    }
  }
  use("model.norm.weight", norm_.weight(), true);
  if (!config_.has_tied_head) use("lm_head.weight", head_.weight(), false);
}

/// to = from, or to = *base + from, after dropout of what a sub-block adds: element i of stream s
/// of a step is a function of these alone.
template <class Scalar>
void TrainableModel<Scalar>::drop(const Matrix<Scalar>& from, std::uint64_t seed, Index stream,
                                  bool drops, const Matrix<Scalar>* base,
                                  Matrix<Scalar>& to) const {
  constexpr Index block = 2048;
  constexpr Index drawn = 4;  // elements that share a random number, of 16 bits each
  const std::uint64_t of_stream =
      moe::detail::mix_bits(seed + 0x9e3779b97f4a7c15U * static_cast<std::uint64_t>(stream + 1));
  const auto kept = static_cast<Scalar>(1 / (1 - options_.dropout));
  const auto bound = static_cast<std::uint16_t>(options_.dropout * 65536);
  to.resize(from.rows(), from.cols());
  moe::parallel::for_each_block(from.size(), block, [&](Index begin, Index end) {
    const Index size = end - begin;
    auto taken = values_at(to.data() + begin, size);
    std::array<Scalar, block> dropped;
    const Scalar* given = from.data() + begin;
    if (drops && bound > 0) {
      std::array<std::uint16_t, block> random;
      for (Index i = 0; i < size; i += drawn) {
        const std::uint64_t bits =
            moe::detail::mix_bits(of_stream + static_cast<std::uint64_t>((begin + i) / drawn));
        for (Index j = 0; j < drawn; ++j)
          random[static_cast<std::size_t>(i + j)] = static_cast<std::uint16_t>(bits >> (16 * j));
      }
      // GCC's -O2 vectorises a choice only when told to; clang's does anyway, and warns of being
      // told where a sanitizer keeps it from it.
#ifndef __clang__
#pragma omp simd
#endif
      for (Index i = 0; i < size; ++i)
        dropped[static_cast<std::size_t>(i)] =
            random[static_cast<std::size_t>(i)] < bound ? Scalar(0) : kept * given[i];
      given = dropped.data();
    }
    if (base != nullptr) {
      taken = values_at(base->data() + begin, size) + values_at(given, size);
    } else {
      taken = values_at(given, size);
    }
  });
}

template <class Scalar>
StepReport TrainableModel<Scalar>::step(std::span<const Token> tokens,
                                        std::span<const Token> targets, Index windows,
                                        std::uint64_t seed) {
  StepReport report;
  forward(tokens, targets, windows, seed, &report);
  report.loss = score(targets);
  backward(tokens, seed);
  return report;
}

template <class Scalar>
double TrainableModel<Scalar>::evaluate(std::span<const Token> tokens,
                                        std::span<const Token> targets, Index windows) {
  forward(tokens, targets, windows, 0, nullptr);
  return score(targets);
}

/// Up to the logits; in training if there is a report to fill.
template <class Scalar>
void TrainableModel<Scalar>::forward(std::span<const Token> tokens, std::span<const Token> targets,
                                     Index windows, std::uint64_t seed, StepReport* report) {
  const auto rows = static_cast<Index>(tokens.size());
  const Index positions = rows / windows;
  if (positions * windows != rows || targets.size() != tokens.size())
    throw std::invalid_argument("the windows differ in length");
  for (const auto& part : {tokens, targets})
    for (const Token token : part)
      if (token < 0 || token >= config_.vocab_size)
        throw std::invalid_argument("the vocabulary has no token " + std::to_string(token));
  const auto sparse = std::count_if(layers_.begin(), layers_.end(), [](const Layer& layer) {
    return std::holds_alternative<Mixture>(layer.feed_forward);
  });
  Matrix<Scalar>& first = layers_.empty() ? x_ : layers_.front().input;
  first.resize(rows, config_.d_model);
  for (Index t = 0; t < rows; ++t)
    first.row(t) = embedding_.row(tokens[static_cast<std::size_t>(t)]);
  const bool training = report != nullptr;
  for (std::size_t n = 0; n < layers_.size(); ++n) {
    Layer& layer = layers_[n];
    const auto stream = static_cast<Index>(2 * n);
    layer.normed_input.resize(rows, config_.d_model);
    layer.attention_norm.forward(layer.input, layer.normed_input);
    layer.attention.forward(layer.normed_input, positions, added_);
    drop(added_, seed, stream, training, &layer.input, layer.middle);
    layer.normed_middle.resize(rows, config_.d_model);
    layer.feed_forward_norm.forward(layer.middle, layer.normed_middle);
    added_.resize(rows, config_.d_model);
    auto* const mixture = std::get_if<Mixture>(&layer.feed_forward);
    if (mixture != nullptr && training) {
      const std::uint64_t of_layer = moe::detail::mix_bits(seed ^ (n + 1));
      report->layers.push_back(
          mixture->forward(layer.normed_middle, added_, of_layer, static_cast<Index>(sparse)));
    } else if (mixture != nullptr) {
      mixture->run(layer.normed_middle, added_);
    } else {
      std::get<Dense>(layer.feed_forward).forward(layer.normed_middle, added_);
    }
    drop(added_, seed, stream + 1, training, &layer.middle,
         n + 1 < layers_.size() ? layers_[n + 1].input : x_);
  }
  normed_.resize(rows, config_.d_model);
  norm_.forward(x_, normed_);
  if (config_.has_tied_head) {
    logits_.resize(rows, config_.vocab_size);
    panels_.pack_rows(embedding_);
    multiply<Scalar>(normed_, panels_, logits_);
  } else {
    head_.forward(normed_, logits_);
  }
}

/// The mean nats of the targets; logits become their gradient.
template <class Scalar>
double TrainableModel<Scalar>::score(std::span<const Token> targets) {
  const Index rows = logits_.rows();
  const Index vocab = logits_.cols();
  std::vector<double> nats(targets.size());
  const Scalar share = 1 / static_cast<Scalar>(rows);
  const auto& kernels = moe::kernels::row_kernels<Scalar>();
  moe::parallel::for_each_block(rows, 64, [&](Index begin, Index end) {
    for (Index t = begin; t < end; ++t) {
      Scalar* const row = logits_.data() + t * vocab;
      const Token target = targets[static_cast<std::size_t>(t)];
      const Scalar largest = kernels.largest(row, vocab);
      const Scalar of_target = row[target] - largest;
      const Scalar sum = kernels.exponentials(row, vocab, largest, row);
      nats[static_cast<std::size_t>(t)] =
          std::log(static_cast<double>(sum)) - static_cast<double>(of_target);
      const Scalar factor = share / sum;
      values_at(row, vocab) *= factor;
      row[target] -= share;
    }
  });
  double total = 0;
  for (const double n : nats) total += n;
  return total / static_cast<double>(rows);
}

template <class Scalar>
void TrainableModel<Scalar>::backward(std::span<const Token> tokens, std::uint64_t seed) {
  const Index rows = x_.rows();
  d_normed_.resize(rows, config_.d_model);
  if (config_.has_tied_head) {
    panels_.pack_columns(embedding_);
    multiply<Scalar>(logits_, panels_, d_normed_);
    panels_.pack_columns(normed_);
    multiply_transposed<Scalar>(logits_, panels_, embedding_gradient_, true);
  } else {
    panels_.pack_columns(normed_);
    head_.backward(panels_, logits_, d_normed_, false);
  }
  d_x_.setZero(rows, config_.d_model);
  norm_.backward(x_, d_normed_, d_x_);
  for (std::size_t n = layers_.size(); n-- > 0;) {
    Layer& layer = layers_[n];
    const auto stream = static_cast<Index>(2 * n);
    drop(d_x_, seed, stream + 1, true, nullptr, d_added_);
    d_normed_.resize(rows, config_.d_model);
    std::visit([&](auto& block) { block.backward(layer.normed_middle, d_added_, d_normed_); },
               layer.feed_forward);
    layer.feed_forward_norm.backward(layer.middle, d_normed_, d_x_);
    drop(d_x_, seed, stream, true, nullptr, d_added_);
    layer.attention.backward(layer.normed_input, d_added_, d_normed_);
    layer.attention_norm.backward(layer.input, d_normed_, d_x_);
  }
  for (Index t = 0; t < rows; ++t)
    embedding_gradient_.row(tokens[static_cast<std::size_t>(t)]) += d_x_.row(t);
}

template class TrainableModel<float>;
template class TrainableModel<double>;

}  // namespace language_model::training
