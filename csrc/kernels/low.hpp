// Products whose numbers are converted first: with weights of 16 or 8 bits, for inference, and of
// float32 in parts (see split.hpp). `low.cpp` defines them.
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
  float* scale;         // [columns] of int8; of parts, 1 where a number is special, else 0
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

// Columns of numbers, rows so many numbers apart.
template <class Number>
struct Column {
  Number* at;
  int64_t stride;
};

// The same of parts, whose sums of each vector may lie elsewhere.
struct SplitTile {
  const uint32_t* operand;     // [rows, operand_words]
  const float* operand_scale;  // [rows] 1 where a number is special, else 0
  int64_t operand_words;
  int rows;
  const uint32_t* panel;  // [vectors, apart], of which [depth, lanes] are multiplied
  int64_t apart;          // words from one vector's to the next one's
  int64_t depth;
  int vectors;
  const float* special;         // [vectors * lanes] the same of columns
  Column<const float> from[4];  // what the sums of each vector start with; null for zeros
  Column<float> to[4];          // where they go
  bool turned;                  // whether operand and columns have changed sides

  // Lets sums [rows, vectors * lanes] start and end in one place.
  void stay_in(float* sums, int lanes) {
    for (int v = 0; v < vectors; v++) {
      to[v] = {sums + v * lanes, vectors * lanes};
      from[v] = {to[v].at, to[v].stride};
    }
  }
};

// Of float32 in parts alone.
struct SplitKernels {
  // From numbers, or where they have no data from their source.
  void (*pack)(const Panels<float>& numbers, uint32_t* words, const LowColumns&, Team);
  void (*multiply)(const SplitTile&);
  // Every thread that multiplied calls it once it is done.
  void (*release)();
  // As those in gemm.hpp; `turned` see split.hpp.
  void (*multiply_tn)(const Rows<const float>& a, int64_t m, const Rows<const float>& b, int64_t n,
                      int64_t rows, float* c, int64_t c_stride, bool accumulate, bool turned,
                      float* scratch, Team team);
  int64_t (*tn_scratch)(int64_t n, int64_t rows, int members);
};

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
                          const LowColumns&, const float* bias, const Rows<float>& c, Team);
  const SplitKernels* split;  // null without a matrix unit
};

constexpr int64_t words_of(Precision precision, int64_t k) {
  return precision == Precision::kSplit      ? (k + 31) / 32 * 48
         : precision == Precision::kBfloat16 ? (k + 1) / 2
                                             : (k + 3) / 4;
}

// What a forward pass with such weights needs beside its Forward<float>.
struct LowForward {
  const LowKernels* kernels;
  Precision precision;
  LowColumns x, h[2];   // of x_panels and h_panels
  int64_t x_words;      // of a converted row; 0 where x_panels hold numbers
  int64_t h_words;      // likewise
  uint32_t* x_operand;  // [threads * chunk + B, x_words] scratch
  float* x_scale;       // [threads * chunk + B]
  uint32_t* h_operand;  // [members, B, h_words] scratch; of parts [B, h_words]
  float* h_scale;       // [members, B], likewise
};

// What a backward pass in parts needs beside its Backward<float>.
struct LowBackward {
  const LowKernels* kernels;
  LowColumns x, h[2];   // of x_panels and h_panels
  int64_t x_words;      // of a row of dgates; 0 where x_panels hold numbers
  int64_t x_numbers;    // G*H, the same in numbers
  int64_t h_words[2];   // of a stage, likewise
  int64_t most_words;   // the longer of them: rows of both lie so far apart
  uint32_t* x_operand;  // [chunk + B, x_words] scratch
  float* x_special;     // [chunk + B]
  uint32_t* h_operand;  // [B, most_words] scratch
  float* h_special;     // [B]
  float* row;           // [members, W*H] scratch
  int64_t narrowest;    // rows and columns of weight gradients that pay
};

}  // namespace rnnfast
