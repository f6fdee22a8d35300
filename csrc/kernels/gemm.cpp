// Matrix products, packing and element-wise evaluation for one instruction set.
#include "gemm.hpp"

#include "../simd/math.hpp"
#include "../threads.hpp"
#include "tile.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Bytes of a that stay in the second-level cache while column blocks pass by.
constexpr int64_t kRowBlockBytes = 256 * 1024;
constexpr int64_t kDepth = 1024;  // k at a time, so that a column block stays there too

// ------------------------------------------------------------------------------- packing

// A square, turned: v[i] holds number i of each column, zero where there is none.
template <class T>
RNNFAST_INLINE void turned(const T* from, int64_t column, int columns, int depth,
                           Vec<T> (&v)[kLanes<T>]) {
  for (int i = 0; i < kLanes<T>; i++)
    v[i] = i < columns ? load_tail(from + i * column, depth) : Vec<T>{};
  transpose_all<T>(v);
}

// kLanes columns from src (column stride `column`, k contiguous) into dst[k * dst_stride].
template <class T>
void pack_transposed(const T* src, int64_t column, int columns, int64_t count, T* dst,
                     int64_t dst_stride) {
  constexpr int n = kLanes<T>, quad = 16 / int(sizeof(T));
  int64_t k = 0;
  // Within 16 bytes, which takes half the instructions of the way below. The processor does not
  // fetch the next columns by itself: each lies in a row of the user's matrix.
  if constexpr (quad > 1)
    if (columns == n)
      for (; k + quad <= count; k += quad) {
        Vec<T> v[quad];
        for (int i = 0; i < quad; i++) {
          v[i] = gather_quads(src + i * column + k, quad * column);
          __builtin_prefetch(src + (n + k / quad % quad * quad + i) * column + k / n * n, 0, 2);
        }
        transpose<T>(v);
        for (int i = 0; i < quad; i++) store(dst + (k + i) * dst_stride, v[i]);
      }
  for (; k < count; k += n) {
    const int depth = int(lesser(n, count - k));
    Vec<T> v[n];
    turned(src + k, column, columns, depth, v);
    for (int i = 0; i < depth; i++) store(dst + (k + i) * dst_stride, v[i]);
  }
}

// Rows and columns from `from` on, into vectors of columns that lie `width` apart a row.
template <class T>
void pack_rows(const Source<T>& s, const T* from, int64_t columns, int vectors, int64_t count,
               T* to, int64_t width) {
  constexpr int n = kLanes<T>;
  if (s.column == 1) {
    constexpr int64_t ahead = 16;  // rows; a part of one is too short for the processor to go on
    for (int64_t k = 0; k < count; k++)
      for (int u = 0; u < vectors; u++) {
        __builtin_prefetch(from + (k + ahead) * s.row + u * n, 0, 3);
        store(to + k * width + u * n,
              load_tail(from + k * s.row + u * n, int(lesser(n, columns - u * n))));
      }
  } else {
    for (int u = 0; u < vectors; u++)
      pack_transposed(from + u * n * s.column, s.column, int(lesser(n, columns - u * n)), count,
                      to + u * n, width);
  }
}

template <class T>
void block_of_panels(const Panels<T>& p, int64_t vector, int vectors, int64_t k_0, int64_t count,
                     T* panel) {
  constexpr int n = kLanes<T>;
  const Source<T>& s = p.source;
  const int64_t width = int64_t(vectors) * s.groups * n;
  const int64_t columns = p.n - vector * n;
  const T* first = s.data + vector * n * s.column;
  if (s.height == 0) {
    for (int g = 0; g < s.groups; g++)
      pack_rows(s, first + s.begin[g] + k_0 * s.row, columns, vectors, count,
                panel + g * vectors * n, width);
    return;
  }
  for (int64_t k = k_0, rows; k < k_0 + count; k += rows) {
    const int64_t row = k % s.height;
    rows = lesser(s.height - row, k_0 + count - k);
    pack_rows(s, first + s.begin[k / s.height] + row * s.row, columns, vectors, rows,
              panel + (k - k_0) * width, width);
  }
}

