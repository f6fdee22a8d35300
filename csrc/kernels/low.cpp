// Products whose numbers are converted first, for one instruction set.
#include "low.hpp"

#include <type_traits>

#include "tile.hpp"

#if defined(RNNFAST_AMX)
#include "matrix_unit.hpp"
#include "split.hpp"
#endif

namespace rnnfast::RNNFAST_ISA {

extern const LowKernels low_kernels;

namespace {

constexpr int kWords = kLanes<float>;
using Words = IntVec<float>;
using Floats = Vec<float>;

constexpr bool is_int8(Precision p) { return p == Precision::kInt8; }

RNNFAST_INLINE Words load_words(const uint32_t* p) {
  Words v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
RNNFAST_INLINE Words broadcast_word(uint32_t w) { return Words{} + int32_t(w); }

uint32_t bits_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, sizeof u);
  return u;
}
uint16_t to_bfloat16(float x) {
  const uint32_t u = bits_of(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t(u >> 16 | 0x40);  // NaN
  return uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

// q = x * factor rounded to nearest, ties to even, for |q| up to 127.
RNNFAST_INLINE Words rounded(Floats x, float factor) {
  return (Words)(x * factor + 0x1.8p23f) - 0x4b400000;
}

// Rows of int8 whose largest number is below are zero: 127 / largest would overflow.
constexpr float kSmallestRow = 1e-36f;

// The largest |x|; NaN where x has a NaN or an infinity.
float largest(const float* x, int64_t k) {
  Floats most{}, poison{};
  for (int64_t i = 0; i < k; i += kWords) {
    const Floats v = load_tail(x + i, int(k - i < kWords ? k - i : kWords));
    const Floats size = (Floats)((Words)v & 0x7fffffff);
    most = size > most ? size : most;
    poison += v * 0;
  }
  float found = 0, bad = 0;
  for (int i = 0; i < kWords; i++) {
    found = most[i] > found ? most[i] : found;
    bad += poison[i];
  }
  return found + bad;
}

// ------------------------------------------------------------------------------ operands

#if defined(__AVX512BF16__)
constexpr bool kRoundsOperand = true;
#else
constexpr bool kRoundsOperand = false;
#endif

int64_t operand_words(Precision precision, int64_t k) {
#if defined(RNNFAST_AMX)
  if (precision == Precision::kSplit) return operand_words_split(k);
#endif
  const int64_t words = words_of(precision, k);
  return is_int8(precision) || kRoundsOperand ? words : 2 * words;
}

void convert_bfloat16(const float* x, int64_t k, uint32_t* to) {
  if constexpr (!kRoundsOperand) {
    __builtin_memcpy(to, x, size_t(k) * sizeof(float));
    if (k % 2) to[k] = 0;
    return;
  }
#if defined(__AVX512BF16__)
  int64_t i = 0;
  for (; i + 32 <= k; i += 32) {
    const auto v = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
    __builtin_memcpy(to + i / 2, &v, sizeof v);
  }
  for (; i < k; i += 2) {
    const Floats v = load_tail(x + i, int(k - i < 2 ? 1 : 2));
    const auto pair = _mm512_cvtneps_pbh((__m512)v);
    __builtin_memcpy(to + i / 2, &pair, sizeof(uint32_t));
  }
#endif
}

// Bytes q + 128, and the scale of the row.
float convert_int8(const float* x, int64_t k, uint32_t* to) {
  const float most = largest(x, k);
  const float factor = most > kSmallestRow ? 127 / most : 0;
  uint8_t* bytes = reinterpret_cast<uint8_t*>(to);
  for (int64_t i = 0; i < k; i += kWords) {
    const int count = int(k - i < kWords ? k - i : kWords);
    const Words q = rounded(load_tail(x + i, count), factor) + 128;
#if defined(__AVX512F__)
    _mm512_mask_cvtepi32_storeu_epi8(bytes + i, __mmask16((1u << count) - 1), (__m512i)q);
#else
    for (int j = 0; j < count; j++) bytes[i + j] = uint8_t(q[j]);
#endif
  }
  for (int64_t i = k; i % 4; i++) bytes[i] = 0;
  return most / 127;
}

void convert(Precision precision, const Rows<const float>& rows, int64_t count, int64_t k,
             uint32_t* operand, float* scale) {
#if defined(RNNFAST_AMX)
  if (precision == Precision::kSplit) return convert_split(rows, count, k, operand, scale);
#endif
  const int64_t words = operand_words(precision, k);
  for (int64_t r = 0; r < count; r++) {
    if (is_int8(precision))
      scale[r] = convert_int8(rows.row(r), k, operand + r * words);
    else
      convert_bfloat16(rows.row(r), k, operand + r * words);
  }
}

// -------------------------------------------------------------------------------- tiles

// acc + the two products of each lane's pair.
RNNFAST_INLINE Floats dot_bfloat16(Floats acc, const uint32_t* a, Words w) {
#if defined(__AVX512BF16__)
  return (Floats)_mm512_dpbf16_ps((__m512)acc, (__m512bh)broadcast_word(*a), (__m512bh)w);
#else
  float pair[2];
  __builtin_memcpy(pair, a, sizeof pair);
  acc = fma(broadcast(pair[0]), (Floats)(w << 16), acc);
  return fma(broadcast(pair[1]), (Floats)(w & int32_t(0xffff0000u)), acc);
#endif
}

// Products of 16-bit halves, added in pairs.
[[maybe_unused]] RNNFAST_INLINE Words multiply_halves(Words a, Words b) {
#if defined(__AVX512BW__)
  return (Words)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Words)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// acc + the four products of each lane's bytes, unsigned in a and signed in w.
RNNFAST_INLINE Words dot_int8(Words acc, const uint32_t* a, Words w) {
  const Words bytes = broadcast_word(*a);
#if defined(__AVX512VNNI__)
  return (Words)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)bytes, (__m512i)w);
#else
  typedef int16_t Halves __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
  const Words even = (Words)((Halves)((Halves)w << 8) >> 8), odd = (Words)((Halves)w >> 8);
  const Words low = bytes & 0x00ff00ff, high = (bytes >> 8) & 0x00ff00ff;
  return acc + multiply_halves(low, even) + multiply_halves(high, odd);
#endif
}

template <Precision kPrecision, int kRows, int kVectors>
void multiply_tile(const LowTile& t) {
  constexpr bool int8 = kPrecision == Precision::kInt8;
  using Acc = std::conditional_t<int8, Words, Floats>;
  constexpr int step = int8 || kRoundsOperand ? 1 : 2;
  Acc acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      if constexpr (int8)
        __builtin_memcpy(&acc[m][v], t.columns.correction + v * kWords, sizeof(Words));
      else
        acc[m][v] = load(t.sums + (m * kVectors + v) * kWords);
    }
#pragma GCC unroll 4
  for (int64_t k = 0; k < t.depth; k++) {
    Words w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) w[v] = load_words(t.panel + (k * kVectors + v) * kWords);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; m++) {
      const uint32_t* a = t.operand + m * t.operand_words + k * step;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        if constexpr (int8)
          acc[m][v] = dot_int8(acc[m][v], a, w[v]);
        else
          acc[m][v] = dot_bfloat16(acc[m][v], a, w[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      float* at = t.sums + (m * kVectors + v) * kWords;
      if constexpr (int8) {
        const Floats scale = load(t.columns.scale + v * kWords) * t.operand_scale[m];
        store(at, fma(__builtin_convertvector(acc[m][v], Floats), scale, load(at)));
      } else {
        store(at, acc[m][v]);
      }
    }
}

template <Precision kPrecision, int kVectors>
void multiply_rows(const LowTile& t) {
  constexpr int most = max_rows(kVectors);
  switch (t.rows) {
    case 1: multiply_tile<kPrecision, 1, kVectors>(t); break;
    case 2: multiply_tile<kPrecision, 2, kVectors>(t); break;
    case 3: multiply_tile<kPrecision, 3, kVectors>(t); break;
    case 4:
      if constexpr (most >= 4) multiply_tile<kPrecision, 4, kVectors>(t);
      break;
    case 5:
      if constexpr (most >= 5) multiply_tile<kPrecision, 5, kVectors>(t);
      break;
    case 6:
      if constexpr (most >= 6) multiply_tile<kPrecision, 6, kVectors>(t);
      break;
    case 7:
      if constexpr (most >= 7) multiply_tile<kPrecision, 7, kVectors>(t);
      break;
    case 8:
      if constexpr (most >= 8) multiply_tile<kPrecision, 8, kVectors>(t);
      break;
  }
}

// body(the number of vectors of a block, as a constant).
template <class Body>
RNNFAST_INLINE void for_vectors(int vectors, Body body) {
  switch (vectors) {
    case 1: return body(std::integral_constant<int, 1>());
    case 2: return body(std::integral_constant<int, 2>());
    case 3: return body(std::integral_constant<int, 3>());
    case 4: return body(std::integral_constant<int, 4>());
  }
}

#if defined(RNNFAST_AMX)
// Up to how many rows vectors multiply as fast, to the same bits: of int8, and of bfloat16 where
// there are few words.
constexpr int kFewOfInt8 = 4, kFewOfBfloat16 = 2, kFewWords = 2 * kDeep;

// What sums start with: numbers of 32 bits, rows `stride` bytes apart; 0 for one row for all.
struct Start {
  const int32_t* at;
  int64_t stride;
};

// Tiles have numbers in the source: 0 to 3 hold sums, 4 to 7 operands and columns.
#define RNNFAST_TILE_PRODUCT(sums, operand, columns) \
  if constexpr (kPrecision == Precision::kInt8)      \
    _tile_dpbusd(sums, operand, columns);            \
  else                                               \
    _tile_dpbf16ps(sums, operand, columns);

// Up to 16 rows by kVectors vectors: to = from + the products of words [begin, end), which are
// fewer than 16 or a multiple.
template <Precision kPrecision, int kVectors>
void multiply_words(const LowTile& t, int64_t begin, int64_t end, Start from, int32_t* to) {
  TileShapes shapes;
  const int deep = int(lesser(end - begin, kDeep));
  for (int i = 0; i < 8; i++) {
    shapes.row_bytes[i] = uint16_t(i == 4 ? 4 * deep : 64);
    shapes.rows[i] = uint8_t(i < 5 ? t.rows : deep);
  }
  shapes.use();
  _tile_loadd(0, from.at, from.stride);
  if constexpr (kVectors > 1) _tile_loadd(1, from.at + kWords, from.stride);
  if constexpr (kVectors > 2) _tile_loadd(2, from.at + 2 * kWords, from.stride);
  if constexpr (kVectors > 3) _tile_loadd(3, from.at + 3 * kWords, from.stride);
  for (int64_t k = begin; k < end; k += kDeep) {
    const uint32_t* panel = t.panel + k * kVectors * kWords;
    _tile_loadd(4, t.operand + k, t.operand_words * 4);
    _tile_loadd(5, panel, kVectors * 64);
    RNNFAST_TILE_PRODUCT(0, 4, 5)
    if constexpr (kVectors > 1) {
      _tile_loadd(6, panel + kWords, kVectors * 64);
      RNNFAST_TILE_PRODUCT(1, 4, 6)
    }
    if constexpr (kVectors > 2) {
      _tile_loadd(7, panel + 2 * kWords, kVectors * 64);
      RNNFAST_TILE_PRODUCT(2, 4, 7)
    }
    if constexpr (kVectors > 3) {
      _tile_loadd(5, panel + 3 * kWords, kVectors * 64);
      RNNFAST_TILE_PRODUCT(3, 4, 5)
    }
  }
  _tile_stored(0, to, kVectors * 64);
  if constexpr (kVectors > 1) _tile_stored(1, to + kWords, kVectors * 64);
  if constexpr (kVectors > 2) _tile_stored(2, to + 2 * kWords, kVectors * 64);
  if constexpr (kVectors > 3) _tile_stored(3, to + 3 * kWords, kVectors * 64);
}

// The same for 17 to 32 rows, two vectors at a time, so that columns are read once for all rows.
template <Precision kPrecision, int kVectors>
void multiply_words_of_many(const LowTile& t, int64_t begin, int64_t end, Start from, int32_t* to) {
  TileShapes shapes;
  const int deep = int(lesser(end - begin, kDeep)), rows = t.rows - 16;
  for (int i = 0; i < 8; i++) {
    shapes.row_bytes[i] = uint16_t(i == 4 || i == 5 ? 4 * deep : 64);
    shapes.rows[i] = uint8_t(i > 5 ? deep : i % 2 ? rows : 16);  // odd ones: from row 16 on
  }
  shapes.use();
  for (int v = 0; v < kVectors; v += 2) {
    const bool pair = v + 1 < kVectors;
    const int32_t* first = from.at + v * kWords;
    int32_t* at = to + v * kWords;
    _tile_loadd(0, first, from.stride);
    _tile_loadd(1, first + from.stride * 4, from.stride);
    if (pair) {
      _tile_loadd(2, first + kWords, from.stride);
      _tile_loadd(3, first + kWords + from.stride * 4, from.stride);
    }
    for (int64_t k = begin; k < end; k += kDeep) {
      const uint32_t* panel = t.panel + k * kVectors * kWords + v * kWords;
      _tile_loadd(4, t.operand + k, t.operand_words * 4);
      _tile_loadd(6, panel, kVectors * 64);
      RNNFAST_TILE_PRODUCT(0, 4, 6)
      _tile_loadd(5, t.operand + 16 * t.operand_words + k, t.operand_words * 4);
      RNNFAST_TILE_PRODUCT(1, 5, 6)
      if (pair) {
        _tile_loadd(7, panel + kWords, kVectors * 64);
        RNNFAST_TILE_PRODUCT(2, 4, 7)
        RNNFAST_TILE_PRODUCT(3, 5, 7)
      }
    }
    _tile_stored(0, at, kVectors * 64);
    _tile_stored(1, at + 16 * kVectors * kWords, kVectors * 64);
    if (pair) {
      _tile_stored(2, at + kWords, kVectors * 64);
      _tile_stored(3, at + kWords + 16 * kVectors * kWords, kVectors * 64);
    }
  }
}

template <Precision kPrecision, int kVectors>
void multiply_in_matrix_unit(const LowTile& t) {
  constexpr bool int8 = kPrecision == Precision::kInt8;
  constexpr int64_t stride = kVectors * 64;
  int32_t totals[int8 ? kMostLowRows * kVectors * kWords : 1] __attribute__((aligned(64)));
  int32_t* to = int8 ? totals : reinterpret_cast<int32_t*>(t.sums);
  // All rows of int8 start with the one of corrections.
  Start from = int8 ? Start{t.columns.correction, 0} : Start{to, stride};
  const int64_t whole = t.depth / kDeep * kDeep;
  const auto add = [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    if (t.rows > 16)
      multiply_words_of_many<kPrecision, kVectors>(t, begin, end, from, to);
    else
      multiply_words<kPrecision, kVectors>(t, begin, end, from, to);
    from = {to, stride};
  };
  add(whole, t.depth);
  add(0, whole);
  _tile_release();
  if constexpr (int8)
    for (int m = 0; m < t.rows; m++)
      for (int v = 0; v < kVectors; v++) {
        float* at = t.sums + (m * kVectors + v) * kWords;
        Words total;
        __builtin_memcpy(&total, totals + (m * kVectors + v) * kWords, sizeof total);
        const Floats scale = load(t.columns.scale + v * kWords) * t.operand_scale[m];
        store(at, fma(__builtin_convertvector(total, Floats), scale, load(at)));
      }
}

// The same sums in vectors: the even and the odd products of some words, each one chain.
template <int kRows, int kVectors>
void multiply_as_matrix_unit(const LowTile& t) {
  Floats acc[kRows][kVectors];
#pragma GCC unroll 2
  for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) acc[m][v] = load(t.sums + (m * kVectors + v) * kWords);
  const auto add_words = [&](int64_t begin, int64_t end) {
    Floats even[kRows][kVectors] = {}, odd[kRows][kVectors] = {};
    for (int64_t k = begin; k < end; k++) {
      Floats a_even[kRows], a_odd[kRows];
#pragma GCC unroll 2
      for (int m = 0; m < kRows; m++) {
        const Words a = broadcast_word(t.operand[m * t.operand_words + k]);
        a_even[m] = (Floats)(a << 16);
        a_odd[m] = (Floats)(a & int32_t(0xffff0000u));
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        const Words w = load_words(t.panel + (k * kVectors + v) * kWords);
        const Floats w_even = (Floats)(w << 16), w_odd = (Floats)(w & int32_t(0xffff0000u));
#pragma GCC unroll 2
        for (int m = 0; m < kRows; m++) {
          even[m][v] = fma(a_even[m], w_even, even[m][v]);
          odd[m][v] = fma(a_odd[m], w_odd, odd[m][v]);
        }
      }
    }
#pragma GCC unroll 2
    for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) acc[m][v] += even[m][v] + odd[m][v];
  };
  const int64_t whole = t.depth / kDeep * kDeep;
  if (whole < t.depth) add_words(whole, t.depth);
  for (int64_t k = 0; k < whole; k += kDeep) add_words(k, k + kDeep);
