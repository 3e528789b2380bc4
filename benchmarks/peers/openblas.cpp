// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include <cblas.h>

#include "peers/peer.hpp"

namespace benchmarks {
namespace {

class OpenBlasProduct final : public PeerProduct {
 public:
  explicit OpenBlasProduct(const moe::Matrix<float>& weights) : weights_(weights) {}
  void run(const float* x, moe::Index rows, float* y) const override {
    const auto m = static_cast<blasint>(rows);
    const auto n = static_cast<blasint>(weights_.rows());
    const auto k = static_cast<blasint>(weights_.cols());
    if (rows == 1) {
      cblas_sgemv(CblasRowMajor, CblasNoTrans, n, k, 1, weights_.data(), k, x, 1, 0, y, 1);
    } else {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, x, k, weights_.data(), k, 0,
                  y, n);
    }
  }

 private:
  moe::Matrix<float> weights_;
};

class OpenBlasPeer final : public Peer {
 public:
  std::string name() const override { return "openblas"; }
  std::unique_ptr<PeerProduct> prepare(const moe::Matrix<float>& weights) const override {
    return std::make_unique<OpenBlasProduct>(weights);
  }
  void set_threads(int threads) const override { openblas_set_num_threads(threads); }
};

}  // namespace

std::unique_ptr<Peer> make_openblas() {
  return std::make_unique<OpenBlasPeer>();
}

}  // namespace benchmarks