// sums [vectors, of each group] go on with one row of a times columns that lie as they are: packed
// panels would be read once. One column after the other is read in whole cache lines.
template <class T>
void row_times_columns(const T* a, const Panels<T>& p, int64_t vector, int vectors, T* sums) {
  constexpr int n = kLanes<T>;
  const Source<T>& s = p.source;
  for (int g = 0; g < s.groups; g++)
    for (int u = 0; u < vectors; u++, sums += n) {
      const int64_t column = (vector + u) * n;
      const int columns = int(lesser(n, p.n - column));
      const T* from = s.data + s.begin[g] + column * s.column;
      Vec<T> sum = load(sums), v[n];
      int64_t k = 0;
      if (columns == n)
        for (; k + n <= p.k; k += n) {
          for (int i = 0; i < n; i++) v[i] = load_tail(from + i * s.column + k, n);
          transpose_all<T>(v);
          for (int i = 0; i < n; i++) sum = fma(broadcast(a[k + i]), v[i], sum);
        }
      for (; k < p.k; k += n) {
        const int depth = int(lesser(n, p.k - k));
        turned(from + k, s.column, columns, depth, v);
        for (int i = 0; i < depth; i++) sum = fma(broadcast(a[k + i]), v[i], sum);
      }
      store(sums, sum);
    }
}

template <class T>
void all_panels(const Panels<T>& p, Team team) {
  const int64_t vectors = parts(p.n, kLanes<T>);
  const int64_t blocks = parts(vectors, p.widest);
  for (int64_t i = part_begin(blocks, team.size, team.id);
       i < part_begin(blocks, team.size, team.id + 1); i++) {
    const Block block = block_of(vectors, p.widest, i);
    block_of_panels(p, block.vector, block.vectors, 0, p.k,
                    p.data + block.vector * p.source.groups * kLanes<T> * p.k);
  }
}

// ------------------------------------------------------------- rows times packed columns

template <class T>
struct PanelTask {
  Rows<const T> a;
  int64_t first;   // of a's columns
  const T* panel;  // [count, vectors * kLanes]
  int64_t count;
  const T* bias;  // or null
  bool resume;    // c holds the chain so far
  Rows<T> c;
  int64_t column;   // of c
  int64_t columns;  // of this block that exist
  const T* next;    // [count, vectors * kLanes] the panel of the next task
};

template <class T, int kRows, int kVectors>
void panel_tile(const PanelTask<T>& task, int64_t row, const T* ahead) {
  constexpr int n = kLanes<T>;
  Vec<T> acc[kRows][kVectors];
  T* c[kRows];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; m++) c[m] = task.c.row(row + m) + task.column;
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; v++) {
    const int lanes = int(lesser(n, task.columns - v * n));
    const Vec<T> start = task.resume || !task.bias ? Vec<T>{} : load_tail(task.bias + v * n, lanes);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++)
      acc[m][v] = task.resume ? load_tail(c[m] + v * n, lanes) : start;
  }
  const T* a[kRows];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; m++) a[m] = task.a.row(row + m) + task.first;
  multiply<T, kRows, kVectors, (kRows > 1 ? 1 : 0)>(
      acc, [&](int m, int64_t k) { return a[m][k]; }, task.panel, task.count, ahead);
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; v++) {
    const int lanes = int(lesser(n, task.columns - v * n));
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++) store_tail(c[m] + v * n, acc[m][v], lanes);
  }
}

