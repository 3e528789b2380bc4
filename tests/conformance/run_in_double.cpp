// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/run_in.hpp"
#include "conformance/run_of.hpp"

namespace conformance {

Comparison run_in_double(const GoldenCase& golden) {
  return run_of<double>(golden);
}

}  // namespace conformance
