// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The bundled model, its text, and the figures that another implementation computed for them.
#pragma once

#include <cstddef>
#include <limits>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "language_model/bytes.hpp"
#include "language_model/model.hpp"

namespace language_model {

inline const std::string model_path = MOE_EXAMPLE_DATA "/jargon-moe.safetensors";
inline const std::string text_path = MOE_EXAMPLE_DATA "/jargon_eval.txt";
inline const std::string training_path = MOE_EXAMPLE_DATA "/training/jargon_train.txt";

/// Bytes of one window of the reference figures.
inline constexpr std::size_t window_bytes = 128;

template <class Scalar>
const Model<Scalar>& bundled_model() {
  static const Model<Scalar> model(moe::io::Checkpoint::open(model_path));
  return model;
}

inline const std::string& bundled_text() {
  static const std::string text = read_file(text_path);
  return text;
}

/// The text that makes `windows` full windows.
inline std::string first_windows(std::size_t windows) {
  return bundled_text().substr(0, windows * window_bytes + 1);
}

inline const nlohmann::json& reference() {
  static const nlohmann::json json =
      nlohmann::json::parse(read_file(MOE_TEST_DATA "/jargon_reference.json"));
  return json;
}

/// Sets the number of threads until the end of the scope.
class ScopedThreads {
 public:
#if defined(_OPENMP)
  explicit ScopedThreads(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ScopedThreads() {
    omp_set_num_threads(before_);
  }
#else
  explicit ScopedThreads(int threads) : before_(threads) {}
#endif
  ScopedThreads(const ScopedThreads&) = delete;
  ScopedThreads& operator=(const ScopedThreads&) = delete;

 private:
  int before_;
};

/// What rounding may do to a logit of the bundled model, whose logits go up to 15 in magnitude: 4
/// layers, each a chain of about 6 products of up to 192 terms, make n = 5000 roundings, and random
/// ones add up like 15 * sqrt(n) * eps; four times that.
template <class Scalar>
double logit_tolerance() {
  return 4 * 15 * 71 * static_cast<double>(std::numeric_limits<Scalar>::epsilon());
}

}  // namespace language_model