template <class T, int kVectors>
void panel_rows(const PanelTask<T>& task, int64_t begin, int64_t end) {
  const int64_t tiles = parts(end - begin, max_rows(kVectors));
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t row = begin + part_begin(end - begin, tiles, i);
    const int64_t rows = begin + part_begin(end - begin, tiles, i + 1) - row;
    // The first tiles each fetch a vector's part of the next panel.
    const T* ahead = i < kVectors ? task.next + i * task.count * kLanes<T> : task.panel;
    switch (rows) {
      case 1: panel_tile<T, 1, kVectors>(task, row, ahead); break;
      case 2: panel_tile<T, 2, kVectors>(task, row, ahead); break;
      case 3: panel_tile<T, 3, kVectors>(task, row, ahead); break;
      case 4:
        if constexpr (max_rows(kVectors) >= 4) panel_tile<T, 4, kVectors>(task, row, ahead);
        break;
      case 5:
        if constexpr (max_rows(kVectors) >= 5) panel_tile<T, 5, kVectors>(task, row, ahead);
        break;
      case 6:
        if constexpr (max_rows(kVectors) >= 6) panel_tile<T, 6, kVectors>(task, row, ahead);
        break;
      case 7:
        if constexpr (max_rows(kVectors) >= 7) panel_tile<T, 7, kVectors>(task, row, ahead);
        break;
      case 8:
        if constexpr (max_rows(kVectors) >= 8) panel_tile<T, 8, kVectors>(task, row, ahead);
        break;
    }
  }
}

// Adds kCount rows of b to rows of c, which stay in the cache while b passes by as it lies.
template <class T, int kCount>
void add_rows(const T* const* a, int64_t k, int64_t rows, const T* b, int64_t b_stride,
              const T* bias, bool resume, T* const* c, int64_t columns) {
  constexpr int n = kLanes<T>;
  const auto some = [&](int64_t j, int lanes) {
    Vec<T> added[kCount];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; i++) added[i] = load_tail(b + (k + i) * b_stride + j, lanes);
    for (int64_t r = 0; r < rows; r++) {
      T* at = c[r] + j;
      Vec<T> sum{};
      if (resume || bias) sum = load_tail(resume ? at : bias + j, lanes);
#pragma GCC unroll 8
      for (int i = 0; i < kCount; i++) sum = fma(broadcast(a[r][k + i]), added[i], sum);
      store_tail(at, sum, lanes);
    }
  };
  int64_t j = 0;
  for (; j + n <= columns; j += n) some(j, n);
  if (j < columns) some(j, int(columns - j));
}

// Of at most kFewRows rows.
template <class T>
void few_rows(const Rows<const T>& a, int64_t rows, const T* b, int64_t b_stride, int64_t count,
              const T* bias, bool resume, const Rows<T>& c, int64_t first, int64_t columns) {
  constexpr int depth = 8;
  const T* from[kFewRows];
  T* to[kFewRows];
  for (int64_t r = 0; r < rows; r++) {
    from[r] = a.row(r);
    to[r] = c.row(r) + first;
  }
  int64_t k = 0;
  for (; k + depth <= count; k += depth)
    add_rows<T, depth>(from, k, rows, b, b_stride, bias, resume || k > 0, to, columns);
  for (; k < count; k++)
    add_rows<T, 1>(from, k, rows, b, b_stride, bias, resume || k > 0, to, columns);
}

// One row times columns that lie as they are.
template <class T>
__attribute__((noinline)) void row_times_blocks(const T* a, const Panels<T>& p, const T* bias, T* c,
                                                const Share& share) {
  constexpr int n = kLanes<T>;
  if (share.row_begin >= share.row_end) return;
  for (int64_t i = share.block_begin; i < share.block_end; i++) {
    const Block block = block_of(parts(p.n, n), p.widest, i);
    const auto each = [&](auto body) {  // vector of columns
      for (int u = 0; u < block.vectors; u++) {
        const int64_t column = (block.vector + u) * n;
        body(u, column, int(lesser(n, p.n - column)));
      }
    };
    T sums[kWidest * n] __attribute__((aligned(64)));
    each([&](int u, int64_t column, int lanes) {
      store(sums + u * n, bias ? load_tail(bias + column, lanes) : Vec<T>{});
    });
    row_times_columns(a, p, block.vector, block.vectors, sums);
    each([&](int u, int64_t column, int lanes) {
      store_tail(c + column, load(sums + u * n), lanes);
    });
  }
}