#pragma GCC unroll 2
  for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) store(t.sums + (m * kVectors + v) * kWords, acc[m][v]);
}

int64_t most_rows(int) { return kMostLowRows; }
#else
int64_t most_rows(int vectors) { return max_rows(vectors); }
#endif

void multiply(Precision precision, const LowTile& t) {
  for_vectors(t.vectors, [&](auto vectors) {
#if defined(RNNFAST_AMX)
    if (is_int8(precision)) {
      if (t.rows > kFewOfInt8) return multiply_in_matrix_unit<Precision::kInt8, vectors>(t);
    } else if (t.rows > kFewOfBfloat16 || t.depth > kFewWords) {
      return multiply_in_matrix_unit<Precision::kBfloat16, vectors>(t);
    } else {
      return t.rows == 1 ? multiply_as_matrix_unit<1, vectors>(t)
                         : multiply_as_matrix_unit<2, vectors>(t);
    }
#endif
    if (is_int8(precision))
      multiply_rows<Precision::kInt8, vectors>(t);
    else
      multiply_rows<Precision::kBfloat16, vectors>(t);
  });
}

// -------------------------------------------------------------------- packing and products

// One column of weights, `stride` words apart.
void pack_column(Precision precision, const float* w, int64_t k, uint32_t* to, int64_t stride,
                 float* scale, int32_t* correction) {
  if (!is_int8(precision)) {
    for (int64_t i = 0; i < k; i += 2)
      to[i / 2 * stride] = to_bfloat16(w[i]) | uint32_t(i + 1 < k ? to_bfloat16(w[i + 1]) : 0)
                                                   << 16;
    return;
  }
  const float most = largest(w, k);
  const float factor = most > kSmallestRow ? 127 / most : 0;
  uint32_t sum = 0;  // of any bits where the row is not finite
  for (int64_t i = 0; i < k; i += 4) {
    uint32_t word = 0;
    for (int64_t j = 0; j < 4 && i + j < k; j++) {
      const int32_t q = int32_t(bits_of(w[i + j] * factor + 0x1.8p23f)) - 0x4b400000;
      sum += uint32_t(q);
      word |= uint32_t(uint8_t(q)) << (8 * j);
    }
    to[i / 4 * stride] = word;
  }
  *scale = most / 127;
  *correction = int32_t(0u - 128u * sum);
}

