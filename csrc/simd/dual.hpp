// Vectors of dual numbers, with the operations of vec.hpp and math.hpp.
//
// Arrays interleave values and derivatives, as `load_tail` and `store_tail` have them. What `store`
// writes and `load` reads is a vector of each: the layout of packed panels, which nobody else sees.
#pragma once

#include "../flexible_params.hpp"
#include "math.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

struct DualVec {
  Vec<double> v, d;
};
template <>
struct Simd<Dual> {
  typedef DualVec V;
  typedef IntVec<double> I;
};
template <>
constexpr int kLanes<Dual> = kLanes<double>;

template <>
RNNFAST_INLINE DualVec broadcast<Dual>(Dual x) {
  return {broadcast(x.v), broadcast(x.d)};
}
template <>
RNNFAST_INLINE DualVec load_tail<Dual>(const Dual* p, int n) {
  DualVec x{};
  for (int i = 0; i < n && i < kLanes<double>; i++) {
    x.v[i] = p[i].v;
    x.d[i] = p[i].d;
  }
  return x;
}
template <>
RNNFAST_INLINE void store_tail<Dual>(Dual* p, DualVec x, int n) {
  for (int i = 0; i < n && i < kLanes<double>; i++) {
    p[i].v = x.v[i];
    p[i].d = x.d[i];
  }
}
template <>
RNNFAST_INLINE void transpose_all<Dual>(DualVec (&x)[kLanes<double>]) {
  Vec<double> v[kLanes<double>], d[kLanes<double>];
  for (int i = 0; i < kLanes<double>; i++) {
    v[i] = x[i].v;
    d[i] = x[i].d;
  }
  transpose_all<double>(v);
  transpose_all<double>(d);
  for (int i = 0; i < kLanes<double>; i++) x[i] = {v[i], d[i]};
}

RNNFAST_INLINE DualVec operator+(DualVec a, DualVec b) { return {a.v + b.v, a.d + b.d}; }
RNNFAST_INLINE DualVec operator-(DualVec a, DualVec b) { return {a.v - b.v, a.d - b.d}; }
RNNFAST_INLINE DualVec operator-(DualVec a) { return {-a.v, -a.d}; }
RNNFAST_INLINE DualVec operator*(DualVec a, DualVec b) {
  return {a.v * b.v, a.v * b.d + a.d * b.v};
}
RNNFAST_INLINE DualVec operator/(DualVec a, DualVec b) {
  const Vec<double> q = a.v / b.v;
  return {q, (a.d - q * b.d) / b.v};
}
RNNFAST_INLINE DualVec& operator+=(DualVec& a, DualVec b) { return a = a + b; }
RNNFAST_INLINE DualVec fma(DualVec a, DualVec b, DualVec c) {
  return {fma(a.v, b.v, c.v), fma(a.v, b.d, fma(a.d, b.v, c.d))};
}

// What the cells with options need besides, for every kind of vector: V is Vec<T>.
template <class T>
RNNFAST_INLINE Vec<T> constant(double x) {
  return broadcast(T(x));
}
template <class T>
RNNFAST_INLINE IntVec<T> below(Vec<T> a, Vec<T> b) {
  return a < b;
}
template <>
RNNFAST_INLINE IntVec<Dual> below<Dual>(DualVec a, DualVec b) {
  return a.v < b.v;
}
template <class T>
RNNFAST_INLINE IntVec<T> equal(Vec<T> a, Vec<T> b) {
  return a == b;
}
template <>
RNNFAST_INLINE IntVec<Dual> equal<Dual>(DualVec a, DualVec b) {
  return a.v == b.v;
}
template <class T>
RNNFAST_INLINE Vec<T> choose(IntVec<T> which, Vec<T> a, Vec<T> b) {
  return which ? a : b;
}
template <>
RNNFAST_INLINE DualVec choose<Dual>(IntVec<Dual> which, DualVec a, DualVec b) {
  return {which ? a.v : b.v, which ? a.d : b.d};
}
template <class T>
RNNFAST_INLINE Vec<T> logistic(Vec<T> x) {
  return sigmoid<T>(x);
}
template <>
RNNFAST_INLINE DualVec logistic<Dual>(DualVec x) {
  const Vec<double> s = sigmoid<double>(x.v);
  return {s, s * (1 - s) * x.d};
}
template <class T>
RNNFAST_INLINE Vec<T> hyperbolic(Vec<T> x) {
  return tanh<T>(x);
}
template <>
RNNFAST_INLINE DualVec hyperbolic<Dual>(DualVec x) {
  const Vec<double> t = tanh<double>(x.v);
  return {t, (1 - t * t) * x.d};
}
template <class T>
RNNFAST_INLINE Vec<T> exponential(Vec<T> x) {
  return exp<T>(x);
}
template <>
RNNFAST_INLINE DualVec exponential<Dual>(DualVec x) {
  const Vec<double> e = exp<double>(x.v);
  return {e, e * x.d};
}
template <class T>
RNNFAST_INLINE Vec<T> exponential_less_one(Vec<T> x) {
  return expm1<T>(x);
}
template <>
RNNFAST_INLINE DualVec exponential_less_one<Dual>(DualVec x) {
  return {expm1<double>(x.v), exp<double>(x.v) * x.d};
}
// log(1 + x) for x in [0, 1], by 2 atanh(x / (2 + x)); x / (2 + x) is at most 1/3.
template <class T>
RNNFAST_INLINE Vec<T> log_of_one_more(Vec<T> x) {
  constexpr int terms = sizeof(T) == sizeof(float) ? 8 : 17;
  const Vec<T> s = x / (constant<T>(2) + x), s2 = s * s;
  Vec<T> sum = constant<T>(1.0 / (2 * terms + 1));
  for (int k = terms - 1; k >= 0; k--) sum = fma(sum, s2, constant<T>(1.0 / (2 * k + 1)));
  return constant<T>(2) * s * sum;
}
template <class T>
RNNFAST_INLINE Vec<T> root(Vec<T> x) {
  for (int i = 0; i < kLanes<T>; i++) x[i] = T(__builtin_sqrt(double(x[i])));
  return x;
}
template <>
RNNFAST_INLINE DualVec root<Dual>(DualVec x) {
  const Vec<double> s = root<double>(x.v);
  return {s, x.d / (2 * s)};
}
// The sum of all lanes, in every lane.
template <class T>
RNNFAST_INLINE Vec<T> sum_of_lanes(Vec<T> x) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; i++) sum += x[i];
  return broadcast(sum);
}
template <>
RNNFAST_INLINE DualVec sum_of_lanes<Dual>(DualVec x) {
  return {sum_of_lanes<double>(x.v), sum_of_lanes<double>(x.d)};
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
