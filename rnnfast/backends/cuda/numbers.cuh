// Numbers of 16 bits as they lie in memory. All mathematics is done in float: they turn into it by
// themselves, and are made from it, rounded to the nearest, where the code says so.
#pragma once

#ifdef __CUDACC__
#define RNNFAST_DEVICE __device__ __forceinline__
#else
#include <math.h>
#define RNNFAST_DEVICE inline
#endif

namespace rnnfast {

#ifdef __CUDACC__
RNNFAST_DEVICE unsigned short float16_bits(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
RNNFAST_DEVICE float float16_value(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
#if __CUDA_ARCH__ >= 800  // which have the instruction
RNNFAST_DEVICE unsigned short bfloat16_bits(float x) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
RNNFAST_DEVICE float bfloat16_value(unsigned short bits) {
  return __uint_as_float((unsigned)bits << 16);
}
#endif
#else  // whoever compiles this for a CPU has them
inline unsigned short float16_bits(float x);
inline float float16_value(unsigned short bits);
inline unsigned short bfloat16_bits(float x);
inline float bfloat16_value(unsigned short bits);
#endif

struct Float16 {
  unsigned short bits;

  Float16() = default;
  RNNFAST_DEVICE explicit Float16(float x) : bits(float16_bits(x)) {}
  RNNFAST_DEVICE operator float() const { return float16_value(bits); }
};

#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 800
struct BFloat16 {
  unsigned short bits;

  BFloat16() = default;
  RNNFAST_DEVICE explicit BFloat16(float x) : bits(bfloat16_bits(x)) {}
  RNNFAST_DEVICE operator float() const { return bfloat16_value(bits); }
};
#endif

// Whether the numbers that products read are stored apart from those that are computed with.
template <class T, class S>
constexpr bool kNarrow = true;
template <class T>
constexpr bool kNarrow<T, T> = false;

// -------------------------------------------------------------------------------- tensor cores

// sums += a b for matrices of 16 x 16 and 16 x 8 numbers of type S; all lanes of a warp together.
// With g = lane / 4, t = lane % 4: a has numbers 2 t, 2 t + 1 of rows g and g + 8, then 2 t + 8,
// 2 t + 9 of the same; b has the same numbers of column g; sums are columns 2 t, 2 t + 1 of row g,
// then of row g + 8.
#ifdef __CUDACC__
#if __CUDA_ARCH__ >= 800
#define RNNFAST_ADD_PRODUCT(type)                                                     \
  __syncwarp();                                                                       \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <class S>
RNNFAST_DEVICE void add_product_of_tiles(float* sums, const unsigned* a, const unsigned* b);
template <>
RNNFAST_DEVICE void add_product_of_tiles<Float16>(float* sums, const unsigned* a,
                                                  const unsigned* b) {
  RNNFAST_ADD_PRODUCT("f16");
}
template <>
RNNFAST_DEVICE void add_product_of_tiles<BFloat16>(float* sums, const unsigned* a,
                                                   const unsigned* b) {
  RNNFAST_ADD_PRODUCT("bf16");
}
#else
template <class S>
RNNFAST_DEVICE void add_product_of_tiles(float*, const unsigned*, const unsigned*) {
  static_assert(sizeof(S) == 0, "needs sm_80");
}
#endif
RNNFAST_DEVICE unsigned word_at(const void* p) { return *(const unsigned*)p; }
#else
template <class S>
void add_product_of_tiles(float* sums, const unsigned* a, const unsigned* b);
inline unsigned word_at(const void* p);
#endif

// Numbers k and k + 1 of `length`, which begin at p; zero past the end. Where `aligned`, k is even
// and p a multiple of 4 bytes.
template <class S>
RNNFAST_DEVICE unsigned two(const S* p, long long k, long long length, bool aligned) {
  if (aligned && k + 1 < length) return word_at(p + k);
  const unsigned lower = k < length ? p[k].bits : 0, upper = k + 1 < length ? p[k + 1].bits : 0;
  return lower | upper << 16;
}

}  // namespace rnnfast
