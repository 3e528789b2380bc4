// SPDX-FileCopyrightText: The moe authors
// SPDX-License-Identifier: Apache-2.0
//
// exp and erf of single precision.
//
// Uses: Vec of float.

/// e^x within 2 ulp, gradual underflow included. 0 below -104, infinity from 88.73 on, NaN for NaN.
MOE_ALWAYS_INLINE Vec exponential(Vec x) noexcept {
  // The second operand wins where one is NaN.
  x = maximum(Vec::broadcast(-104.0F), x);
  x = minimum(Vec::broadcast(89.0F), x);
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
  const Vec rounder = Vec::broadcast(12582912.0F);
  const Vec n = subtract(multiply_add(x, Vec::broadcast(1.44269504F), rounder), rounder);
  // ln 2 in two parts, the first of 15 bits: its product with n is exact, fused or not.
  Vec r = multiply_add(n, Vec::broadcast(-0.693145752F), x);
  r = multiply_add(n, Vec::broadcast(-1.42860677e-6F), r);
  // (e^r - 1 - r) / r^2 on |r| < 0.35, relative to e^r within 3.3e-9.
  Vec p = Vec::broadcast(0.00138131448F);
  p = multiply_add(p, r, Vec::broadcast(0.00836941879F));
  p = multiply_add(p, r, Vec::broadcast(0.041668456F));
  p = multiply_add(p, r, Vec::broadcast(0.166665152F));
  p = multiply_add(p, r, Vec::broadcast(0.49999994F));
  p = add(multiply_add(multiply(r, r), p, r), Vec::broadcast(1.0F));
  // 2^n as a product of two powers, since n reaches from -150 to 128.
  const Vec half_rounded = multiply_add(n, Vec::broadcast(0.5F), rounder);
  const Vec rest = add(subtract(n, subtract(half_rounded, rounder)), rounder);
  return multiply(multiply(p, power_of_two(half_rounded)), power_of_two(rest));
}

/// erf(x) within 4 ulp, NaN for NaN.
MOE_ALWAYS_INLINE Vec error_function(Vec x) noexcept {
  const Vec t = minimum(Vec::broadcast(4.1F), absolute(x));
  // Below 0.95: x + x q(x^2), relative error 2.2e-8.
  const Vec s = multiply(t, t);
  Vec q = Vec::broadcast(-0.000586208189F);
  q = multiply_add(q, s, Vec::broadcast(0.00496750697F));
  q = multiply_add(q, s, Vec::broadcast(-0.026748864F));
  q = multiply_add(q, s, Vec::broadcast(0.112813205F));
  q = multiply_add(q, s, Vec::broadcast(-0.376124471F));
  q = multiply_add(q, s, Vec::broadcast(0.128379136F));
  const Vec near = multiply_add(t, q, t);
  // Above: 1 - e^p(t), where p is log(1 - erf) and erf errs by 1.7e-9.
  Vec p = Vec::broadcast(0.000198219816F);
  p = multiply_add(p, t, Vec::broadcast(-0.00306549179F));
  p = multiply_add(p, t, Vec::broadcast(0.022315219F));
  p = multiply_add(p, t, Vec::broadcast(-0.104113691F));
  p = multiply_add(p, t, Vec::broadcast(-0.636976063F));
  p = multiply_add(p, t, Vec::broadcast(-1.12779725F));
  p = multiply_add(p, t, Vec::broadcast(-0.000166446451F));
  const Vec far = subtract(Vec::broadcast(1.0F), exponential(p));
  const Vec size = select_less(t, Vec::broadcast(0.95F), near, far);
  // NaN fails both compares: `far` is NaN then.
  return select_less(x, Vec::zero(), subtract(Vec::zero(), size), size);
}
