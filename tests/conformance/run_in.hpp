// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// A case in one precision. Each is a file of its own, since it takes long to compile.
#pragma once

#include "conformance/comparison.hpp"
#include "conformance/golden_case.hpp"

namespace conformance {

Comparison run_in_double(const GoldenCase& golden);
Comparison run_in_float(const GoldenCase& golden);

}  // namespace conformance
