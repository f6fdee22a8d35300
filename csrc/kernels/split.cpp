// Products of float32 in the matrix unit, as three bfloat16 parts of each number.
#include "split.hpp"

#include "../threads.hpp"
#include "gemm.hpp"
#include "matrix_unit.hpp"
#include "tile.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

using Words = IntVec<float>;
using Floats = Vec<float>;

constexpr int kLane = kLanes<float>;
static_assert(kLane == kDeep, "a vector is a row of a tile");

// A block: 32 numbers of k, of each of the three parts 16 words. Word i of a part is numbers i and
// i + 16, so that two vectors become one without a move between lanes.
constexpr int kBlock = 2 * kLane, kParts = 3, kBlockWords = kParts * kLane;

// Of a product, at a time: rows, and words of k.
constexpr int64_t kSomeRows = 128, kDepth = 1024 / kBlock * kBlockWords;

// Its sign bit tells of numbers from 2^63 on, and of those that are not finite: a product of parts
// could overflow where the product does not, or with the other sign.
RNNFAST_INLINE Words special_bit(Floats x) { return ((Words)x + 0x21000000) ^ (Words)x; }

// Rounded to 8 bits, ties away from zero.
RNNFAST_INLINE Floats rounded(Floats x) {
  return (Floats)(((Words)x + 0x8000) & int32_t(0xffff0000u));
}

// The parts of a number, each a float32 with 16 zeros at its end.
RNNFAST_INLINE void split(Floats x, Floats (&part)[kParts]) {
  part[0] = rounded(x);
  part[1] = rounded(x - part[0]);
  part[2] = x - part[0] - part[1];
}

// The same where some numbers are special: the largest are cut in place of rounded. Of an infinity
// and of NaN the first part is all.
__attribute__((noinline)) void split_special(Floats x, Floats (&part)[kParts]) {
  const Words size = (Words)x & 0x7fffffff;
  const Words large = size >= 0x7f000000, finite = size < 0x7f800000, nan = size > 0x7f800000;
  const Words cut = (Words)x & int32_t(0xffff0000u);
  const Words first = (large & cut) | (~large & (Words)rounded(x)) | (nan & 0x00400000);
  const Floats left = (Floats)(finite & (Words)(x - (Floats)first));
  part[0] = (Floats)first;
  part[1] = rounded(left);
  part[2] = left - part[1];
}

// The words of 16 numbers and the next 16: a vector of each part to words + part * stride. Whether
// they are all finite and of ordinary size.
RNNFAST_INLINE bool to_words(Floats first, Floats second, uint32_t* words, int64_t stride) {
  Floats a[kParts], b[kParts];
  const bool special =
      _mm512_movepi32_mask((__m512i)(special_bit(first) | special_bit(second))) != 0;
  if (__builtin_expect(special, 0)) {
    split_special(first, a);
    split_special(second, b);
  } else {
    split(first, a);
    split(second, b);
  }
  for (int p = 0; p < kParts; p++) {
    const __m512i word = _mm512_or_si512(_mm512_srli_epi32((__m512i)a[p], 16), (__m512i)b[p]);
    _mm512_storeu_si512(words + p * stride, word);
  }
  return !special;
}

// Marks the lanes of those that are special.
__attribute__((noinline)) void note_special(Floats first, Floats second, float* marks) {
  const Words special = (special_bit(first) | special_bit(second)) >> 31;
  store(marks, (Floats)((Words)load(marks) | (special & 0x3f800000)));
}

// The first `lanes` of p, which may be none.
RNNFAST_INLINE Floats load_some(const float* p, int64_t lanes) {
  return lanes <= 0 ? Floats{} : load_tail(p, int(lesser(lanes, kLane)));
}

// Whether any is not +0.
RNNFAST_INLINE bool any(Floats x) { return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0; }

// ---------------------------------------------------------------------------------- tiles

// The numbers that a vector of words of each part holds, in their lower or upper halves.
RNNFAST_INLINE Floats numbers_of(const uint32_t* words, int half) {
  Floats part[kParts];
  for (int p = 0; p < kParts; p++) {
    Words w;
    __builtin_memcpy(&w, words + p * kLane * kLane, sizeof w);
    part[p] = (Floats)(half ? w & int32_t(0xffff0000u) : w << 16);
  }
  return part[2] + part[1] + part[0];  // from the first on, the largest number would overflow
}
RNNFAST_INLINE float number_of(const uint32_t* word, int half) {
  float part[kParts];
  for (int p = 0; p < kParts; p++) {
    const uint32_t bits = half ? word[p * kLane] & 0xffff0000u : word[p * kLane] << 16;
    __builtin_memcpy(&part[p], &bits, sizeof bits);
  }
  return part[2] + part[1] + part[0];
}