template <class T>
void rows_times_panels(const Rows<const T>& a, int64_t rows, const Panels<T>& p, const T* bias,
                       const Rows<T>& c, Team team) {
  constexpr int n = kLanes<T>;
  const int64_t vectors = parts(p.n, n);
  const int64_t blocks = parts(vectors, p.widest);
  const Share share = product_share(0, rows, blocks, team);
  if (p.in_place(rows)) {
    const int64_t begin = part_begin(vectors, blocks, share.block_begin) * n;
    const int64_t end = lesser(part_begin(vectors, blocks, share.block_end) * n, p.n);
    few_rows(a.from(share.row_begin), share.row_end - share.row_begin,
             p.source.data + p.source.begin[0] + begin, p.source.row, p.k,
             bias ? bias + begin : nullptr, false, c.from(share.row_begin), begin, end - begin);
    return;
  }
  if (p.across(rows)) return row_times_blocks(a.row(0), p, bias, c.row(0), share);
  const int64_t depth = lesser(p.k, kDepth);
  const int64_t tall =
      p.one_by_one ? rows : larger(48, kRowBlockBytes / (depth * int64_t(sizeof(T))) / 24 * 24);
  for (int64_t row = share.row_begin; row < share.row_end; row += tall) {
    const int64_t end = lesser(row + tall, share.row_end);
    for (int64_t k = 0; k < p.k; k += depth) {
      for (int64_t i = share.block_begin; i < share.block_end; i++) {
        const Block block = block_of(vectors, p.widest, i);
        const int64_t column = block.vector * n, count = lesser(depth, p.k - k);
        T* panel = p.data;
        if (p.one_by_one)
          block_of_panels(p, block.vector, block.vectors, k, count, panel);
        else
          panel += column * p.k + k * block.vectors * n;
        const PanelTask<T> task{
            a,
            k,
            panel,
            count,
            bias ? bias + column : nullptr,
            k > 0,
            c,
            column,
            p.n - column,
            p.one_by_one || i + 1 == share.block_end ? panel : panel + p.k * block.vectors * n};
        switch (block.vectors) {
          case 1: panel_rows<T, 1>(task, row, end); break;
          case 2: panel_rows<T, 2>(task, row, end); break;
          case 3: panel_rows<T, 3>(task, row, end); break;
          case 4: panel_rows<T, 4>(task, row, end); break;
        }
      }
    }
  }
}

// ------------------------------------------------------ transposed rows times rows (weights)

constexpr int kTnRows = kRegisters == 32 ? 14 : 6;  // at most
constexpr int kTnVectors = 2;
constexpr int64_t kTnFew = 2;                           // rows that are not worth packing
constexpr int64_t kTnNear = kRegisters == 32 ? 9 : 20;  // tiles whose a stays in the cache
constexpr int64_t kTnApart = 2048;                      // bytes from row to row of a

// Tiles of 2, 4 and so on of a's columns, as even as they can be, and one of the odd column. With
// 14 and a rest, a product of 32 by 32 by 100 took 1.3 times as long.
RNNFAST_INLINE int64_t tn_tiles(int64_t m) { return parts(m / 2, kTnRows / 2) + m % 2; }
RNNFAST_INLINE int64_t tn_tile_begin(int64_t m, int64_t i) {
  const int64_t even = parts(m / 2, kTnRows / 2);
  return i > even ? m : even > 0 ? 2 * part_begin(m / 2, even, i) : 0;
}

template <class T>
struct TnTask {
  Rows<const T> a;
  int64_t first;  // of a's columns
  const T* b;     // [count, kTnVectors * kLanes]
  int64_t count;
  T* c;  // [the tile's columns of a, c_stride]
  int64_t c_stride;
  int64_t columns;  // of this block that exist
  bool accumulate;
};

template <class T, int kRows>
__attribute__((noinline)) void tn_tile(const TnTask<T>& task) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 16
  for (int m = 0; m < kRows; m++)
