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

}  // namespace rnnfast