// One row by one vector of columns in multiply-adds: what float32 gives where numbers are special,
// for which parts are no help (an infinity times a part of the other sign is NaN).
Floats multiply_special(const SplitTile& t, int row, int vector, Floats sum) {
  const uint32_t* operand = t.operand + row * t.operand_words;
  for (int64_t block = 0; block < t.depth; block += kBlockWords)
    for (int half = 0; half < 2; half++)
      for (int i = 0; i < kLane; i++)
        sum = fma(broadcast(number_of(operand + block + i, half)),
                  numbers_of(t.panel + vector * t.apart + (block + i) * kLane, half), sum);
  return sum;
}

// The rows that this thread's tiles are shaped for: to shape them takes longer than some products.
thread_local int shaped_for = 0;

// Tiles 0 to 3 hold sums. Up to 16 rows 4 to 6 hold the parts of rows and 7 columns; with more, 4
// and 5 hold rows, 6 and 7 columns, and the odd ones of 0 to 5 are from row 16 on.
void shape_for(int rows) {
  if (rows == shaped_for) return;
  shaped_for = rows;
  const int columns = rows <= 16 ? 7 : 6;
  TileShapes shapes;
  for (int i = 0; i < kTiles; i++) {
    shapes.row_bytes[i] = 64;
    shapes.rows[i] = uint8_t(i >= columns ? 16 : rows <= 16 ? rows : i % 2 ? rows - 16 : 16);
  }
  shapes.use();
}

// Sums in a tile, of a vector from a row on.
#define RNNFAST_START(tile, v, row)                                                   \
  if (t.from[v].at)                                                                   \
    _tile_loadd(tile, t.from[v].at + (row) * t.from[v].stride, t.from[v].stride * 4); \
  else                                                                                \
    _tile_zero(tile);
#define RNNFAST_END(tile, v, row) \
  _tile_stored(tile, t.to[v].at + (row) * t.to[v].stride, t.to[v].stride * 4);

// The six products of a block are added smallest first, of parts of the rows and of the columns:
// (2, 0) (1, 0) (1, 1) (0, 1) (0, 2) (0, 0). Where those have changed sides, as in the transposed
// product, the pairs have too.

// Up to 16 rows: all vectors at a time.
template <int kVectors, bool kTurned>
void few_rows(const SplitTile& t) {
  RNNFAST_START(0, 0, 0)
  if constexpr (kVectors > 1) RNNFAST_START(1, 1, 0)
  if constexpr (kVectors > 2) RNNFAST_START(2, 2, 0)
  if constexpr (kVectors > 3) RNNFAST_START(3, 3, 0)
  for (int64_t k = 0; k < t.depth; k += kBlockWords) {
    const uint32_t* operand = t.operand + k;
    const uint32_t* columns = t.panel + k * kLane;
    _tile_loadd(4, operand, t.operand_words * 4);
    _tile_loadd(5, operand + kLane, t.operand_words * 4);
    _tile_loadd(6, operand + 2 * kLane, t.operand_words * 4);
#define RNNFAST_COLUMNS(part) _tile_loadd(7, columns + (part) * kLane * kLane, 64)
#define RNNFAST_PRODUCTS(v)  \
  if constexpr (kTurned) {   \
    RNNFAST_COLUMNS(2);      \
    _tile_dpbf16ps(v, 4, 7); \
    RNNFAST_COLUMNS(1);      \
    _tile_dpbf16ps(v, 4, 7); \
    _tile_dpbf16ps(v, 5, 7); \
    RNNFAST_COLUMNS(0);      \
    _tile_dpbf16ps(v, 5, 7); \
    _tile_dpbf16ps(v, 6, 7); \
    _tile_dpbf16ps(v, 4, 7); \
  } else {                   \
    RNNFAST_COLUMNS(0);      \
    _tile_dpbf16ps(v, 6, 7); \
    _tile_dpbf16ps(v, 5, 7); \
    RNNFAST_COLUMNS(1);      \
    _tile_dpbf16ps(v, 5, 7); \
    _tile_dpbf16ps(v, 4, 7); \
    RNNFAST_COLUMNS(2);      \
    _tile_dpbf16ps(v, 4, 7); \
    RNNFAST_COLUMNS(0);      \
    _tile_dpbf16ps(v, 4, 7); \
  }                          \
  columns += t.apart
    RNNFAST_PRODUCTS(0);
    if constexpr (kVectors > 1) {
      RNNFAST_PRODUCTS(1);
    }
    if constexpr (kVectors > 2) {
      RNNFAST_PRODUCTS(2);
    }
    if constexpr (kVectors > 3) {
      RNNFAST_PRODUCTS(3);
    }
#undef RNNFAST_PRODUCTS
#undef RNNFAST_COLUMNS
  }
  RNNFAST_END(0, 0, 0)
  if constexpr (kVectors > 1) RNNFAST_END(1, 1, 0)
  if constexpr (kVectors > 2) RNNFAST_END(2, 2, 0)
  if constexpr (kVectors > 3) RNNFAST_END(3, 3, 0)
}

