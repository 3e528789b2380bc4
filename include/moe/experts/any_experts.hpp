// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// AnyExperts: a bank of experts whose type is chosen at run time.
#pragma once

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/dispatch_plan.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"
#include "moe/experts/staged_bank.hpp"

namespace moe::inline MOE_ABI {

/// Holds any bank of one scalar type. Copies share the bank, which is const.
template <class ScalarT>
class AnyExperts {
 public:
  using Scalar = ScalarT;

  template <ExpertBank BankT>
  requires(!std::same_as<std::remove_cvref_t<BankT>, AnyExperts> &&
           std::same_as<typename BankT::Scalar, Scalar>)
      AnyExperts(BankT bank)  // NOLINT(google-explicit-constructor)
      : held_(std::make_shared<const Held<BankT>>(std::move(bank))) {}

  Index d_model() const noexcept { return held_->d_model(); }
  Index num_experts() const noexcept { return held_->num_experts(); }

  void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows, Scratch& scratch) const {
    held_->forward(input, rows, scratch);
  }

  /// The down bias (D) of an expert, if no weight is to multiply it, else null.
  const Scalar* unweighted_bias(Index e) const noexcept { return held_->unweighted_bias(e); }

  /// The bank as a part of a layer's expert stage, or null if it is none.
  const detail::StagedBank<Scalar>* staged() const noexcept { return held_->staged(); }

  /// The bank, if it is of this type, else null.
  template <class BankT>
  const BankT* target() const noexcept {
    const auto* const held = dynamic_cast<const Held<BankT>*>(held_.get());
    return held != nullptr ? &held->bank : nullptr;
  }

 private:
  struct Base {
    Base() = default;
    Base(const Base&) = delete;
    Base& operator=(const Base&) = delete;
    virtual ~Base() = default;
    virtual Index d_model() const noexcept = 0;
    virtual Index num_experts() const noexcept = 0;
    virtual void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows,
                         Scratch& scratch) const = 0;
    virtual const Scalar* unweighted_bias(Index e) const noexcept = 0;
    virtual const detail::StagedBank<Scalar>* staged() const noexcept = 0;
  };

  template <class BankT>
  struct Held final : Base {
    explicit Held(BankT held) : bank(std::move(held)) {}
    Index d_model() const noexcept override { return bank.d_model(); }
    Index num_experts() const noexcept override { return bank.num_experts(); }
    void forward(const ExpertInput<Scalar>& input, MatrixView<Scalar> rows,
                 Scratch& scratch) const override {
      bank.forward(input, rows, scratch);
    }
    const Scalar* unweighted_bias(Index e) const noexcept override {
      if constexpr (requires { bank.unweighted_bias(e); }) {
        return bank.unweighted_bias(e);
      } else {
        return nullptr;
      }
    }
    const detail::StagedBank<Scalar>* staged() const noexcept override {
      return detail::staged_bank(bank);
    }
    BankT bank;
  };

  std::shared_ptr<const Base> held_;
};

}  // namespace moe::inline MOE_ABI
