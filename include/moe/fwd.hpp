// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// Forward declarations, and the short names that users type.
#pragma once

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"

namespace moe::inline MOE_ABI {

template <class Scalar>
class TopKRouter;

template <class Scalar, Activation<Scalar> ActivationT>
class FeedForwardExperts;

template <Expert ExpertT>
class CustomExperts;

template <ExpertBank BankT>
class SharedExperts;

template <Router RouterT, ExpertBank BankT, ExpertBank SharedBankT>
class SparseMoe;

/// Gated experts: gate, up and down matrices.
template <class Scalar>
using SwiGluExperts = FeedForwardExperts<Scalar, SwiGlu>;
template <class Scalar>
using GeGluExperts = FeedForwardExperts<Scalar, GeGlu>;
template <class Scalar>
using GeGluTanhExperts = FeedForwardExperts<Scalar, GeGluTanh>;
template <class Scalar>
using ReGluExperts = FeedForwardExperts<Scalar, ReGlu>;

/// Plain experts: up and down matrices.
template <class Scalar>
using ReluExperts = FeedForwardExperts<Scalar, Relu>;
template <class Scalar>
using GeluExperts = FeedForwardExperts<Scalar, Gelu>;
template <class Scalar>
using GeluTanhExperts = FeedForwardExperts<Scalar, GeluTanh>;
template <class Scalar>
using SiluExperts = FeedForwardExperts<Scalar, Silu>;

}  // namespace moe::inline MOE_ABI