#pragma GCC unroll 8
    for (int v = 0; v < kTnVectors; v++)
      __builtin_prefetch(task.c + m * task.c_stride + v * n, 1, 3);
  Vec<T> acc[kRows][kTnVectors] = {};
  if (const int64_t first = task.first; task.a.each) {
    const T* const* each = task.a.each;
    multiply<T, kRows, kTnVectors>(
        acc, [=](int m, int64_t k) { return each[k][first + m]; }, task.b, task.count);
  } else {
    const T* from = task.a.first + first;
    const int64_t stride = task.a.stride;
    multiply<T, kRows, kTnVectors>(
        acc, [=](int m, int64_t k) { return from[k * stride + m]; }, task.b, task.count);
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; m++)
#pragma GCC unroll 8
    for (int v = 0; v < kTnVectors; v++) {
      const int lanes = int(lesser(n, task.columns - v * n));
      if (lanes <= 0) break;
      T* at = task.c + m * task.c_stride + v * n;
      if (task.accumulate) acc[m][v] += load_tail(at, lanes);
      store_tail(at, acc[m][v], lanes);
    }
}

template <class T>
void tn_tile(const TnTask<T>& task, int64_t rows) {
  switch (rows) {
    case 1: return tn_tile<T, 1>(task);
    case 2: return tn_tile<T, 2>(task);
    case 4: return tn_tile<T, 4>(task);
    case 6: return tn_tile<T, 6>(task);
    case 8:
      if constexpr (kTnRows >= 8) return tn_tile<T, 8>(task);
      break;
    case 10:
      if constexpr (kTnRows >= 10) return tn_tile<T, 10>(task);
      break;
    case 12:
      if constexpr (kTnRows >= 12) return tn_tile<T, 12>(task);
      break;
    case 14:
      if constexpr (kTnRows >= 14) return tn_tile<T, 14>(task);
      break;
  }
}

// Row i of the product of few rows, for which packing would not pay.
template <class T>
RNNFAST_INLINE void outer_row(const Rows<const T>& a, int64_t i, const Rows<const T>& b,
                              int64_t rows, int64_t columns, T* c, bool accumulate) {
  constexpr int n = kLanes<T>;
  const T* first = b.row(0);
  const Vec<T> scalar = broadcast(a.row(0)[i]);
  int64_t j = 0;
  if (rows == 1 && !accumulate)
#pragma GCC unroll 4
    for (; j + n <= columns; j += n)
      store_tail(c + j, fma(scalar, load_tail(first + j, n), Vec<T>{}), n);
  for (; j < columns; j += n) {
    const int lanes = int(lesser(n, columns - j));
    Vec<T> sum{};
    for (int64_t r = 0; r < rows; r++)
      sum = fma(broadcast(a.row(r)[i]), load_tail(b.row(r) + j, lanes), sum);
    if (accumulate) sum += load_tail(c + j, lanes);
    store_tail(c + j, sum, lanes);
  }
}

