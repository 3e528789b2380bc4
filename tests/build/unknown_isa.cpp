// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A level in the environment that the machine does not have is an exception, whichever function
// meets it first: this program's argument tells which.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include <moe/moe.hpp>

int main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "";
  setenv("MOE_ISA", "nonsense", 1);
  moe::Matrix<float> x = moe::Matrix<float>::Ones(1, 4);
  moe::Matrix<float> y(1, 4);
  moe::DispatchPlan plan;
  moe::make_full_plan(1, 1, plan);
  moe::ExpertIndex chosen[2];
  try {
    if (first == "combine") moe::combine<float>(x, plan, {}, moe::MatrixView<float>(y));
    if (first == "softmax") moe::softmax(x.data(), 4, y.data());
    if (first == "select") moe::select_top_k(x.data(), 4, 2, chosen);
  } catch (const std::invalid_argument& error) {
    std::puts(error.what());
    return std::string(error.what()).find("nonsense") != std::string::npos ? 0 : 1;
  }
  return 1;
}
