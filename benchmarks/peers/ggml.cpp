// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// ggml's block: one mul_mat_id for each of gate, up and down, as llama.cpp builds it.
#include <array>
#include <cstddef>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <map>
#include <omp.h>
#include <stdexcept>
#include <utility>

#include "peers/peer.hpp"

namespace benchmarks {
namespace {

template <class T, void (*release)(T*)>
struct Releaser {
  void operator()(T* object) const { release(object); }
};
using Context = std::unique_ptr<ggml_context, Releaser<ggml_context, ggml_free>>;
using Backend = std::unique_ptr<ggml_backend, Releaser<ggml_backend, ggml_backend_free>>;
using Buffer =
    std::unique_ptr<ggml_backend_buffer, Releaser<ggml_backend_buffer, ggml_backend_buffer_free>>;

Context make_context(std::size_t tensors) {
  return Context(
      ggml_init({tensors * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
}

class GgmlBlock final : public PeerBlock {
 public:
  GgmlBlock(const Shape& shape, const ExpertSource& experts)
      : shape_(shape), backend_(ggml_backend_cpu_init()), context_(make_context(8)) {
    ggml_backend_cpu_set_n_threads(backend_.get(), omp_get_max_threads());
    const bool gated = shape.gating == Gating::gated;
    const auto tensor = [&](moe::Index inner, moe::Index outputs) {
      return ggml_new_tensor_3d(context_.get(), GGML_TYPE_F32, inner, outputs, shape.num_experts);
    };
    if (gated) gate_ = tensor(shape.d_model, shape.d_ff);
    up_ = tensor(shape.d_model, shape.d_ff);
    down_ = tensor(shape.d_ff, shape.d_model);
    weights_.reset(ggml_backend_alloc_ctx_tensors(context_.get(), backend_.get()));
    if (!weights_) throw std::bad_alloc();
    for (moe::Index e = 0; e < shape.num_experts; ++e) {
      const moe::ExpertMatrices<float> m = experts(e);
      const auto set = [&](ggml_tensor* to, const moe::Matrix<float>& from) {
        const std::size_t bytes = static_cast<std::size_t>(from.size()) * sizeof(float);
        ggml_backend_tensor_set(to, from.data(), static_cast<std::size_t>(e) * bytes, bytes);
      };
      if (gated) set(gate_, m.gate);
      set(up_, m.up);
      set(down_, m.down);
    }
  }

  void forward(const moe::Matrix<float>& x, const moe::Routing<float>& routing,
               moe::Matrix<float>& y) override {
    Graph& graph = graph_of(x.rows());
    const auto copy = [](ggml_tensor* to, const auto& from) {
      ggml_backend_tensor_set(to, from.data(), 0, ggml_nbytes(to));
    };
    copy(graph.x, x);
    copy(graph.experts, routing.experts);
    copy(graph.weights, routing.weights);
    if (ggml_backend_graph_compute(backend_.get(), graph.graph) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml's graph failed");
    ggml_backend_tensor_get(graph.y, y.data(), 0, ggml_nbytes(graph.y));
  }

 private:
  /// The block for one number of tokens.
  struct Graph {
    Context context;
    Buffer buffer;
    ggml_cgraph* graph;
    ggml_tensor* x;
    ggml_tensor* experts;
    ggml_tensor* weights;
    ggml_tensor* y;
  };

  Graph& graph_of(moe::Index tokens) {
    if (const auto found = graphs_.find(tokens); found != graphs_.end()) return found->second;
    Graph g;
    g.context = make_context(64);
    ggml_context* const c = g.context.get();
    const moe::Index top_k = shape_.top_k;
    g.x = ggml_new_tensor_3d(c, GGML_TYPE_F32, shape_.d_model, 1, tokens);
    g.experts = ggml_new_tensor_2d(c, GGML_TYPE_I32, top_k, tokens);
    g.weights = ggml_new_tensor_3d(c, GGML_TYPE_F32, 1, top_k, tokens);
    ggml_tensor* hidden = ggml_mul_mat_id(c, up_, g.x, g.experts);  // (d_ff, K, T)
    hidden = gate_ != nullptr
                 ? ggml_swiglu_split(c, ggml_mul_mat_id(c, gate_, g.x, g.experts), hidden)
                 : ggml_relu(c, hidden);
    ggml_tensor* const rows =
        ggml_mul(c, ggml_mul_mat_id(c, down_, hidden, g.experts), g.weights);  // (D, K, T)
    const auto slot = [&](moe::Index k) {
      return ggml_view_2d(c, rows, shape_.d_model, tokens, rows->nb[2],
                          static_cast<std::size_t>(k) * rows->nb[1]);
    };
    g.y = slot(0);
    for (moe::Index k = 1; k < top_k; ++k) g.y = ggml_add(c, g.y, slot(k));
    if (top_k == 1) g.y = ggml_cont(c, g.y);
    g.graph = ggml_new_graph(c);
    ggml_build_forward_expand(g.graph, g.y);
    g.buffer.reset(ggml_backend_alloc_ctx_tensors(c, backend_.get()));
    if (!g.buffer) throw std::bad_alloc();
    return graphs_.emplace(tokens, std::move(g)).first->second;
  }

  Shape shape_;
  Backend backend_;
  Context context_;
  Buffer weights_;
  ggml_tensor* gate_ = nullptr;
  ggml_tensor* up_ = nullptr;
  ggml_tensor* down_ = nullptr;
  std::map<moe::Index, Graph> graphs_;
};

class GgmlPeer final : public Peer {
 public:
  std::string name() const override { return "ggml"; }
  std::unique_ptr<PeerBlock> block(const Shape& shape, const ExpertSource& experts) const override {
    return std::make_unique<GgmlBlock>(shape, experts);
  }
};

}  // namespace

std::unique_ptr<Peer> make_ggml() {
  return std::make_unique<GgmlPeer>();
}

}  // namespace benchmarks
