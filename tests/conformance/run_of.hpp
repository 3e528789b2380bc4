// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// The families' cases by their names.
#pragma once

#include <string>
#include <type_traits>

#include "conformance/checkpoint_cases.hpp"
#include "conformance/comparison.hpp"
#include "conformance/declarations.hpp"
#include "conformance/golden_case.hpp"
#include "conformance/other_cases.hpp"

namespace conformance {

template <class Scalar>
Comparison run_of(const GoldenCase& golden) {
  Comparison comparison(golden, std::is_same_v<Scalar, double>);
  const std::string family = golden.family();
  check_declarations(golden);
  if (is_checkpoint_family(family)) {
    run_checkpoint_case<Scalar>(comparison);
  } else if (family == "deepspeed") {
    run_deepspeed<Scalar>(comparison);
  } else if (family == "megablocks") {
    run_megablocks<Scalar>(comparison);
  } else if (family == "flaxformer") {
    run_flaxformer<Scalar>(comparison);
  } else if (family == "expert_choice") {
    run_epfml_expert_choice<Scalar>(comparison);
  } else if (family == "epfml_moe") {
    run_epfml<Scalar>(comparison);
  } else if (family == "shazeer") {
    run_shazeer<Scalar>(comparison);
  } else if (family == "jacobs1991") {
    run_jacobs<Scalar>(comparison);
  } else {
    comparison.fail("the family '" + family + "' is not known");
  }
  if (golden.has("grad_output") && !comparison.has_gradients())
    comparison.fail("the gradients were not compared");
  comparison.check_that_all_is_used(is_checkpoint_family(family) ? golden.weights_prefix() : "");
  return comparison;
}

}  // namespace conformance
