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

template <class Scalar, Activation<Scalar> ActivationT, class Storage>
class FeedForwardExperts;

template <Expert ExpertT>
class CustomExperts;

template <ExpertBank BankT>
class SharedExperts;

template <Router RouterT, ExpertBank BankT, ExpertBank SharedBankT>
class SparseMoe;

/// Gated experts: gate, up and down matrices. `Storage` is how weights are kept.
template <class Scalar, class Storage = Scalar>
using SwiGluExperts = FeedForwardExperts<Scalar, SwiGlu, Storage>;
template <class Scalar, class Storage = Scalar>
using GeGluExperts = FeedForwardExperts<Scalar, GeGlu, Storage>;
template <class Scalar, class Storage = Scalar>
using GeGluTanhExperts = FeedForwardExperts<Scalar, GeGluTanh, Storage>;
template <class Scalar, class Storage = Scalar>
using ReGluExperts = FeedForwardExperts<Scalar, ReGlu, Storage>;

/// Plain experts: up and down matrices.
template <class Scalar, class Storage = Scalar>
using ReluExperts = FeedForwardExperts<Scalar, Relu, Storage>;
template <class Scalar, class Storage = Scalar>
using GeluExperts = FeedForwardExperts<Scalar, Gelu, Storage>;
template <class Scalar, class Storage = Scalar>
using GeluTanhExperts = FeedForwardExperts<Scalar, GeluTanh, Storage>;
template <class Scalar, class Storage = Scalar>
using SiluExperts = FeedForwardExperts<Scalar, Silu, Storage>;

}  // namespace moe::inline MOE_ABI
