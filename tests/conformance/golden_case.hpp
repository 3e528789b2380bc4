// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// One file of reference data: weights, input and expected values of one MoE block.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include <moe/io/tensors.hpp>
#include <moe/moe.hpp>

namespace conformance {

class GoldenCase {
 public:
  explicit GoldenCase(const std::string& path) : tensors_(moe::io::Tensors::open(path)) {
    if (text("format") != "moe-golden-1") throw std::runtime_error(path + ": unknown format");
  }

  const moe::io::Tensors& tensors() const noexcept { return tensors_; }
  std::string name() const { return text("case"); }
  std::string family() const { return text("family"); }
  std::string weights_prefix() const { return text("weights_prefix"); }
  bool has(const std::string& tensor) const { return tensors_.contains(tensor); }

  /// Metadata entries.
  const std::string& text(const std::string& key) const {
    const auto found = tensors_.metadata().find(key);
    if (found == tensors_.metadata().end())
      throw std::runtime_error(tensors_.path() + ": no metadata entry '" + key + "'");
    return found->second;
  }
  std::string text(const std::string& key, const std::string& otherwise) const {
    return tensors_.metadata().count(key) != 0 ? text(key) : otherwise;
  }
  moe::Index size(const std::string& key) const { return std::stol(text(key)); }
  double number(const std::string& key) const { return std::stod(text(key)); }

  /// A tensor of at most two dimensions, as it is stored.
  template <class Scalar>
  moe::Matrix<Scalar> matrix(const std::string& tensor) const {
    const std::vector<moe::Index>& shape = tensors_.tensor(tensor).shape;
    if (shape.size() > 2) throw std::runtime_error(tensor + " has more than two dimensions");
    const moe::Index rows = shape.empty() ? 1 : shape[0];
    const moe::Index cols = shape.size() < 2 ? 1 : shape[1];
    return tensors_.matrix<Scalar>(tensor, rows, cols);
  }

  double scalar(const std::string& tensor) const { return matrix<double>(tensor)(0, 0); }

  /// How far a value may be from the expected one, as a share of the largest expected value of its
  /// tensor: the file's own tolerance of the output over the output's largest value.
  double relative_tolerance(bool is_double) const {
    const double largest = number("output_maxabs");
    const double absolute = number(is_double ? "tolerance_f64" : "tolerance_f32");
    return largest > 0 ? absolute / largest : is_double ? 1e-12 : 2e-6;
  }

 private:
  moe::io::Tensors tensors_;
};

}  // namespace conformance
