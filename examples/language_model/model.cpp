// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// See model.hpp.
#include "language_model/model.hpp"

#include <cstddef>
#include <stdexcept>

#include "language_model/load.hpp"

namespace language_model {
namespace {

template <class Scalar>
DecoderLayer<Scalar> load_layer(const moe::io::Checkpoint& checkpoint, const ModelConfig& config,
                                Index layer, const MixtureLoader<Scalar>& load_mixture) {
  using Layer = DecoderLayer<Scalar>;
  const moe::io::Tensors& tensors = checkpoint.tensors();
  const std::string prefix = std::string("model.layers.").append(std::to_string(layer)).append(".");
  const auto load_feed_forward =
      [&]() -> std::variant<typename Layer::Sparse, typename Layer::Dense> {
    if (config.is_dense(layer))
      return moe::SharedExperts(load_dense_bank<Scalar>(tensors, config, prefix + "mlp."));
    return load_mixture ? load_mixture(checkpoint, layer) : checkpoint.layer<Scalar>(layer);
  };
  return {load_norm<RmsNorm<Scalar>>(tensors, config, prefix + "input_layernorm.weight"),
          Attention<Scalar>(tensors, config, prefix + "self_attn."),
          load_norm<RmsNorm<Scalar>>(tensors, config, prefix + "post_attention_layernorm.weight"),
          load_feed_forward()};
}

}  // namespace

template <class Scalar>
Model<Scalar>::Model(const moe::io::Checkpoint& checkpoint,
                     const MixtureLoader<Scalar>& load_mixture)
    : config_(read_config(checkpoint.config(), checkpoint.config_source())),
      embedding_(checkpoint.tensors().matrix<Scalar>("model.embed_tokens.weight",
                                                     config_.vocab_size, config_.d_model)),
      norm_(load_norm<RmsNorm<Scalar>>(checkpoint.tensors(), config_, "model.norm.weight")),
      head_(config_.has_tied_head ? embedding_
                                  : checkpoint.tensors().matrix<Scalar>(
                                        "lm_head.weight", config_.vocab_size, config_.d_model)) {
  for (Index layer = 0; layer < config_.num_layers; ++layer)
    layers_.push_back(load_layer<Scalar>(checkpoint, config_, layer, load_mixture));
}

template <class Scalar>
Matrix<Scalar> Model<Scalar>::embed(std::span<const Token> tokens) const {
  Matrix<Scalar> x(static_cast<Index>(tokens.size()), config_.d_model);  // (T, D)
  for (Index t = 0; t < x.rows(); ++t) {
    const Token token = tokens[static_cast<std::size_t>(t)];
    if (token < 0 || token >= config_.vocab_size)
      throw std::invalid_argument("the vocabulary has no token " + std::to_string(token));
    x.row(t) = embedding_.row(token);
  }
  return x;
}

template <class Scalar>
Matrix<Scalar> Model<Scalar>::forward(std::span<const Token> tokens, Session<Scalar>& session,
                                      const BlockObserver<Scalar>& observer) const {
  const Index positions = static_cast<Index>(tokens.size()) / session.sequences();
  if (positions * session.sequences() != static_cast<Index>(tokens.size()))
    throw std::invalid_argument("the sequences differ in length");
  if (session.length() + positions > session.capacity())
    throw std::invalid_argument("the session has no room for more positions");

  Matrix<Scalar> x = embed(tokens);            // (T, D)
  Matrix<Scalar> normed(x.rows(), x.cols());   // (T, D)
  Matrix<Scalar> mixture(x.rows(), x.cols());  // (T, D)
  const Rotary<Scalar> rotary(config_, session.length(), positions);
  moe::Workspace<Scalar>& workspace = session.workspace();
  for (Index n = 0; n < config_.num_layers; ++n) {
    const DecoderLayer<Scalar>& layer = layers_[static_cast<std::size_t>(n)];
    layer.attention_norm(x, normed);
    x += layer.attention(normed, rotary, session, session.layer(n));
    layer.feed_forward_norm(x, normed);
    if (const auto* const sparse = std::get_if<0>(&layer.feed_forward)) {
      const moe::RouteOptions options{.keep_logits = false, .keep_scores = bool(observer)};
      const moe::Routing<Scalar>& routing = sparse->forward(normed, mixture, workspace, options);
      x += mixture;
      if (observer) observer(n, normed, routing);
    } else {
      const auto& dense = std::get<1>(layer.feed_forward);
      dense.run(normed, workspace);
      dense.add(workspace, x);
    }
  }
  session.advance(positions);
  norm_(x, normed);
  return normed;
}

template class Model<float>;
template class Model<double>;

}  // namespace language_model
