// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "peers/peer.hpp"

namespace benchmarks {
namespace {

at::Tensor view(const float* data, moe::Index rows, moe::Index cols) {
  return at::from_blob(const_cast<float*>(data), {rows, cols}, at::kFloat);
}

/// Products with dense weights as they are; the packed ones that libtorch 1.13 has are oneDNN's,
/// which is a peer of its own.
class TorchProduct final : public PeerProduct {
 public:
  explicit TorchProduct(const moe::Matrix<float>& weights)
      : weights_(view(weights.data(), weights.rows(), weights.cols()).clone()) {}
  void run(const float* x, moe::Index rows, float* y) const override {
    at::NoGradGuard guard;
    at::Tensor out = view(y, rows, weights_.size(0));
    if (rows == 1) {
      at::Tensor vector = out.view({weights_.size(0)});
      at::mv_out(vector, weights_, view(x, rows, weights_.size(1)).view({weights_.size(1)}));
      return;
    }
    at::mm_out(out, view(x, rows, weights_.size(1)), weights_.t());
  }

 private:
  at::Tensor weights_;
};

class TorchPeer final : public Peer {
 public:
  std::string name() const override { return "libtorch"; }
  std::unique_ptr<PeerProduct> prepare(const moe::Matrix<float>& weights) const override {
    return std::make_unique<TorchProduct>(weights);
  }
  void set_threads(int threads) const override { at::set_num_threads(threads); }
};

}  // namespace

std::unique_ptr<Peer> make_torch() {
  return std::make_unique<TorchPeer>();
}

}  // namespace benchmarks
