// Products of float32 in the matrix unit (AMX), which multiplies bfloat16 alone. `split.cpp`
// defines them.
//
// Each number is split into three parts of 8 bits, x = x0 + x1 + x2 without a rest: x0 is x rounded
// to bfloat16, x1 what is left rounded, x2 what is then left. Of the nine products of the parts of
// two numbers six are taken: those left out are at most 2^-24 of the product, all three together
// (G. Henry, P. T. P. Tang, A. Heinecke, "Leveraging the bfloat16 artificial intelligence datatype
// for higher-precision computations", ARITH 2019). So the result is as near as that of
// multiply-adds in float32, but for numbers below 2^-102, whose last parts are denormal and count
// as zero.
//
// A block of 32 k takes 48 words, 16 of each part. Rows of the operand hold block after block; in a
// panel each vector of columns has all of its blocks in a row, so that a tile is 1 KB in a piece.
//
// An element is one chain over blocks, whatever tile it falls into: its bits depend neither
// on the number of threads nor on the rows beside it.
#pragma once

#include "low.hpp"

namespace rnnfast::RNNFAST_ISA {

// Words of a row of the operand: an odd number of cache lines, so that the 16 rows of a tile do not
// fall into the same few places of a cache.
constexpr int64_t operand_words_split(int64_t k) { return words_of(Precision::kSplit, k) | 16; }

// As the functions of LowKernels. `special` tells of each row whether any of its numbers is 2^63 or
// more, or not finite: such rows are multiplied in float32.
void convert_split(const Rows<const float>& rows, int64_t count, int64_t k, uint32_t* operand,
                   float* special);
void pack_split(const Panels<float>& numbers, uint32_t* words, const LowColumns& columns,
                Team team);
void multiply_split(const SplitTile& tile);
void release_split();
void multiply_panels_split(const uint32_t* operand, const float* special, int64_t operand_words,
                           int64_t rows, const Panels<float>& words, const LowColumns& columns,
                           const float* bias, const Rows<float>& c, Team team);
// As multiply_tn in gemm.hpp. To the same bits as the transposed product, which is `turned`.
void multiply_tn_split(const Rows<const float>& a, int64_t m, const Rows<const float>& b, int64_t n,
                       int64_t rows, float* c, int64_t c_stride, bool accumulate, bool turned,
                       float* scratch, Team team);
int64_t tn_scratch_split(int64_t n, int64_t rows, int members);

}  // namespace rnnfast::RNNFAST_ISA
