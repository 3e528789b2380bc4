// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include "peers/native.hpp"
#include "peers/peer.hpp"

namespace benchmarks {
namespace {

class EigenProduct final : public PeerProduct {
 public:
  explicit EigenProduct(const moe::Matrix<float>& weights) : weights_(weights) {}
  void run(const float* x, moe::Index rows, float* y) const override {
    native::eigen_product(x, rows, weights_.cols(), weights_.data(), weights_.rows(), y);
  }

 private:
  moe::Matrix<float> weights_;
};

class EigenPeer final : public Peer {
 public:
  std::string name() const override { return "eigen"; }
  std::unique_ptr<PeerProduct> prepare(const moe::Matrix<float>& weights) const override {
    return std::make_unique<EigenProduct>(weights);
  }
  void set_threads(int threads) const override { native::eigen_threads(threads); }
};

}  // namespace

std::unique_ptr<Peer> make_eigen() {
  return std::make_unique<EigenPeer>();
}

}  // namespace benchmarks
