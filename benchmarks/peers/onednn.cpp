// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// oneDNN's matmul on weights that it packed itself.
#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <omp.h>
#include <utility>

#include "peers/peer.hpp"

namespace benchmarks {
namespace {

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

class OneDnnProduct final : public PeerProduct {
 public:
  explicit OneDnnProduct(const moe::Matrix<float>& weights)
      : outputs_(weights.rows()), inner_(weights.cols()) {
    using dnnl::memory;
    // The layout that it wants for some rows; other numbers of rows then use it, too.
    const auto any =
        memory::desc({inner_, outputs_}, memory::data_type::f32, memory::format_tag::any);
    const auto wanted = description(32, any).weights_desc();
    const memory::desc plain({inner_, outputs_}, memory::data_type::f32, memory::format_tag::ba);
    memory source(plain, engine(), const_cast<float*>(weights.data()));
    packed_ = memory(wanted, engine());
    dnnl::stream stream(engine());
    dnnl::reorder(source, packed_).execute(stream, source, packed_);
    stream.wait();
  }

  void run(const float* x, moe::Index rows, float* y) const override {
    using dnnl::memory;
    thread_local dnnl::stream stream(engine());
    const Call& call = call_for(rows);
    memory in(call.source, engine(), const_cast<float*>(x));
    memory out(call.destination, engine(), y);
    call.matmul.execute(stream,
                        {{DNNL_ARG_SRC, in}, {DNNL_ARG_WEIGHTS, packed_}, {DNNL_ARG_DST, out}});
    stream.wait();
  }

 private:
  struct Call {
    dnnl::matmul matmul;
    dnnl::memory::desc source;
    dnnl::memory::desc destination;
  };

  dnnl::matmul::primitive_desc description(moe::Index rows,
                                           const dnnl::memory::desc& weights) const {
    using dnnl::memory;
    const memory::desc source({rows, inner_}, memory::data_type::f32, memory::format_tag::ab);
    const memory::desc destination({rows, outputs_}, memory::data_type::f32,
                                   memory::format_tag::ab);
    return {dnnl::matmul::desc(source, weights, destination), engine()};
  }

  const Call& call_for(moe::Index rows) const {
    // It plans for the number of threads that there are: one, where experts run side by side.
    const bool is_alone = omp_in_parallel() != 0;
    if (is_alone) omp_set_num_threads(1);
    const std::lock_guard lock(mutex_);
    const std::pair key{rows, is_alone};
    const auto found = calls_.find(key);
    if (found != calls_.end()) return found->second;
    const auto made = description(rows, packed_.get_desc());
    return calls_.emplace(key, Call{dnnl::matmul(made), made.src_desc(), made.dst_desc()})
        .first->second;
  }

  moe::Index outputs_;
  moe::Index inner_;
  dnnl::memory packed_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<moe::Index, bool>, Call> calls_;
};

class OneDnnPeer final : public Peer {
 public:
  std::string name() const override { return "onednn"; }
  std::unique_ptr<PeerProduct> prepare(const moe::Matrix<float>& weights) const override {
    return std::make_unique<OneDnnProduct>(weights);
  }
  void set_threads(int threads) const override { omp_set_num_threads(threads); }
};

}  // namespace

std::unique_ptr<Peer> make_onednn() {
  return std::make_unique<OneDnnPeer>();
}

}  // namespace benchmarks
