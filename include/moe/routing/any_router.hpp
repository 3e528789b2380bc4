// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// AnyRouter: a router whose type is chosen at run time.
#pragma once

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/config.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/view.hpp"

namespace moe::inline MOE_ABI {

/// Holds any router of one scalar type. Copies share the router, which is const.
template <class ScalarT>
class AnyRouter {
 public:
  using Scalar = ScalarT;

  template <Router RouterT>
  requires(!std::same_as<std::remove_cvref_t<RouterT>, AnyRouter> &&
           std::same_as<typename RouterT::Scalar, Scalar>)
      AnyRouter(RouterT router)  // NOLINT(google-explicit-constructor)
      : held_(std::make_shared<const Held<RouterT>>(std::move(router))) {}

  Index d_model() const noexcept { return held_->d_model(); }
  Index num_experts() const noexcept { return held_->num_experts(); }
  Index top_k() const noexcept { return held_->top_k(); }

  void route(MatrixView<const Scalar> x, RouteOptions options, Routing<Scalar>& routing) const {
    held_->route(x, options, routing);
  }

  /// What the experts see in place of x: the held router's word, or x.
  MatrixView<const Scalar> hidden_states(MatrixView<const Scalar> x, const RouteOptions& options,
                                         GrowingMatrix<Scalar>& buffer) const {
    return held_->hidden_states(x, options, buffer);
  }

  /// The router, if it is of this type, else null.
  template <class RouterT>
  const RouterT* target() const noexcept {
    const auto* const held = dynamic_cast<const Held<RouterT>*>(held_.get());
    return held != nullptr ? &held->router : nullptr;
  }

 private:
  struct Base {
    Base() = default;
    Base(const Base&) = delete;
    Base& operator=(const Base&) = delete;
    virtual ~Base() = default;
    virtual Index d_model() const noexcept = 0;
    virtual Index num_experts() const noexcept = 0;
    virtual Index top_k() const noexcept = 0;
    virtual void route(MatrixView<const Scalar> x, const RouteOptions& options,
                       Routing<Scalar>& routing) const = 0;
    virtual MatrixView<const Scalar> hidden_states(MatrixView<const Scalar> x,
                                                   const RouteOptions& options,
                                                   GrowingMatrix<Scalar>& buffer) const = 0;
  };

  template <class RouterT>
  struct Held final : Base {
    explicit Held(RouterT held) : router(std::move(held)) {}
    Index d_model() const noexcept override { return router.d_model(); }
    Index num_experts() const noexcept override { return router.num_experts(); }
    Index top_k() const noexcept override { return router.top_k(); }
    void route(MatrixView<const Scalar> x, const RouteOptions& options,
               Routing<Scalar>& routing) const override {
      router.route(x, options, routing);
    }
    MatrixView<const Scalar> hidden_states(MatrixView<const Scalar> x, const RouteOptions& options,
                                           GrowingMatrix<Scalar>& buffer) const override {
      return detail::hidden_states(router, x, options, buffer);
    }
    RouterT router;
  };

  std::shared_ptr<const Base> held_;
};

}  // namespace moe::inline MOE_ABI