void pack(Precision precision, const Panels<float>& p, const LowColumns& columns, Team team) {
  const Source<float>& s = p.source;
  const int64_t k = s.column;  // rows are contiguous
  const int64_t vectors = parts(p.n, kWords);
  const int64_t blocks = parts(vectors, p.widest);
  uint32_t* words = reinterpret_cast<uint32_t*>(p.data);
  for (int64_t i = part_begin(blocks, team.size, team.id);
       i < part_begin(blocks, team.size, team.id + 1); i++) {
    const Block block = block_of(vectors, p.widest, i);
    const int64_t width = int64_t(block.vectors) * s.groups * kWords;
    const int64_t first = block.vector * s.groups * kWords;
    for (int64_t c = 0; c < width; c++) {
      const int64_t unit = (block.vector + c / kWords % block.vectors) * kWords + c % kWords;
      uint32_t* to = words + first * p.k + c;
      if (unit < p.n) {
        const float* column = s.data + s.begin[c / (kWords * block.vectors)] + unit * k;
        pack_column(precision, column, k, to, width, columns.scale + first + c,
                    columns.correction + first + c);
      } else {
        for (int64_t d = 0; d < p.k; d++) to[d * width] = 0;
        if (is_int8(precision)) columns.scale[first + c] = columns.correction[first + c] = 0;
      }
    }
  }
}

