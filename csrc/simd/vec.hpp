// One vector type, written with the vector extensions of GCC and Clang.
//
// A file that includes this is compiled once per instruction set, with
//   RNNFAST_ISA           the namespace of everything it defines: baseline, avx2, avx512, neon
//   RNNFAST_VECTOR_BYTES  the width of a register
// Everything here has internal linkage: a weak symbol could be merged by the linker with the copy
// of another instruction set, which an older processor cannot run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define RNNFAST_INLINE inline __attribute__((always_inline))

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
};
template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
};
template <class T>
using Vec = typename Simd<T>::V;
template <class T>
using IntVec = typename Simd<T>::I;
template <class T>
constexpr int kLanes = RNNFAST_VECTOR_BYTES / int(sizeof(T));

// Registers that the compiler has: decides the size of a register tile.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

template <class T>
RNNFAST_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0, not 0 + x, which would lose the sign of -0
}

template <class T>
RNNFAST_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
RNNFAST_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The first n lanes, 0 < n <= kLanes; lanes beyond are zero, and memory beyond is not touched.
#if defined(__AVX512F__)
RNNFAST_INLINE Vec<float> load_n(const float* p, int n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
RNNFAST_INLINE Vec<double> load_n(const double* p, int n) {
  return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
}
RNNFAST_INLINE void store_n(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
}
RNNFAST_INLINE void store_n(double* p, Vec<double> v, int n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
}
#elif defined(__AVX2__)
RNNFAST_INLINE __m256i first_lanes(const float*, int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
RNNFAST_INLINE __m256i first_lanes(const double*, int n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
RNNFAST_INLINE Vec<float> load_n(const float* p, int n) {
  return (Vec<float>)_mm256_maskload_ps(p, first_lanes(p, n));
}
RNNFAST_INLINE Vec<double> load_n(const double* p, int n) {
  return (Vec<double>)_mm256_maskload_pd(p, first_lanes(p, n));
}
RNNFAST_INLINE void store_n(float* p, Vec<float> v, int n) {
  _mm256_maskstore_ps(p, first_lanes(p, n), (__m256)v);
}
RNNFAST_INLINE void store_n(double* p, Vec<double> v, int n) {
  _mm256_maskstore_pd(p, first_lanes(p, n), (__m256d)v);
}
#else
template <class T>
RNNFAST_INLINE Vec<T> load_n(const T* p, int n) {
  Vec<T> v{};
  for (int i = 0; i < n; i++) v[i] = p[i];
  return v;
}
template <class T>
RNNFAST_INLINE void store_n(T* p, Vec<T> v, int n) {
  for (int i = 0; i < n; i++) p[i] = v[i];
}
#endif

// A vector that may be the ragged end of a row.
template <class T>
RNNFAST_INLINE Vec<T> load_tail(const T* p, int n) {
  return n >= kLanes<T> ? load(p) : load_n(p, n);
}
template <class T>
RNNFAST_INLINE void store_tail(T* p, Vec<T> v, int n) {
  if (n >= kLanes<T>)
    store(p, v);
  else
    store_n(p, v, n);
}

// a * b + c, fused where the instruction set can. Contraction is off for these files, so that the
// source alone decides the rounding, and with it that results do not depend on how work is split.
RNNFAST_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
RNNFAST_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// In each group of kGroup lanes, a0 b0 a1 b1 ... from the lower (kHalf = 0) or upper (kHalf = 1)
// halves of a and b.
template <class T, int kGroup, int kHalf, size_t... kLane>
RNNFAST_INLINE Vec<T> zip(Vec<T> a, Vec<T> b, std::index_sequence<kLane...>) {
  constexpr int n = kLanes<T>;
  constexpr auto from = [](int lane) {
    return lane % 2 * n + lane / kGroup * kGroup + kHalf * kGroup / 2 + lane % kGroup / 2;
  };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, from(int(kLane))...);
#else
  return __builtin_shuffle(a, b, IntVec<T>{from(int(kLane))...});
#endif
}

// Groups of kUnit lanes: the even (kOdd = 0) or the odd ones, of a and then of b.
template <class T, int kUnit, int kOdd, size_t... kLane>
RNNFAST_INLINE Vec<T> unzip(Vec<T> a, Vec<T> b, std::index_sequence<kLane...>) {
  constexpr auto from = [](int lane) { return (lane / kUnit * 2 + kOdd) * kUnit + lane % kUnit; };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, from(int(kLane))...);
#else
  return __builtin_shuffle(a, b, IntVec<T>{from(int(kLane))...});
#endif
}

// v[i][j] <-> v[j][i] in each group of kGroup lanes, by interleaving the two halves log2(kGroup)
// times.
template <class T, int kGroup>
RNNFAST_INLINE void transpose(Vec<T> (&v)[kGroup]) {
  using Lanes = std::make_index_sequence<kLanes<T>>;
  for (int stage = 1; stage < kGroup; stage *= 2) {
    Vec<T> u[kGroup];
    for (int i = 0; i < kGroup / 2; i++) {
      u[2 * i] = zip<T, kGroup, 0>(v[i], v[i + kGroup / 2], Lanes{});
      u[2 * i + 1] = zip<T, kGroup, 1>(v[i], v[i + kGroup / 2], Lanes{});
    }
    for (int i = 0; i < kGroup; i++) v[i] = u[i];
  }
}

// v[i][j] <-> v[j][i], first within 16 bytes, as processors have it. 1.4 times as fast as with all
// lanes as one group.
template <class T>
RNNFAST_INLINE void transpose_all(Vec<T> (&v)[kLanes<T>]) {
  constexpr int n = kLanes<T>, unit = 16 / int(sizeof(T)), units = n / unit;
  using Lanes = std::make_index_sequence<n>;
  for (int i = 0; i < n; i += unit) {
    Vec<T> u[unit];
    for (int q = 0; q < unit; q++) u[q] = v[i + q];
    transpose<T>(u);
    for (int q = 0; q < unit; q++) v[i + q] = u[q];
  }
  for (int q = 0; q < unit; q++)
    for (int stage = 1; stage < units; stage *= 2) {
      Vec<T> u[units];
      for (int i = 0; i < units / 2; i++) {
        const Vec<T> a = v[2 * i * unit + q], b = v[(2 * i + 1) * unit + q];
        u[i] = unzip<T, unit, 0>(a, b, Lanes{});
        u[units / 2 + i] = unzip<T, unit, 1>(a, b, Lanes{});
      }
      for (int i = 0; i < units; i++) v[i * unit + q] = u[i];
    }
}

// 16 bytes from each of p, p + stride, p + 2 * stride and so on.
template <class T>
RNNFAST_INLINE Vec<T> gather_quads(const T* p, int64_t stride) {
#if defined(__AVX512F__)
  const auto at = [&](int i) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(p + i * stride));
  };
  __m512 v = _mm512_castps128_ps512(at(0));
  v = _mm512_insertf32x4(v, at(1), 1);
  v = _mm512_insertf32x4(v, at(2), 2);
  return (Vec<T>)_mm512_insertf32x4(v, at(3), 3);
#elif defined(__AVX2__)
  const auto at = [&](int i) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(p + i * stride));
  };
  return (Vec<T>)_mm256_insertf128_ps(_mm256_castps128_ps256(at(0)), at(1), 1);
#else
  static_assert(RNNFAST_VECTOR_BYTES == 16);
  return load(p + 0 * stride);
#endif
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
