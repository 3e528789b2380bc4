// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// oneDNN's matmul on weights that it packed itself, in single precision and in eight bits.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <omp.h>
#include <type_traits>
#include <utility>
#include <vector>

#include "peers/native.hpp"
#include "peers/peer.hpp"

namespace benchmarks {
namespace {

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

/// y (rows, outputs) = x (rows, inner) W^T, x and W of the type, y of floats.
class Matmul {
 public:
  /// Shapes  weights (outputs, inner), of the type.
  Matmul(const void* weights, moe::Index outputs, moe::Index inner, dnnl::memory::data_type type,
         dnnl::primitive_attr attributes = {})
      : outputs_(outputs), inner_(inner), type_(type), attributes_(std::move(attributes)) {
    using dnnl::memory;
    // The layout that it wants for some rows; other numbers of rows then use it, too.
    const auto any = memory::desc({inner_, outputs_}, type_, memory::format_tag::any);
    const auto wanted = description(32, any).weights_desc();
    const memory::desc plain({inner_, outputs_}, type_, memory::format_tag::ba);
    memory source(plain, engine(), const_cast<void*>(weights));
    packed_ = memory(wanted, engine());
    dnnl::stream stream(engine());
    dnnl::reorder(source, packed_).execute(stream, source, packed_);
    stream.wait();
  }

  void run(const void* x, moe::Index rows, float* y) const {
    using dnnl::memory;
    thread_local dnnl::stream stream(engine());
    const Call& call = call_for(rows);
    memory in(call.source, engine(), const_cast<void*>(x));
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
    const memory::desc source({rows, inner_}, type_, memory::format_tag::ab);
    const memory::desc destination({rows, outputs_}, memory::data_type::f32,
                                   memory::format_tag::ab);
    return {dnnl::matmul::desc(source, weights, destination), attributes_, engine()};
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
  dnnl::memory::data_type type_;
  dnnl::primitive_attr attributes_;
  dnnl::memory packed_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<moe::Index, bool>, Call> calls_;
};

class OneDnnProduct final : public PeerProduct {
 public:
  explicit OneDnnProduct(const moe::Matrix<float>& weights)
      : product_(weights.data(), weights.rows(), weights.cols(), dnnl::memory::data_type::f32) {}
  void run(const float* x, moe::Index rows, float* y) const override { product_.run(x, rows, y); }

 private:
  Matmul product_;
};

/// Codes of a matrix's rows, the largest of each 127, and their scales.
struct Codes {
  std::vector<std::int8_t> codes;
  std::vector<float> scales;

  explicit Codes(const moe::Matrix<float>& m)
      : codes(static_cast<std::size_t>(m.size())), scales(static_cast<std::size_t>(m.rows())) {
    native::to_int8(m.data(), m.rows(), m.cols(), codes.data(), scales.data());
  }
  dnnl::primitive_attr attributes() const {
    dnnl::primitive_attr attributes;
    attributes.set_output_scales(1 << 1, scales);
    return attributes;
  }
};

/// Rows are quantised for each product: gate and up, as two products, do the same work twice, which
/// takes them less than a hundredth of their time.
class OneDnnInt8Product final : public PeerProduct {
 public:
  explicit OneDnnInt8Product(const moe::Matrix<float>& weights)
      : OneDnnInt8Product(weights, Codes(weights)) {}

  void run(const float* x, moe::Index rows, float* y) const override {
    thread_local std::vector<std::int8_t> codes;
    thread_local std::vector<float> scales;
    codes.resize(std::max(codes.size(), static_cast<std::size_t>(rows * inner_)));
    scales.resize(std::max(scales.size(), static_cast<std::size_t>(rows)));
    // Those of this thread, for all that share its rows.
    std::int8_t* const all_codes = codes.data();
    float* const all_scales = scales.data();
#pragma omp parallel for
    for (moe::Index r = 0; r < rows; ++r)
      native::to_int8(x + r * inner_, 1, inner_, all_codes + r * inner_, all_scales + r);
    product_.run(all_codes, rows, y);
#pragma omp parallel for
    for (moe::Index r = 0; r < rows; ++r) native::scale(all_scales[r], y + r * outputs_, outputs_);
  }

 private:
  OneDnnInt8Product(const moe::Matrix<float>& weights, const Codes& codes)
      : outputs_(weights.rows()),
        inner_(weights.cols()),
        product_(codes.codes.data(), outputs_, inner_, dnnl::memory::data_type::s8,
                 codes.attributes()) {}

  moe::Index outputs_;
  moe::Index inner_;
  Matmul product_;
};

template <class Product>
class OneDnnPeer final : public Peer {
 public:
  std::string name() const override { return "onednn"; }
  bool is_int8() const override { return std::is_same_v<Product, OneDnnInt8Product>; }
  std::unique_ptr<PeerProduct> prepare(const moe::Matrix<float>& weights) const override {
    return std::make_unique<Product>(weights);
  }
  void set_threads(int threads) const override { omp_set_num_threads(threads); }
};

}  // namespace

std::unique_ptr<Peer> make_onednn() {
  return std::make_unique<OneDnnPeer<OneDnnProduct>>();
}

std::unique_ptr<Peer> make_onednn_int8() {
  return std::make_unique<OneDnnPeer<OneDnnInt8Product>>();
}

}  // namespace benchmarks