template <class T>
void transposed_times_rows(const Rows<const T>& a, int64_t m, const Rows<const T>& b,
                           int64_t n_columns, int64_t rows, T* c, int64_t c_stride, bool accumulate,
                           T* packed, Team team) {
  constexpr int n = kLanes<T>;
  if (rows <= kTnFew) {
    for (int64_t i = part_begin(m, team.size, team.id); i < part_begin(m, team.size, team.id + 1);
         i++)
      outer_row(a, i, b, rows, n_columns, c + i * c_stride, accumulate);
    if (team.size > 1) team.barrier->wait();
    return;
  }
  constexpr int64_t width = kTnVectors * n;
  const int64_t blocks = parts(n_columns, width);
  for (int64_t j = part_begin(blocks, team.size, team.id);
       j < part_begin(blocks, team.size, team.id + 1); j++) {
    T* to = packed + j * width * rows;  // [rows, width]
    for (int64_t r = 0; r < rows; r++) {
      const T* from = b.row(r) + j * width;
      for (int v = 0; v < kTnVectors; v++) {
        const int64_t left = n_columns - j * width - v * n;
        store(to + r * width + v * n,
              left > 0 ? load_tail(from + v * n, int(lesser(n, left))) : Vec<T>{});
      }
    }
  }
  if (team.size > 1) team.barrier->wait();

  // Rows that lie far apart are copied together, unless one block of b alone would use them: no
  // processor fetches them ahead, and in a cache they may all fall into the same few places.
  const bool apart = m * int64_t(sizeof(T)) >= kTnApart && blocks > 1;
  T* together = packed + blocks * width * rows + team.id * kTnNear * kTnRows * rows;
  const int64_t end = part_begin(tn_tiles(m), team.size, team.id + 1);
  for (int64_t begin = part_begin(tn_tiles(m), team.size, team.id); begin < end; begin += kTnNear) {
    const int64_t last = lesser(begin + kTnNear, end);
    const int64_t first = tn_tile_begin(m, begin), columns = tn_tile_begin(m, last) - first;
    if (apart)
      for (int64_t r = 0; r < rows; r++)
        __builtin_memcpy(together + r * columns, a.row(r) + first, size_t(columns) * sizeof(T));
    for (int64_t j = 0; j < blocks; j++)
      for (int64_t i = begin; i < last; i++) {
        const int64_t column = tn_tile_begin(m, i);
        const TnTask<T> task{apart ? Rows<const T>{together, columns} : a,
                             apart ? column - first : column,
                             packed + j * width * rows,
                             rows,
                             c + column * c_stride + j * width,
                             c_stride,
                             n_columns - j * width,
                             accumulate};
        tn_tile(task, tn_tile_begin(m, i + 1) - column);
      }
  }
  if (team.size > 1) team.barrier->wait();
}

// -------------------------------------------------------------------------- element-wise

// kCount vectors of columns from vector v on. Lines of a row are read one after the other: rows may
// lie a page apart, over which no processor fetches ahead.
template <class T, int kCount>
RNNFAST_INLINE void sums_of_columns(const T* a, int64_t a_stride, int64_t m, int64_t rows, T* sums,
                                    bool accumulate, int64_t v) {
  constexpr int n = kLanes<T>;
  const auto lanes = [&](int i) { return int(lesser(n, m - (v + i) * n)); };
  // Sums of sums of sums: in float32 the error of a long sum over a million rows reaches a
  // hundredth.
  constexpr int64_t most = 128;
  Vec<T> sum[kCount] = {};
  for (int64_t begin = 0; begin < rows; begin += most) {
    const int64_t end = lesser(rows, begin + most);
    Vec<T> part[kCount] = {};
    for (int64_t r = begin; r < end; r++)
      for (int i = 0; i < kCount; i++)
        part[i] += load_tail(a + r * a_stride + (v + i) * n, lanes(i));
    for (int i = 0; i < kCount; i++) sum[i] += part[i];
  }
  for (int i = 0; i < kCount; i++) {
    T* to = sums + (v + i) * n;
    store_tail(to, accumulate ? load_tail(to, lanes(i)) + sum[i] : sum[i], lanes(i));
  }
}

template <class T>
void column_sums(const T* a, int64_t a_stride, int64_t m, int64_t rows, T* sums, bool accumulate,
                 Team team) {
  constexpr int together = 8;
  const int64_t vectors = parts(m, kLanes<T>), end = part_begin(vectors, team.size, team.id + 1);
  int64_t v = part_begin(vectors, team.size, team.id);
  for (; v + together <= end; v += together)
    sums_of_columns<T, together>(a, a_stride, m, rows, sums, accumulate, v);
  for (; v < end; v++) sums_of_columns<T, 1>(a, a_stride, m, rows, sums, accumulate, v);
}

template <class T>
void sum_of_two(const T* a, const T* b, int64_t n, T* sum, Team team) {
  const int64_t begin = part_begin(n, team.size, team.id);
  const int64_t end = part_begin(n, team.size, team.id + 1);
  for (int64_t i = begin; i < end; i += kLanes<T>) {
    const int lanes = int(lesser(kLanes<T>, end - i));
    store_tail(sum + i, load_tail(a + i, lanes) + load_tail(b + i, lanes), lanes);
  }
}

