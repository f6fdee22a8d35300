// The micro-kernel under every product: a register tile of kRows rows by kVectors vectors.
//
// An element of a product is one chain of multiply-adds over k, in order, whatever tile it falls
// into. So its bits depend neither on the number of threads nor on the rows beside it.
#pragma once

#include "../params.hpp"
#include "../simd/dual.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

// The most rows of a tile that still fits in registers with a row of b and a broadcast.
constexpr int max_rows(int vectors) {
  if (kRegisters == 32) return vectors == 4 ? 6 : 8;
  return vectors == 4 ? 3 : vectors == 3 ? 4 : 6;
}

// acc[m][v] += sum over k of a(m, k) * b[k][v]. With every k, `kAhead` vectors from `ahead` on,
// `count` apart, are brought into the second-level cache.
template <class T, int kRows, int kVectors, int kAhead = 0, class Element>
RNNFAST_INLINE void multiply(Vec<T> (&acc)[kRows][kVectors], const Element& a, const T* b,
                             int64_t count, const T* ahead = nullptr) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 4
  for (int64_t k = 0; k < count; k++) {
    Vec<T> row[kVectors];
    if constexpr (kAhead > 0) __builtin_prefetch(ahead + k * n, 0, 2);
    if constexpr (kAhead > 1) __builtin_prefetch(ahead + (k + count) * n, 0, 2);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) row[v] = load(b + (k * kVectors + v) * n);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++) {
      const Vec<T> scalar = broadcast(a(m, k));
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) acc[m][v] = fma(scalar, row[v], acc[m][v]);
    }
  }
}

RNNFAST_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// The visits of one direction.
struct Visits {
  const Steps& steps;
  bool reverse;

  RNNFAST_INLINE int64_t step(int64_t i) const { return reverse ? steps.count - 1 - i : i; }
  RNNFAST_INLINE int64_t row(int64_t i) const { return steps.offset[step(i)]; }
  // Of the visits [begin, end), which are steps in a row.
  RNNFAST_INLINE int64_t first_step(int64_t begin, int64_t end) const {
    return reverse ? step(end - 1) : begin;
  }
  RNNFAST_INLINE int64_t rows(int64_t i) const {
    if (i < 0 || i >= steps.count) return 0;
    return steps.offset[step(i) + 1] - steps.offset[step(i)];
  }
};

// What one member of a team does: these rows of these column blocks.
struct Share {
  int64_t row_begin, row_end;
  int64_t block_begin, block_end;
};

// The even division of `count` things into the fewest parts of at most `most`: part i of n starts
// at i * count / n. 32 rows in tiles of 6 are 6 + 5 + 5 + 6 + 5 + 5, not five 6s and a 2.
RNNFAST_INLINE int64_t parts(int64_t count, int64_t most) { return (count + most - 1) / most; }
RNNFAST_INLINE int64_t part_begin(int64_t count, int64_t n, int64_t i) { return count * i / n; }

// A member's part of a product. Column blocks are divided, so that each member keeps its own in its
// cache; a narrow matrix divides its rows.
RNNFAST_INLINE Share product_share(int64_t row_begin, int64_t row_end, int64_t blocks, Team team) {
  if (blocks >= 2 * team.size)
    return {row_begin, row_end, part_begin(blocks, team.size, team.id),
            part_begin(blocks, team.size, team.id + 1)};
  const int64_t rows = row_end - row_begin;
  return {row_begin + part_begin(rows, team.size, team.id),
          row_begin + part_begin(rows, team.size, team.id + 1), 0, blocks};
}

// A column block of Panels: its first vector, its width in vectors, and where its data starts.
struct Block {
  int64_t vector;
  int vectors;
};
RNNFAST_INLINE Block block_of(int64_t vectors, int widest, int64_t i) {
  const int64_t n = parts(vectors, widest);
  const int64_t first = part_begin(vectors, n, i);
  return {first, int(part_begin(vectors, n, i + 1) - first)};
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