void multiply_panels(Precision precision, const uint32_t* operand, const float* operand_scale,
                     int64_t operand_words, int64_t rows, const Panels<float>& p,
                     const LowColumns& columns, const float* bias, const Rows<float>& c,
                     Team team) {
#if defined(RNNFAST_AMX)
  if (precision == Precision::kSplit)
    return multiply_panels_split(operand, operand_scale, operand_words, rows, p, columns, bias, c,
                                 team);
#endif
  const int64_t vectors = parts(p.n, kWords);
  const int64_t blocks = parts(vectors, p.widest);
  const Share share = product_share(0, rows, blocks, team);
  const int64_t row_begin = share.row_begin, row_end = share.row_end;
  float sums[kMostLowRows * 4 * kWords] __attribute__((aligned(64)));
  for (int64_t i = share.block_begin; i < share.block_end; i++) {
    const Block block = block_of(vectors, p.widest, i);
    const int64_t column = block.vector * kWords;
    LowTile tile{};
    tile.operand_words = operand_words;
    tile.panel = reinterpret_cast<const uint32_t*>(p.data) + column * p.k;
    tile.depth = p.k;
    tile.vectors = block.vectors;
    tile.columns = {columns.scale + column, columns.correction + column};
    tile.sums = sums;
    const int64_t tiles = parts(row_end - row_begin, most_rows(block.vectors));
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t row = row_begin + part_begin(row_end - row_begin, tiles, t);
      tile.rows = int(row_begin + part_begin(row_end - row_begin, tiles, t + 1) - row);
      tile.operand = operand + row * operand_words;
      tile.operand_scale = operand_scale + row;
      for (int v = 0; v < block.vectors; v++) {
        const int lanes = int(p.n - column - v * kWords);
        const Floats start = load_tail(bias + column + v * kWords, lanes);
        for (int m = 0; m < tile.rows; m++) store(sums + (m * block.vectors + v) * kWords, start);
      }
      multiply(precision, tile);
      for (int m = 0; m < tile.rows; m++)
        for (int v = 0; v < block.vectors; v++)
          store_tail(c.row(row + m) + column + v * kWords,
                     load(sums + (m * block.vectors + v) * kWords), int(p.n - column - v * kWords));
    }
  }
}

}  // namespace

#if defined(RNNFAST_AMX)
constexpr SplitKernels split_kernels = {pack_split, multiply_split, release_split,
                                        multiply_tn_split, tn_scratch_split};
constexpr const SplitKernels* split = &split_kernels;
#else
constexpr const SplitKernels* split = nullptr;
#endif

const LowKernels low_kernels = {operand_words, convert,         most_rows, multiply,
                                pack,          multiply_panels, split};

}  // namespace rnnfast::RNNFAST_ISA