template <class T>
void evaluate_all(int function, const T* x, int64_t n, T* y) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int lanes = int(lesser(kLanes<T>, n - i));
    const Vec<T> v = load_tail(x + i, lanes);
    store_tail(y + i,
               function == 0   ? exp<T>(v)
               : function == 1 ? sigmoid<T>(v)
                               : tanh<T>(v),
               lanes);
  }
}

float total_of(const float* x, int64_t n, Team team) {
  using T = float;
  constexpr int kSums = 8;
  Vec<T> sums[kSums] = {};
  const int64_t end = part_begin(n, team.size, team.id + 1);
  int64_t i = part_begin(n, team.size, team.id);
  for (; i + kSums * kLanes<T> <= end; i += kSums * kLanes<T>)
#pragma GCC unroll 8
    for (int k = 0; k < kSums; k++) sums[k] += load(x + i + k * kLanes<T>);
  for (; i < end; i += kLanes<T>) sums[0] += load_tail(x + i, int(lesser(kLanes<T>, end - i)));
  T total = 0;
  for (const Vec<T>& sum : sums)
    for (int k = 0; k < kLanes<T>; k++) total += sum[k];
  return total;
}

}  // namespace

#define RNNFAST_DEFINE_GEMM(T)                                                                     \
  void pack_panels(const Panels<T>& p, Team team) { all_panels(p, team); }                         \
  void pack_block(const Panels<T>& p, int64_t vector, int vectors, int64_t k_0, int64_t count,     \
                  T* to) {                                                                         \
    block_of_panels(p, vector, vectors, k_0, count, to);                                           \
  }                                                                                                \
  void multiply_columns(const T* a, const Panels<T>& p, int64_t vector, int vectors, T* sums) {    \
    row_times_columns(a, p, vector, vectors, sums);                                                \
  }                                                                                                \
  void multiply_panels(const Rows<const T>& a, int64_t rows, const Panels<T>& panels,              \
                       const T* bias, const Rows<T>& c, Team team) {                               \
    rows_times_panels(a, rows, panels, bias, c, team);                                             \
  }                                                                                                \
  void multiply_rows(const Rows<const T>& a, int64_t rows, const T* b, int64_t b_stride,           \
                     int64_t count, const T* bias, bool resume, const Rows<T>& c,                  \
                     int64_t columns) {                                                            \
    few_rows(a, rows, b, b_stride, count, bias, resume, c, 0, columns);                            \
  }                                                                                                \
  void multiply_tn(const Rows<const T>& a, int64_t m, const Rows<const T>& b, int64_t n,           \
                   int64_t rows, T* c, int64_t c_stride, bool accumulate, T* scratch, Team team) { \
    transposed_times_rows(a, m, b, n, rows, c, c_stride, accumulate, scratch, team);               \
  }                                                                                                \
  void sum_rows(const T* a, int64_t a_stride, int64_t m, int64_t rows, T* sums, bool accumulate,   \
                Team team) {                                                                       \
    column_sums(a, a_stride, m, rows, sums, accumulate, team);                                     \
  }                                                                                                \
  void add(const T* a, const T* b, int64_t n, T* sum, Team team) {                                 \
    sum_of_two(a, b, n, sum, team);                                                                \
  }                                                                                                \
  int64_t tn_scratch(const T*, int64_t n, int64_t rows, int members) {                             \
    const int64_t width = kTnVectors * kLanes<T>;                                                  \
    return (parts(n, width) * width + members * kTnNear * kTnRows) * rows;                         \
  }

RNNFAST_DEFINE_GEMM(float)
RNNFAST_DEFINE_GEMM(double)
RNNFAST_DEFINE_GEMM(Dual)

void evaluate(int function, const float* x, int64_t n, float* y) {
  evaluate_all(function, x, n, y);
}
void evaluate(int function, const double* x, int64_t n, double* y) {
  evaluate_all(function, x, n, y);
}
float total(const float* x, int64_t n, Team team) { return total_of(x, n, team); }

}  // namespace rnnfast::RNNFAST_ISA
