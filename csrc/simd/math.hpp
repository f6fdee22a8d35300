// exp, sigmoid and tanh on vectors.
//
// Algorithm: x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, after Cody & Waite 1980);
// expm1(r) = r + r^2 q(r), q a minimax polynomial of degree 4 (float) or 9 (double) fitted for
// rnnfast with the Remez algorithm; its own error is below 0.23 and 0.17 ULP. Then
//   exp(x)     = 2^n (1 + expm1(r))
//   sigmoid(x) = 1 / (1 + exp(-x))
//   tanh(x)    = sign(x) e / (e + 2),  e = expm1(2 |x|) = 2^n expm1(r) + (2^n - 1)
//
// Maximum error over every finite argument, measured by tests/test_native_functions.py (units in
// the last place, results below the smallest normal number may be flushed to zero):
//             exp    sigmoid   tanh
//   float     1.1    2.5       2.6
//   double    1.0    2.0       2.3
// exp returns +inf from 88.37 (float) or 709.43 (double), where the true value is within a factor
// of 1.5 of overflow. NaN gives NaN; infinities give the limits.
#pragma once

#include "vec.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float lowest = -88.3f, highest = 88.72f, saturated = 20.0f;
  static constexpr float log2_e = 0x1.715476p+0f;
  static constexpr float ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;
  static constexpr float magic = 0x1.8p23f;  // adding it rounds to an integer in the low bits
  static constexpr int mantissa = 23, bias = 127, degree = 4;
  static constexpr float q[] = {0x1.000000352a194p-1f, 0x1.5554af3fe432ap-3f, 0x1.555486bc8cc22p-5f,
                                0x1.12281c7d9e209p-7f, 0x1.6d9932292202dp-10f};
};
template <>
struct ExpConstants<double> {
  static constexpr double lowest = -709.0, highest = 709.7, saturated = 44.0;
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double magic = 0x1.8p52;
  static constexpr int mantissa = 52, bias = 1023, degree = 9;
  static constexpr double q[] = {
      0x1.0000000000005p-1,  0x1.555555555555cp-3,  0x1.555555555210fp-5,  0x1.111111110e6e1p-7,
      0x1.6c16c17f35260p-10, 0x1.a01a01b5d6628p-13, 0x1.a019a683f2936p-16, 0x1.71ddea050710cp-19,
      0x1.28a2b3b942033p-22, 0x1.af76b299d2343p-26};
};

// x where exp(x) is finite and normal, the nearest such number elsewhere, or NaN.
template <class T>
RNNFAST_INLINE Vec<T> within_range(Vec<T> x) {
  using C = ExpConstants<T>;
  x = x > C::highest ? broadcast(C::highest) : x;
  x = x < C::lowest ? broadcast(C::lowest) : x;
  return x;
}

// expm1(r) and 2^n for x = n ln 2 + r. x must lie in [lowest, highest] or be NaN.
template <class T>
RNNFAST_INLINE void split_exp(Vec<T> x, Vec<T>& expm1_r, Vec<T>& two_n) {
  using C = ExpConstants<T>;
  const Vec<T> shifted = fma(x, broadcast(C::log2_e), broadcast(C::magic));
  const Vec<T> n = shifted - C::magic;
  Vec<T> r = fma(n, broadcast(-C::ln2_high), x);
  r = fma(n, broadcast(-C::ln2_low), r);
  const Vec<T> r2 = r * r;
  // Estrin's scheme, pairs first: the loop of a small layer waits for the latency of this.
  Vec<T> q = C::degree % 2 ? fma(r, broadcast(C::q[C::degree]), broadcast(C::q[C::degree - 1]))
                           : broadcast(C::q[C::degree]);
  for (int k = (C::degree - 1) / 2 * 2 - 2 * (C::degree % 2); k >= 0; k -= 2)
    q = fma(q, r2, fma(r, broadcast(C::q[k + 1]), broadcast(C::q[k])));
  expm1_r = fma(r2, q, r);
  two_n = (Vec<T>)(((IntVec<T>)shifted + C::bias) << C::mantissa);
}

template <class T>
RNNFAST_INLINE Vec<T> exp(Vec<T> x) {
  Vec<T> expm1_r, two_n;
  split_exp<T>(within_range<T>(x), expm1_r, two_n);
  return (expm1_r + 1) * two_n;
}

// exp(x) - 1 with all its digits, for x up to where exp is finite.
template <class T>
RNNFAST_INLINE Vec<T> expm1(Vec<T> x) {
  Vec<T> expm1_r, two_n;
  split_exp<T>(within_range<T>(x), expm1_r, two_n);
  return fma(two_n, expm1_r, two_n - 1);
}

template <class T>
RNNFAST_INLINE Vec<T> sigmoid(Vec<T> x) {
  return 1 / (exp<T>(-x) + 1);
}

template <class T>
RNNFAST_INLINE Vec<T> tanh(Vec<T> x) {
  using I = IntVec<T>;
  const I sign = (I)x & (I)broadcast(T(-0.0));
  Vec<T> y = (Vec<T>)((I)x ^ sign) * 2;
  y = y > ExpConstants<T>::saturated ? broadcast(ExpConstants<T>::saturated) : y;
  Vec<T> expm1_r, two_n;
  split_exp<T>(y, expm1_r, two_n);
  const Vec<T> e = fma(two_n, expm1_r, two_n - 1);
  return (Vec<T>)((I)(e / (e + 2)) ^ sign);
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