// 17 to 32 rows by one or two vectors, from vector v on.
template <bool kPair, bool kTurned>
void many_rows(const SplitTile& t, int v) {
  RNNFAST_START(0, v, 0)
  RNNFAST_START(1, v, 16)
  if constexpr (kPair) {
    RNNFAST_START(2, v + 1, 0)
    RNNFAST_START(3, v + 1, 16)
  }
  const int64_t stride = t.operand_words * 4;
  for (int64_t k = 0; k < t.depth; k += kBlockWords) {
    const uint32_t* rows = t.operand + k;
    const uint32_t* below = rows + 16 * t.operand_words;
    const uint32_t* columns = t.panel + v * t.apart + k * kLane;
#define RNNFAST_ROWS(part)                       \
  _tile_loadd(4, rows + (part) * kLane, stride); \
  _tile_loadd(5, below + (part) * kLane, stride)
#define RNNFAST_COLUMNS(part)                           \
  _tile_loadd(6, columns + (part) * kLane * kLane, 64); \
  if constexpr (kPair) _tile_loadd(7, columns + t.apart + (part) * kLane * kLane, 64)
#define RNNFAST_PRODUCTS()   \
  _tile_dpbf16ps(0, 4, 6);   \
  _tile_dpbf16ps(1, 5, 6);   \
  if constexpr (kPair) {     \
    _tile_dpbf16ps(2, 4, 7); \
    _tile_dpbf16ps(3, 5, 7); \
  }
    if constexpr (kTurned) {
      RNNFAST_ROWS(0);
      RNNFAST_COLUMNS(2);
      RNNFAST_PRODUCTS();
      RNNFAST_COLUMNS(1);
      RNNFAST_PRODUCTS();
      RNNFAST_ROWS(1);
      RNNFAST_PRODUCTS();
      RNNFAST_COLUMNS(0);
      RNNFAST_PRODUCTS();
      RNNFAST_ROWS(2);
      RNNFAST_PRODUCTS();
      RNNFAST_ROWS(0);
      RNNFAST_PRODUCTS();
    } else {
      RNNFAST_ROWS(2);
      RNNFAST_COLUMNS(0);
      RNNFAST_PRODUCTS();
      RNNFAST_ROWS(1);
      RNNFAST_PRODUCTS();
      RNNFAST_COLUMNS(1);
      RNNFAST_PRODUCTS();
      RNNFAST_ROWS(0);
      RNNFAST_PRODUCTS();
      RNNFAST_COLUMNS(2);
      RNNFAST_PRODUCTS();
      RNNFAST_COLUMNS(0);
      RNNFAST_PRODUCTS();
    }
#undef RNNFAST_ROWS
#undef RNNFAST_COLUMNS
#undef RNNFAST_PRODUCTS
  }
  RNNFAST_END(0, v, 0)
  RNNFAST_END(1, v, 16)
  if constexpr (kPair) {
    RNNFAST_END(2, v + 1, 0)
    RNNFAST_END(3, v + 1, 16)
  }
}

template <bool kTurned>
void all_rows(const SplitTile& t) {
  if (t.rows > 16) {
    for (int v = 0; v + 1 < t.vectors; v += 2) many_rows<true, kTurned>(t, v);
    if (t.vectors % 2) many_rows<false, kTurned>(t, t.vectors - 1);
    return;
  }
  switch (t.vectors) {
    case 1: return few_rows<1, kTurned>(t);
    case 2: return few_rows<2, kTurned>(t);
    case 3: return few_rows<3, kTurned>(t);
    case 4: return few_rows<4, kTurned>(t);
  }
}

