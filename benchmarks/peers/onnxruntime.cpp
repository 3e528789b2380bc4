// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// onnxruntime's MoE operator, in a model of one node whose weights are the caller's memory.
#include <array>
#include <cmath>
#include <cstdint>
#include <omp.h>
#include <onnxruntime_c_api.h>
#include <stdexcept>
#include <string_view>

#include "peers/peer.hpp"

namespace benchmarks {
namespace {

const OrtApi& api() {
  static const OrtApi* const found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (found == nullptr) throw std::runtime_error("onnxruntime is older than its header");
  return *found;
}

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api().GetErrorMessage(status);
  api().ReleaseStatus(status);
  throw std::runtime_error("onnxruntime: " + message);
}

template <class T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

/// Writes the fields of a protocol-buffer message, of which a model file consists.
class Message {
 public:
  Message& number(int field, std::uint64_t value) {
    varint(static_cast<std::uint64_t>(field) << 3);
    varint(value);
    return *this;
  }
  Message& text(int field, std::string_view value) {
    varint(static_cast<std::uint64_t>(field) << 3 | 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& single(int field, float value) {
    varint(static_cast<std::uint64_t>(field) << 3 | 5);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Message& message(int field, const Message& value) { return text(field, value.bytes_); }
  const std::string& bytes() const { return bytes_; }

 private:
  void varint(std::uint64_t value) {
    for (; value >= 128; value >>= 7) bytes_ += static_cast<char>(value | 128);
    bytes_ += static_cast<char>(value);
  }
  std::string bytes_;
};

// The numbers of the fields are those of onnx.proto.
Message attribute(const char* name, std::uint64_t value) {
  return Message().text(1, name).number(3, value).number(20, 2);
}
Message attribute(const char* name, float value) {
  return Message().text(1, name).single(2, value).number(20, 1);
}
Message attribute(const char* name, const char* value) {
  return Message().text(1, name).text(4, value).number(20, 3);
}
/// Single precision, (T, cols).
Message matrix_of_tokens(const char* name, moe::Index cols) {
  Message shape;
  shape.message(1, Message().text(2, "T"));
  shape.message(1, Message().number(1, static_cast<std::uint64_t>(cols)));
  const Message tensor = Message().number(1, 1).message(2, shape);
  return Message().text(1, name).message(2, Message().message(1, tensor));
}
/// Single precision, supplied when the session is made.
Message weights(const char* name, const std::array<std::int64_t, 3>& shape) {
  Message tensor;
  for (const std::int64_t size : shape) tensor.number(1, static_cast<std::uint64_t>(size));
  tensor.number(2, 1).text(8, name);
  tensor.message(13, Message().text(1, "location").text(2, name));
  return tensor.number(14, 1);
}

class OnnxBlock final : public PeerBlock {
 public:
  OnnxBlock(const Shape& shape, const ExpertSource& experts)
      : shape_(shape),
        gated_(shape.gating == Gating::gated),
        up_shape_{shape.num_experts, (gated_ ? 2 : 1) * shape.d_ff, shape.d_model},
        down_shape_{shape.num_experts, shape.d_model, shape.d_ff} {
    up_.resize(shape.num_experts * up_shape_[1], shape.d_model);
    down_.resize(shape.num_experts * shape.d_model, shape.d_ff);
    for (moe::Index e = 0; e < shape.num_experts; ++e) {
      const moe::ExpertMatrices<float> m = experts(e);
      for (moe::Index i = 0; i < shape.d_ff; ++i) {
        if (gated_) {  // Rows of gate and up in turn.
          up_.row(e * up_shape_[1] + 2 * i) = m.gate.row(i);
          up_.row(e * up_shape_[1] + 2 * i + 1) = m.up.row(i);
        } else {
          up_.row(e * up_shape_[1] + i) = m.up.row(i);
        }
      }
      down_.middleRows(e * shape.d_model, shape.d_model) = m.down;
    }
    OrtEnv* env = nullptr;
    check(api().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "moe", &env));
    env_.reset(env);
    OrtMemoryInfo* memory = nullptr;
    check(api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    memory_.reset(memory);
    make_session();
  }

  void forward(const moe::Matrix<float>& x, const moe::Routing<float>& routing,
               moe::Matrix<float>& y) override {
    // Logits whose softmax over the chosen gives the weights.
    logits_.setConstant(x.rows(), shape_.num_experts, -1e4F);
    for (moe::Index t = 0; t < x.rows(); ++t)
      for (moe::Index k = 0; k < shape_.top_k; ++k)
        logits_(t, routing.experts(t, k)) = std::log(routing.weights(t, k));
    const std::array<Handle<OrtValue>, 3> values{
        value(x.data(), {x.rows(), shape_.d_model}),
        value(logits_.data(), {x.rows(), shape_.num_experts}),
        value(y.data(), {x.rows(), shape_.d_model})};
    const char* const names[] = {"x", "logits"};
    const OrtValue* const inputs[] = {values[0].get(), values[1].get()};
    const char* const output_names[] = {"y"};
    OrtValue* outputs[] = {values[2].get()};
    check(api().Run(session_.get(), nullptr, names, inputs, 2, output_names, 1, outputs));
  }

 private:
  template <std::size_t rank>
  Handle<OrtValue> value(const float* data, const std::int64_t (&shape)[rank]) const {
    std::size_t bytes = sizeof(float);
    for (const std::int64_t size : shape) bytes *= static_cast<std::size_t>(size);
    OrtValue* made = nullptr;
    check(api().CreateTensorWithDataAsOrtValue(memory_.get(), const_cast<float*>(data), bytes,
                                               shape, rank, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                               &made));
    return {made, api().ReleaseValue};
  }

  std::string model() const {
    Message node;
    for (const char* const input : {"x", "logits", "up", "", "down"}) node.text(1, input);
    node.text(2, "y").text(4, "MoE").text(7, "com.microsoft");
    node.message(5, attribute("k", static_cast<std::uint64_t>(shape_.top_k)));
    node.message(5, attribute("normalize_routing_weights", std::uint64_t{1}));
    node.message(5, attribute("activation_type", gated_ ? "swiglu" : "relu"));
    if (gated_) {
      node.message(5, attribute("swiglu_fusion", std::uint64_t{1}));
      node.message(5, attribute("activation_alpha", 1.0F));
      node.message(5, attribute("activation_beta", 0.0F));
    }
    Message graph;
    graph.message(1, node).text(2, "block");
    graph.message(5, weights("up", up_shape_)).message(5, weights("down", down_shape_));
    graph.message(11, matrix_of_tokens("x", shape_.d_model));
    graph.message(11, matrix_of_tokens("logits", shape_.num_experts));
    graph.message(12, matrix_of_tokens("y", shape_.d_model));
    Message whole;
    whole.number(1, 8).message(7, graph);
    whole.message(8, Message().text(1, "").number(2, 17));
    whole.message(8, Message().text(1, "com.microsoft").number(2, 1));
    return whole.bytes();
  }

  void make_session() {
    OrtSessionOptions* options = nullptr;
    check(api().CreateSessionOptions(&options));
    const Handle<OrtSessionOptions> owner(options, api().ReleaseSessionOptions);
    check(api().SetIntraOpNumThreads(options, omp_get_max_threads()));
    const std::array<Handle<OrtValue>, 2> values{
        value(up_.data(), {up_shape_[0], up_shape_[1], up_shape_[2]}),
        value(down_.data(), {down_shape_[0], down_shape_[1], down_shape_[2]})};
    const char* const names[] = {"up", "down"};
    const OrtValue* const initializers[] = {values[0].get(), values[1].get()};
    check(api().AddExternalInitializers(options, names, initializers, 2));
    const std::string bytes = model();
    OrtSession* session = nullptr;
    check(api().CreateSessionFromArray(env_.get(), bytes.data(), bytes.size(), options, &session));
    session_.reset(session);
  }

  Shape shape_;
  bool gated_;
  std::array<std::int64_t, 3> up_shape_;
  std::array<std::int64_t, 3> down_shape_;
  moe::Matrix<float> up_;    // (E * up outputs, D)
  moe::Matrix<float> down_;  // (E * D, d_ff)
  moe::Matrix<float> logits_;
  Handle<OrtEnv> env_{nullptr, api().ReleaseEnv};
  Handle<OrtMemoryInfo> memory_{nullptr, api().ReleaseMemoryInfo};
  Handle<OrtSession> session_{nullptr, api().ReleaseSession};
};

class OnnxPeer final : public Peer {
 public:
  std::string name() const override { return "onnxruntime"; }
  std::unique_ptr<PeerBlock> block(const Shape& shape, const ExpertSource& experts) const override {
    return std::make_unique<OnnxBlock>(shape, experts);
  }
};

}  // namespace

std::unique_ptr<Peer> make_onnxruntime() {
  return std::make_unique<OnnxPeer>();
}

}  // namespace benchmarks
