// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// One file of reference data: weights, input and expected values of one MoE block.
#pragma once

#include <cstddef>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moe/io/tensors.hpp>
#include <moe/moe.hpp>

namespace conformance {

using moe::Index;
using moe::Matrix;

class GoldenCase {
 public:
  /// `entry` is the case's entry of the folder's index.
  GoldenCase(const std::string& path, const nlohmann::json& entry)
      : tensors_(moe::io::Tensors::open(path)) {
    if (text("format") != "moe-golden-1") throw std::runtime_error(path + ": unknown format");
    const nlohmann::json& tolerance = entry.at("tolerance");
    const auto read = [&](const char* key) {
      // Without tokens there is nothing that could differ.
      return tolerance.at(key).is_number() ? tolerance.at(key).get<double>() : 0;
    };
    output_tolerance_double_ = read("output_abs_f64");
    output_tolerance_float_ = read("output_abs_f32");
    if (!tolerance.contains("grad_relative_to_max_f64")) return;
    gradient_tolerance_double_ = read("grad_relative_to_max_f64");
    gradient_tolerance_float_ = read("grad_relative_to_max_f32");
  }

  const moe::io::Tensors& tensors() const noexcept { return tensors_; }
  std::string name() const { return text("case"); }
  std::string family() const { return text("family"); }
  std::string weights_prefix() const { return text("weights_prefix"); }
  bool has(const std::string& tensor) const { return tensors_.contains(tensor); }
  /// Whether a tensor has been read.
  bool has_used(const std::string& tensor) const { return used_.count(tensor) != 0; }
  /// Tells that it is read in another way than by `matrix`.
  void use(const std::string& tensor) const { used_.insert(tensor); }
  bool has_entry(const std::string& key) const { return tensors_.metadata().count(key) != 0; }

  /// Metadata entries.
  const std::string& text(const std::string& key) const {
    const auto found = tensors_.metadata().find(key);
    if (found == tensors_.metadata().end())
      throw std::runtime_error(tensors_.path() + ": no metadata entry '" + key + "'");
    return found->second;
  }
  std::string text(const std::string& key, const std::string& otherwise) const {
    return has_entry(key) ? text(key) : otherwise;
  }
  Index size(const std::string& key) const {
    return parsed<Index>(key,
                         [](const std::string& t, std::size_t* end) { return std::stol(t, end); });
  }
  Index size(const std::string& key, Index otherwise) const {
    return has_entry(key) ? size(key) : otherwise;
  }
  double number(const std::string& key) const {
    return parsed<double>(key,
                          [](const std::string& t, std::size_t* end) { return std::stod(t, end); });
  }
  double number(const std::string& key, double otherwise) const {
    return has_entry(key) ? number(key) : otherwise;
  }
  /// An entry that is "0" or "1".
  bool flag(const std::string& key) const {
    if (text(key) != "0" && text(key) != "1")
      throw std::runtime_error("'" + key + "' is '" + text(key) + "'");
    return text(key) == "1";
  }
  bool flag(const std::string& key, bool otherwise) const {
    return has_entry(key) ? flag(key) : otherwise;
  }

  /// A tensor as it is stored; all dimensions but the last count as rows, a vector is a column.
  template <class Scalar>
  Matrix<Scalar> matrix(const std::string& tensor) const {
    use(tensor);
    const std::vector<Index>& shape = tensors_.tensor(tensor).shape;
    if (shape.empty()) return tensors_.matrix<Scalar>(tensor, 1, 1);
    if (shape.size() == 1) return tensors_.matrix<Scalar>(tensor, shape[0], 1);
    Index rows = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    return tensors_.rows<Scalar>(tensor, shape, 0, rows);
  }

  double scalar(const std::string& tensor) const { return matrix<double>(tensor)(0, 0); }

  double output_tolerance(bool is_double) const noexcept {
    return is_double ? output_tolerance_double_ : output_tolerance_float_;
  }
  /// Relative to a gradient's largest value.
  double gradient_tolerance(bool is_double) const noexcept {
    return is_double ? gradient_tolerance_double_ : gradient_tolerance_float_;
  }

 private:
  template <class Value, class Parse>
  Value parsed(const std::string& key, Parse&& parse) const {
    const std::string& value = text(key);
    std::size_t end = 0;
    try {
      const Value result = parse(value, &end);
      if (end == value.size()) return result;
    } catch (const std::logic_error&) {  // No number, or out of range.
    }
    throw std::runtime_error("'" + key + "' is '" + value + "'");
  }

  moe::io::Tensors tensors_;
  mutable std::set<std::string> used_;
  double output_tolerance_double_ = 0;
  double output_tolerance_float_ = 0;
  double gradient_tolerance_double_ = 0;
  double gradient_tolerance_float_ = 0;
};

}  // namespace conformance
