// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Runs the layers of every covered family on reference data, in double and float, and compares
// logits, selection scores, choices, weights, losses and outputs. The data lie in
// MOE_CONFORMANCE_DIR, or else in the folder that the build names.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include <moe/io/checkpoint.hpp>
#include <moe/moe.hpp>

#include "conformance/families.hpp"
#include "conformance/golden_case.hpp"

namespace conformance {
namespace {

/// The worst error of a case so far, in units of what is allowed.
class Comparison {
 public:
  explicit Comparison(double relative_tolerance) : tolerance_(relative_tolerance) {}

  template <class Actual>
  void compare(const char* what, const Actual& actual, const moe::Matrix<double>& expected) {
    if (actual.rows() != expected.rows() || actual.cols() != expected.cols())
      return fail(std::string(what) + " has another shape");
    if (expected.size() == 0) return;
    const double allowed = tolerance_ * expected.cwiseAbs().maxCoeff();
    const moe::Matrix<double> difference = actual.template cast<double>() - expected;
    const double error = difference.cwiseAbs().maxCoeff();
    // An expected tensor of zeros allows no error, and NaN counts as infinitely wrong.
    const double ratio = !difference.allFinite() ? std::numeric_limits<double>::infinity()
                         : error > 0             ? error / allowed
                                                 : 0;
    if (ratio > worst_) {
      worst_ = ratio;
      worst_in_ = what;
    }
  }

  void compare(const char* what, double actual, double expected) {
    compare(what, moe::Matrix<double>::Constant(1, 1, actual),
            moe::Matrix<double>::Constant(1, 1, expected));
  }

  void fail(const std::string& problem) {
    if (problem_.empty()) problem_ = problem;
  }

  bool passed() const { return problem_.empty() && worst_ <= 1; }

  std::string summary() const {
    if (!problem_.empty()) return problem_;
    char text[96];
    std::snprintf(text, sizeof text, "%.3f of the tolerance (%s)", worst_, worst_in_);
    return text;
  }

 private:
  double tolerance_;
  double worst_ = 0;
  const char* worst_in_ = "exact";
  std::string problem_;
};

/// Weights by expert, zero where a token did not go.
template <class Scalar>
moe::Matrix<double> combine_weights(const moe::Routing<Scalar>& routing) {
  moe::Matrix<double> dense =
      moe::Matrix<double>::Zero(routing.tokens(), routing.num_experts);  // (T, E)
  for (moe::Index t = 0; t < routing.tokens(); ++t)
    for (moe::Index k = 0; k < routing.top_k(); ++k)
      dense(t, routing.experts(t, k)) += static_cast<double>(routing.weights(t, k));
  return dense;
}

template <class Scalar>
void compare_losses(const GoldenCase& golden, const moe::Routing<Scalar>& routing,
                    Comparison& comparison) {
  using moe::losses::BalanceScale;
  if (golden.has("expected.aux_loss"))
    comparison.compare(
        "aux_loss",
        static_cast<double>(moe::losses::load_balancing(routing, BalanceScale::per_token)),
        golden.scalar("expected.aux_loss"));
  if (!golden.has("expected.aux_loss_masked")) return;
  const auto stored = golden.matrix<std::int64_t>("attention_mask");  // (batch, sequence)
  std::vector<std::uint8_t> mask;
  for (moe::Index i = 0; i < stored.size(); ++i) mask.push_back(stored.data()[i] != 0 ? 1 : 0);
  comparison.compare(
      "aux_loss_masked",
      static_cast<double>(moe::losses::load_balancing(routing, BalanceScale::per_token, mask)),
      golden.scalar("expected.aux_loss_masked"));
}

template <class Scalar>
Comparison run(const GoldenCase& golden) {
  Comparison comparison(golden.relative_tolerance(std::is_same_v<Scalar, double>));
  auto layer =
      moe::io::load_block<Scalar>(golden.tensors(), layer_config(golden), golden.weights_prefix());
  const auto x = golden.matrix<Scalar>("input");  // (T, D)
  moe::Matrix<Scalar> y(x.rows(), x.cols());      // (T, D)
  const moe::Routing<Scalar>& routing = layer.forward(x, y);

  comparison.compare("logits", routing.logits, golden.matrix<double>("expected.router_logits"));
  if (golden.has("expected.scores_for_choice")) {
    moe::Matrix<Scalar> scores = routing.scores;  // (T, E)
    const moe::Vector<Scalar>& bias = layer.router().weights().selection_bias;
    if (bias.size() != 0) scores.rowwise() += bias.transpose();
    comparison.compare("selection scores", scores,
                       golden.matrix<double>("expected.scores_for_choice"));
  }
  const auto experts = golden.matrix<moe::ExpertIndex>("expected.topk_indices");  // (T, K)
  if (routing.experts != experts) comparison.fail("other experts were chosen");
  comparison.compare("weights", routing.weights, golden.matrix<double>("expected.topk_weights"));
  comparison.compare("combine weights", combine_weights(routing),
                     golden.matrix<double>("expected.combine_weights"));
  compare_losses(golden, routing, comparison);
  comparison.compare("output", y, golden.matrix<double>("expected.output"));
  return comparison;
}

bool run_case(const GoldenCase& golden) {
  bool passed = true;
  const auto attempt = [&](const char* precision, auto&& compare) {
    std::string summary;
    try {
      const Comparison comparison = compare();
      passed = passed && comparison.passed();
      summary = comparison.summary();
    } catch (const std::exception& error) {
      passed = false;
      summary = error.what();
    }
    return std::string(precision) + " " + summary;
  };
  const std::string in_double = attempt("double", [&] { return run<double>(golden); });
  const std::string in_float = attempt("float", [&] { return run<float>(golden); });
  std::printf("%-4s %-32s %s; %s\n", passed ? "ok" : "FAIL", golden.name().c_str(),
              in_double.c_str(), in_float.c_str());
  return passed;
}

/// Cases in the folder that comes with the tests: none may get lost.
constexpr int bundled_cases = 11;

int run_all(const std::string& folder, int least_cases) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  int total = 0;
  int passed = 0;
  int others = 0;
  for (const std::string& path : paths) {
    const GoldenCase golden(path);
    if (!is_covered(golden.family())) {
      ++others;
      continue;
    }
    ++total;
    passed += run_case(golden) ? 1 : 0;
  }
  std::printf("%d cases of other families were not run\n", others);
  if (total < least_cases) std::printf("at least %d cases were expected\n", least_cases);
  std::printf("conformance: %d/%d cases\n", passed, total);
  return total >= least_cases && passed == total ? 0 : 1;
}

}  // namespace
}  // namespace conformance

int main() {
  const char* const chosen = std::getenv("MOE_CONFORMANCE_DIR");
  const bool is_chosen = chosen != nullptr && *chosen != '\0';
  try {
    return is_chosen ? conformance::run_all(chosen, 1)
                     : conformance::run_all(MOE_TEST_DATA "/golden", conformance::bundled_cases);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "conformance: %s\n", error.what());
    return 1;
  }
}