void multiply_ordinary(const SplitTile& t) {
  asm volatile("" : : : "memory");  // GCC's intrinsics do not tell it what they read
  shape_for(t.rows);
  if (t.turned)
    all_rows<true>(t);
  else
    all_rows<false>(t);
}

// The same where some rows or columns are special: those are multiplied as float32.
__attribute__((noinline)) void multiply_with_special(const SplitTile& t) {
  float sums[kMostLowRows * 4][kLane];
  const auto taken = [&](int m, int v) {
    return t.operand_scale[m] != 0 || any(load(t.special + v * kLane));
  };
  const auto each = [&](auto body) {
    for (int m = 0; m < t.rows; m++)
      for (int v = 0; v < t.vectors; v++)
        if (taken(m, v)) body(m, v, sums[m * t.vectors + v]);
  };
  each([&](int m, int v, float* sum) {
    const auto& from = t.from[v];
    store(sum, multiply_special(t, m, v, from.at ? load(from.at + m * from.stride) : Floats{}));
  });
  multiply_ordinary(t);
  each([&](int m, int v, float* sum) { store(t.to[v].at + m * t.to[v].stride, load(sum)); });
}

}  // namespace

void convert_split(const Rows<const float>& rows, int64_t count, int64_t k, uint32_t* operand,
                   float* special) {
  const int64_t words = operand_words_split(k);
  for (int64_t r = 0; r < count; r++) {
    const float* x = rows.row(r);
    uint32_t* to = operand + r * words;
    bool ordinary = true;
    for (int64_t i = 0; i < k; i += kBlock, to += kBlockWords)
      ordinary &=
          to_words(load_some(x + i, k - i), load_some(x + i + kLane, k - i - kLane), to, kLane);
    special[r] = ordinary ? 0.f : 1.f;
  }
}

void pack_split(const Panels<float>& p, uint32_t* words, const LowColumns& columns, Team team) {
  const int64_t vectors = parts(p.n, kLane);
  const int64_t blocks = parts(vectors, p.widest);
  const int64_t depth = words_of(Precision::kSplit, p.k);
  float numbers[kBlock * 4 * kLane] __attribute__((aligned(64)));
  for (int64_t i = part_begin(blocks, team.size, team.id);
       i < part_begin(blocks, team.size, team.id + 1); i++) {
    const Block block = block_of(vectors, p.widest, i);
    const int64_t first = block.vector * p.source.groups * kLane;
    const int64_t width = int64_t(block.vectors) * p.source.groups * kLane;
    uint32_t* to = words + first * depth;
    for (int64_t c = 0; c < width; c++) columns.scale[first + c] = 0;
    for (int64_t k = 0; k < p.k; k += kBlock, to += kBlockWords * kLane) {
      const int64_t count = lesser(kBlock, p.k - k);
      const float* from = p.data + first * p.k + k * width;
      if (!p.data) {
        pack_block(p, block.vector, block.vectors, k, count, numbers);
        from = numbers;
      }
      for (int64_t r = 0; r < kLane; r++)
        for (int64_t c = 0; c < width; c += kLane) {
          const float* at = from + r * width + c;
          const Floats upper = r < count ? load(at) : Floats{};
          const Floats lower = r + kLane < count ? load(at + kLane * width) : Floats{};
          if (!to_words(upper, lower, to + c * depth + r * kLane, kLane * kLane))
            note_special(upper, lower, columns.scale + first + c);
        }
    }
  }
}

void release_split() {
  if (shaped_for != 0) _tile_release();
  shaped_for = 0;
}

void multiply_split(const SplitTile& t) {
  bool special = false;
  for (int m = 0; m < t.rows; m++) special |= t.operand_scale[m] != 0;
  for (int v = 0; v < t.vectors; v++) special |= any(load(t.special + v * kLane));
  if (__builtin_expect(special, 0))
    multiply_with_special(t);
  else
    multiply_ordinary(t);
}

