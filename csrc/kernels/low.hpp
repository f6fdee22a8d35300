// Products with weights of 16 or 8 bits, for inference. `low.cpp` defines them.
//
// A word is 32 bits of one column of weights: two bfloat16 or four int8, consecutive in k. Panels
// of words are laid out as Panels<float> are, with ceil(k / 2) or ceil(k / 4) words in place of k
// numbers, padded with zeros.
//
// bfloat16: weights are rounded to nearest, ties to even. With AVX512-BF16 the operand (x or h) is
// rounded so too, and two products at a time are added in float32, with AMX the even and the odd
// ones of 16 words; without either, each weight is widened and the operand is taken as it is.
// int8: w = scale * q with q from -127 to 127 and one scale for each row of w_ih or w_hh, the
// largest |w| / 127. A row of the operand is written so as well, on the way, and the sums are exact
// in 32 bits. So all instruction sets compute the same.
#pragma once

#include <cstdint>

#include "../params.hpp"

namespace rnnfast {

// What the words of a matrix need beside them, one number a column in the order of the panels.
struct LowColumns {
  float* scale;         // [columns] of int8
  int32_t* correction;  // [columns] of int8: -128 times the sum of q, as operands are q + 128
};

// A register tile: sums[m][n] += row m of the operand times column n of a block.
struct LowTile {
  const uint32_t* operand;     // [rows, operand_words]
  const float* operand_scale;  // [rows] of int8
  int64_t operand_words;
  int rows;
  const uint32_t* panel;  // [depth, vectors * lanes]
  int64_t depth;
  int vectors;
  LowColumns columns;  // of this block
  float* sums;         // [rows, vectors * lanes]
};

constexpr int kMostLowRows = 32;

struct LowKernels {
  // Numbers of 32 bits that a converted row of k numbers takes.
  int64_t (*operand_words)(Precision, int64_t k);
  void (*convert)(Precision, const Rows<const float>& rows, int64_t count, int64_t k,
                  uint32_t* operand, float* scale);
  int64_t (*most_rows)(int vectors);  // of a tile, up to kMostLowRows
  void (*multiply)(Precision, const LowTile&);
  // As pack_panels in gemm.hpp, for a source whose rows are contiguous: weights [columns, k].
  void (*pack)(Precision, const Panels<float>& words, const LowColumns&, Team);
  // As multiply_panels in gemm.hpp, for converted rows.
  void (*multiply_panels)(Precision, const uint32_t* operand, const float* operand_scale,
                          int64_t operand_words, int64_t rows, const Panels<float>& words,
                          const LowColumns&, const float* bias, float* c, int64_t c_stride, Team);
};

constexpr int64_t words_of(Precision precision, int64_t k) {
  return precision == Precision::kBfloat16 ? (k + 1) / 2 : (k + 3) / 4;
}

// What a forward pass with such weights needs beside its Forward<float>.
struct LowForward {
  const LowKernels* kernels;
  Precision precision;
  LowColumns x, h[2];  // of x_panels and h_panels
  int64_t x_words, h_words;
  uint32_t* x_operand;  // [threads * chunk + B, x_words] scratch
  float* x_scale;       // [threads * chunk + B]
  uint32_t* h_operand;  // [members, B, h_words] scratch
  float* h_scale;       // [members, B]
};

}  // namespace rnnfast
