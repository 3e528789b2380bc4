// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Comparing results with what a golden case expects.
#pragma once

#include <algorithm>
#include <cstdio>
#include <limits>
#include <set>
#include <string>

#include "conformance/golden_case.hpp"

namespace conformance {

/// The worst error of one run of a case so far, in units of what is allowed: for the output what
/// the folder's index advises, for logits, weights and losses 1e-12 in double and 4e-6 in float
/// times max(1, the largest expected value); numbers of experts and tokens must be equal.
class Comparison {
 public:
  Comparison(const GoldenCase& golden, bool is_double)
      : golden_(golden),
        is_double_(is_double),
        relative_(is_double ? 1e-12 : 4e-6),
        output_(golden.output_tolerance(is_double)) {}

  const GoldenCase& golden() const noexcept { return golden_; }

  /// True if the case has a tensor of that name below "expected."; it then counts as compared.
  bool expects(const std::string& name) {
    const bool has = golden_.has("expected." + name);
    if (has) compared_.insert("expected." + name);
    return has;
  }

  template <class Actual>
  void compare(const std::string& name, const Actual& actual) {
    if (!expects(name)) return fail("there is no expected " + name);
    const Matrix<double> expected = golden_.matrix<double>("expected." + name);
    check(name, Matrix<double>(actual.template cast<double>()), expected,
          relative_ * std::max(1.0, largest(expected)));
  }

  void compare(const std::string& name, double actual) {
    compare(name, Matrix<double>::Constant(1, 1, actual));
  }

  /// Against a number of the metadata.
  void compare_entry(const std::string& key, double actual) {
    const double expected = golden_.number(key);
    check(key, Matrix<double>::Constant(1, 1, actual), Matrix<double>::Constant(1, 1, expected),
          relative_ * std::max(1.0, std::abs(expected)));
  }

  template <class Actual>
  void compare_output(const Actual& actual) {
    if (!expects("output")) return fail("there is no expected output");
    check("output", Matrix<double>(actual.template cast<double>()),
          golden_.matrix<double>("expected.output"), output_);
  }

  template <class Actual>
  void compare_exactly(const std::string& name, const Actual& actual) {
    using Integer = typename Actual::Scalar;
    if (!expects(name)) return fail("there is no expected " + name);
    const Matrix<Integer> expected = golden_.matrix<Integer>("expected." + name);
    if (expected.rows() != actual.rows() || expected.cols() != actual.cols())
      return fail(name + " has another shape");
    if (expected != actual) fail(name + " differs");
  }

  /// A gradient, within the case's tolerance relative to its largest value or `least`.
  void compare_gradient(const std::string& name, const Matrix<double>& actual,
                        const Matrix<double>& expected, double least) {
    const double relative = golden_.gradient_tolerance(is_double_);
    has_gradients_ = true;
    check("gradient of " + name, actual, expected, relative * std::max(largest(expected), least));
  }

  /// Whether any was compared.
  bool has_gradients() const noexcept { return has_gradients_; }

  void note(const std::string& text) { note_ += "; " + text; }

  void fail(const std::string& problem) {
    if (problem_.empty()) problem_ = problem;
  }

  /// Fails if anything that the case expects was left out, but the gradients, whose loader checks
  /// that for itself, and the loss that they belong to; and if a weight was not used. `block` tells
  /// the tensors that a loader has checked for itself. Noise may be there beside a rule that draws
  /// none: the summary says so.
  void check_that_all_is_used(const std::string& block) {
    for (const std::string& name : golden_.tensors().names()) {
      if (name.starts_with("expected.")) {
        if (!is_gradient(name) && compared_.count(name) == 0) fail(name + " was not compared");
      } else if (name != "grad_output" && name != "attention_mask" && !golden_.has_used(name) &&
                 (block.empty() || !name.starts_with(block))) {
        const bool is_noise = name == "noise" || name == "gumbel_noise" || name == "rts_uniform";
        if (!is_noise) fail(name + " was not used");
        note_ += "; " + name + " was not used";
      }
    }
  }

  bool passed() const { return problem_.empty() && worst_ <= 1; }

  std::string summary() const {
    if (!problem_.empty()) return problem_;
    char text[96];
    std::snprintf(text, sizeof text, "%.3f of the tolerance (%s)", worst_, worst_in_.c_str());
    return text + note_;
  }

 private:
  static bool is_gradient(const std::string& name) {
    for (const char* const kind : {"expected.grad.", "expected.nll_grad."})
      if (name.starts_with(kind)) return true;
    return name == "expected.grad_input" || name == "expected.nll_grad_input" ||
           name == "expected.loss";
  }

  static double largest(const Matrix<double>& m) {
    return m.size() == 0 ? 0 : m.cwiseAbs().maxCoeff();
  }

  void check(const std::string& name, const Matrix<double>& actual, const Matrix<double>& expected,
             double allowed) {
    if (actual.rows() != expected.rows() || actual.cols() != expected.cols())
      return fail(name + " has another shape");
    if (expected.size() == 0) return;
    const Matrix<double> difference = actual - expected;
    const double error = largest(difference);
    // NaN counts as infinitely wrong.
    const double ratio = !difference.allFinite() ? std::numeric_limits<double>::infinity()
                         : error > 0             ? error / allowed
                                                 : 0;
    if (ratio > worst_) {
      worst_ = ratio;
      worst_in_ = name;
    }
  }

  const GoldenCase& golden_;
  bool is_double_;
  double relative_;
  double output_;
  double worst_ = 0;
  std::string worst_in_ = "all equal";
  std::string problem_;
  std::string note_;
  bool has_gradients_ = false;
  std::set<std::string> compared_;
};

}  // namespace conformance