void multiply_panels_split(const uint32_t* operand, const float* special, int64_t operand_words,
                           int64_t rows, const Panels<float>& p, const LowColumns& columns,
                           const float* bias, const Rows<float>& c, Team team) {
  const int64_t vectors = parts(p.n, kLane), blocks = parts(vectors, p.widest);
  const Share share = product_share(0, rows, blocks, team);
  float sums[kMostLowRows * 4 * kLane] __attribute__((aligned(64)));
  // Some rows and a part of k at a time, so that both operands stay in the cache.
  const int64_t some = parts(share.row_end - share.row_begin, kSomeRows);
  for (int64_t r = 0; r < some; r++)
    for (int64_t k = 0; k < p.k; k += kDepth)
      for (int64_t i = share.block_begin; i < share.block_end; i++) {
        const Block block = block_of(vectors, p.widest, i);
        const int64_t column = block.vector * kLane, columns_here = p.n - column;
        SplitTile t{};
        t.operand_words = operand_words;
        t.apart = p.k * kLane;
        t.panel = reinterpret_cast<const uint32_t*>(p.data) + block.vector * t.apart + k * kLane;
        t.depth = lesser(kDepth, p.k - k);
        t.vectors = block.vectors;
        t.special = columns.scale + column;
        const int64_t count = share.row_end - share.row_begin;
        const int64_t begin = share.row_begin + part_begin(count, some, r);
        const int64_t end = share.row_begin + part_begin(count, some, r + 1);
        const int64_t tiles = parts(end - begin, kMostLowRows);
        const bool direct = !c.each && columns_here >= block.vectors * kLane;
        for (int64_t n = 0; n < tiles; n++) {
          const int64_t row = begin + part_begin(end - begin, tiles, n);
          t.rows = int(begin + part_begin(end - begin, tiles, n + 1) - row);
          t.operand = operand + row * operand_words + k;
          t.operand_scale = special + row;
          t.stay_in(sums, kLane);
          for (int v = 0; v < block.vectors; v++) {
            const int64_t lanes = columns_here - v * kLane;
            const auto at = [&](int m) { return c.row(row + m) + column + v * kLane; };
            if (direct) t.to[v] = {at(0), c.stride};
            if (direct && k > 0) {
              t.from[v] = {at(0), c.stride};
            } else if (k > 0) {
              for (int m = 0; m < t.rows; m++)
                store(sums + (m * block.vectors + v) * kLane, load_some(at(m), lanes));
            } else if (bias && lanes >= kLane) {
              t.from[v] = {bias + column + v * kLane, 0};
            } else if (bias) {
              store(sums + v * kLane, load_some(bias + column + v * kLane, lanes));
              t.from[v].stride = 0;
            } else {
              t.from[v].at = nullptr;
            }
          }
          multiply_split(t);
          if (direct) continue;
          for (int m = 0; m < t.rows; m++)
            for (int v = 0; v < block.vectors; v++)
              store_tail(c.row(row + m) + column + v * kLane,
                         load(sums + (m * block.vectors + v) * kLane),
                         int(columns_here - v * kLane));
        }
      }
}

// ------------------------------------------------------ transposed rows times rows (weights)

namespace {

constexpr int kTnRows = 32;         // of c in a tile
constexpr int kTnVectors = 2;       // and columns
constexpr int64_t kTnTogether = 4;  // tiles of rows whose operand stays in the cache

// Columns [first, first + count) of a as rows of an operand. Lines of a row are taken one after the
// other: rows may lie a page apart, over which no processor fetches ahead.
void convert_columns(const Rows<const float>& a, int64_t first, int64_t count, int64_t rows,
                     uint32_t* operand, float* special) {
  const int64_t stride = operand_words_split(rows);
  uint32_t words[kParts][kLane][kLane] __attribute__((aligned(64)));
  __builtin_memset(special, 0, size_t(parts(count, kLane)) * kLane * sizeof(float));
  for (int64_t r = 0; r < rows; r += kBlock)
    for (int64_t m = 0; m < count; m += kLane) {
      const int64_t lanes = count - m;
      const auto row = [&](int64_t k) {
        return k < rows ? load_some(a.row(k) + first + m, lanes) : Floats{};
      };
      for (int i = 0; i < kLane; i++) {
        const Floats upper = row(r + i), lower = row(r + i + kLane);
        if (!to_words(upper, lower, words[0][i], kLane * kLane))
          note_special(upper, lower, special + m);
      }
      for (int p = 0; p < kParts; p++) {
        Floats v[kLane];
        for (int i = 0; i < kLane; i++) v[i] = load(reinterpret_cast<const float*>(words[p][i]));
        transpose_all<float>(v);
        uint32_t* to = operand + m * stride + r / kBlock * kBlockWords + p * kLane;
        for (int i = 0; i < kLane && i < lanes; i++)
          store(reinterpret_cast<float*>(to + i * stride), v[i]);
      }
    }
}

}  // namespace

