// Matrix products and packing, compiled once per instruction set. `gemm.cpp` defines them.
#pragma once

#include "../flexible_params.hpp"
#include "../simd/vec.hpp"

namespace rnnfast::RNNFAST_ISA {

constexpr int kWidest = 4;  // vectors of a column block in plain panels

#define RNNFAST_DECLARE_GEMM(T)                                                                    \
  /* Packs all blocks. */                                                                          \
  void pack_panels(const Panels<T>& p, Team team);                                                 \
  /* Packs rows [k_0, k_0 + count) of the block that starts at this vector of columns. */          \
  void pack_block(const Panels<T>& p, int64_t vector, int vectors, int64_t k_0, int64_t count,     \
                  T* to);                                                                          \
  /* sums [groups, vectors * kLanes] of the block that starts at this vector go on with one row of \
     a, where panels.across(1): they are not packed. */                                            \
  void multiply_columns(const T* a, const Panels<T>& panels, int64_t vector, int vectors,          \
                        T* sums);                                                                  \
  /* c[m][n] = bias[n] + sum over k of a[m][k] * panels[k][n], divided over the team. */           \
  void multiply_panels(const Rows<const T>& a, int64_t rows, const Panels<T>& panels,              \
                       const T* bias, const Rows<T>& c, Team team);                                \
  /* c[m][n] = start + sum over k of a[m][k] * b[k][n] for a few rows of c; b is read where it     \
     lies, once. The start is what is there (resume), else bias[n] or zero. */                     \
  void multiply_rows(const Rows<const T>& a, int64_t rows, const T* b, int64_t b_stride,           \
                     int64_t count, const T* bias, bool resume, const Rows<T>& c,                  \
                     int64_t columns);                                                             \
  /* c[m][n] (+)= sum over r of a[r][m] * b[r][n] for the rows r of a chunk. `scratch` is          \
     shared by the team and holds tn_scratch(...) numbers. Ends with a barrier of the team. */     \
  void multiply_tn(const Rows<const T>& a, int64_t m, const Rows<const T>& b, int64_t n,           \
                   int64_t rows, T* c, int64_t c_stride, bool accumulate, T* scratch, Team team);  \
  /* sums[m] (+)= sum over r of a[r][m] */                                                         \
  void sum_rows(const T* a, int64_t a_stride, int64_t m, int64_t rows, T* sums, bool accumulate,   \
                Team team);                                                                        \
  /* sums = a + b over n numbers */                                                                \
  void add(const T* a, const T* b, int64_t n, T* sum, Team team);                                  \
  /* Numbers of scratch that multiply_tn needs for a b of n columns and a chunk of `rows`. */      \
  int64_t tn_scratch(const T* tag, int64_t n, int64_t rows, int members);

RNNFAST_DECLARE_GEMM(float)
RNNFAST_DECLARE_GEMM(double)
RNNFAST_DECLARE_GEMM(Dual)
#undef RNNFAST_DECLARE_GEMM

// y = exp (0), sigmoid (1) or tanh (2) of x, for the tests of accuracy.
void evaluate(int function, const float* x, int64_t n, float* y);
void evaluate(int function, const double* x, int64_t n, double* y);
// The sum of a member's part of x, for benchmarks.
float total(const float* x, int64_t n, Team team);

}  // namespace rnnfast::RNNFAST_ISA