int64_t tn_scratch_split(int64_t n, int64_t rows, int members) {
  constexpr int64_t width = kTnVectors * kLane;
  const int64_t columns = parts(n, width) * width;
  return columns * (words_of(Precision::kSplit, rows) + 1) +
         members * kTnTogether * kTnRows * (operand_words_split(rows) + 1);
}

void multiply_tn_split(const Rows<const float>& a, int64_t m, const Rows<const float>& b, int64_t n,
                       int64_t rows, float* c, int64_t c_stride, bool accumulate, bool turned,
                       float* scratch, Team team) {
  constexpr int64_t width = kTnVectors * kLane;
  const int64_t blocks = parts(n, width), depth = words_of(Precision::kSplit, rows);
  const int64_t operand_words = operand_words_split(rows);
  uint32_t* panels = reinterpret_cast<uint32_t*>(scratch);  // [blocks, vectors, depth, lanes]
  float* marks = scratch + blocks * width * depth;          // [blocks, width]
  float* own = marks + blocks * width + team.id * kTnTogether * kTnRows * (operand_words + 1);
  uint32_t* operand = reinterpret_cast<uint32_t*>(own);  // [together, operand_words]
  float* special = own + kTnTogether * kTnRows * operand_words;

  const int64_t first = part_begin(blocks, team.size, team.id);
  const int64_t after = part_begin(blocks, team.size, team.id + 1);
  __builtin_memset(marks + first * width, 0, size_t((after - first) * width) * sizeof(float));
  for (int64_t r = 0; r < rows; r += kBlock)
    for (int64_t i = r; i < r + kLane; i++)
      for (int64_t v = first * kTnVectors; v < after * kTnVectors; v++) {
        const auto row = [&](int64_t k) {
          return k < rows ? load_some(b.row(k) + v * kLane, n - v * kLane) : Floats{};
        };
        const Floats upper = row(i), lower = row(i + kLane);
        uint32_t* to = panels + (v * depth + r / kBlock * kBlockWords + i - r) * kLane;
        if (!to_words(upper, lower, to, kLane * kLane))
          note_special(upper, lower, marks + v * kLane);
      }
  if (team.size > 1) team.barrier->wait();

  float sums[kTnRows * width] __attribute__((aligned(64)));
  const int64_t tiles = parts(m, kTnRows), end = part_begin(tiles, team.size, team.id + 1);
  for (int64_t begin = part_begin(tiles, team.size, team.id); begin < end; begin += kTnTogether) {
    const int64_t last = lesser(begin + kTnTogether, end);
    convert_columns(a, begin * kTnRows, lesser(last * kTnRows, m) - begin * kTnRows, rows, operand,
                    special);
    for (int64_t j = 0; j < blocks; j++)
      for (int64_t i = begin; i < last; i++) {
        const int64_t row = i * kTnRows, columns = n - j * width;
        const int vectors = columns > kLane ? 2 : 1;  // that exist
        SplitTile t{};
        t.operand = operand + (i - begin) * kTnRows * operand_words;
        t.operand_scale = special + (i - begin) * kTnRows;
        t.operand_words = operand_words;
        t.rows = int(lesser(kTnRows, m - row));
        t.panel = panels + j * depth * width;
        t.apart = depth * kLane;
        t.depth = depth;
        t.vectors = vectors;
        t.special = marks + j * width;
        t.turned = turned;
        t.stay_in(sums, kLane);
        float* at = c + row * c_stride + j * width;
        const bool direct = columns >= vectors * kLane;
        for (int v = 0; v < vectors; v++) {
          if (direct) t.to[v] = {at + v * kLane, c_stride}, t.from[v] = {at + v * kLane, c_stride};
          if (!accumulate) t.from[v].at = nullptr;
          for (int r = 0; !direct && accumulate && r < t.rows; r++)
            store(sums + (r * vectors + v) * kLane,
                  load_some(at + r * c_stride + v * kLane, columns - v * kLane));
        }
        multiply_split(t);
        for (int r = 0; !direct && r < t.rows; r++)
          for (int v = 0; v < vectors; v++)
            store_tail(at + r * c_stride + v * kLane, load(sums + (r * vectors + v) * kLane),
                       int(columns - v * kLane));
      }
  }
  if (team.size > 1) team.barrier->wait();
}

}  // namespace rnnfast::RNNFAST_ISA
