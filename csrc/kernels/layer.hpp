// The time loops of a layer pass in one direction, forward and backward, for any cell.
//
// A cell is a struct of constants and of functions on vectors (see cells/lstm.cpp). Its steps may
// have two stages, where a product needs what other units computed in the same step.
//
// We are at visit i, which is step t = i, or T - 1 - i in a reverse direction. Rows 0 to n - 1 of
// the sorted batch take part. Some of them continue from the step visited before, the others start.
#pragma once

#include <limits>

#include "../params.hpp"
#include "../plan.hpp"
#include "../simd/math.hpp"
#include "../threads.hpp"
#include "gemm.hpp"
#include "low.hpp"
#include "table.hpp"
#include "tile.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

RNNFAST_INLINE void meet(Barrier* barrier, int members) {
  if (members > 1) barrier->wait();
}

constexpr int64_t kBackwardDepth = 1024;  // of the products that are taken in parts

// Registers limit gates * vectors to four: an LSTM tile is one vector of units wide, an RNN's four.
constexpr int unit_vectors(int gates) { return gates >= 3 ? 1 : gates == 2 ? 2 : 4; }

// Rows of every step.
struct Band {
  int64_t begin = 0, end = std::numeric_limits<int64_t>::max();

  // How many of a step that has rows 0 to n - 1.
  RNNFAST_INLINE int64_t rows(int64_t n) const {
    n = lesser(n, end) - begin;
    return n > 0 ? n : 0;
  }
};

// What one member of `members` does at each step of its part.
template <class T>
RNNFAST_INLINE Share share_of(const Part& part, int id, int members, const Panels<T>& panels) {
  const int64_t blocks = parts(parts(panels.n, kLanes<T>), panels.widest);
  if (part.rows) return {part.row_begin, part.row_end, 0, blocks};
  return {part.row_begin, part.row_end, part_begin(blocks, members, id),
          part_begin(blocks, members, id + 1)};
}

// The units of a share: all of its rows' columns.
template <class T>
RNNFAST_INLINE void units_of(const Share& share, const Panels<T>& panels, int64_t& begin,
                             int64_t& end) {
  const int64_t vectors = parts(panels.n, kLanes<T>);
  const int64_t blocks = parts(vectors, panels.widest);
  begin = lesser(part_begin(vectors, blocks, share.block_begin) * kLanes<T>, panels.n);
  end = lesser(part_begin(vectors, blocks, share.block_end) * kLanes<T>, panels.n);
}

template <class T>
void copy_rows(const T* from, T* to, int64_t row_begin, int64_t row_end, int64_t stride,
               int64_t begin, int64_t end) {
  if (begin >= end) return;
  for (int64_t row = row_begin; row < row_end; row++) {
    T* at = to + row * stride;
    if (from)
      __builtin_memcpy(at + begin, from + row * stride + begin, size_t(end - begin) * sizeof(T));
    else
      __builtin_memset(at + begin, 0, size_t(end - begin) * sizeof(T));
  }
}

// Whether a tile's rows are multiplied with columns that lie as the user has them.
template <class Tile>
RNNFAST_INLINE bool across(const Tile& tile, int64_t rows) {
  if constexpr (Tile::kMayLieAcross) return tile.columns && tile.columns->across(rows);
  return false;
}

// Whether a tile's panels hold words of fewer bits.
template <class Tile>
RNNFAST_INLINE bool is_low(const Tile& tile) {
  if constexpr (Tile::kMayBeLow) return tile.low;
  return false;
}

// What a tile fetches while it multiplies: its part of a block, of as many as that has vectors, and
// the one after it where two tiles have to fetch all.
template <class T>
struct Ahead {
  const T* block;
  int64_t part;
  bool two;

  // multiply() with rows [first, first + count) of its own block, which fetches those of the other.
  // One row waits for the weights anyway, in the order in which the processor fetches them by
  // itself; more requests make that 5 % slower.
  template <int kRows, int kVectors, class Element>
  RNNFAST_INLINE void multiply(Vec<T> (&acc)[kRows][kVectors], const Element& a, const T* panel,
                               int64_t first, int64_t count) const {
    constexpr int n = kLanes<T>;
    constexpr int most = max_rows(kVectors);
    const T* own = panel + first * kVectors * n;
    const T* other = block + (first * kVectors + part * count) * n;
    if constexpr (kRows == 1) {
      RNNFAST_ISA::multiply(acc, a, own, count);
    } else {
      if constexpr (2 * kRows >= most && kVectors > 2)
        if (two) return RNNFAST_ISA::multiply<T, kRows, kVectors, 2>(acc, a, own, count, other);
      RNNFAST_ISA::multiply<T, kRows, kVectors, 1>(acc, a, own, count, other);
    }
  }
};

// Calls tile.run<kRows, kVectors>(row, unit, panel, ahead) for even tiles of rows.
template <int kGroups, int kVectors, class Tile, class T>
void over_rows(const Tile& tile, int64_t begin, int64_t end, int64_t unit, const T* panel,
               const T* next, [[maybe_unused]] int64_t depth) {
  if constexpr (Tile::kMayLieAcross)
    if (across(tile, end - begin)) return tile.template run_across<kVectors>(begin, unit);
  constexpr int most = max_rows(kGroups * kVectors);
  int64_t tiles = parts(end - begin, most);
  if constexpr (Tile::kMayBeLow)
    if (is_low(tile)) tiles = parts(end - begin, tile.low->kernels->most_rows(kGroups * kVectors));
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t row = begin + part_begin(end - begin, tiles, i);
    const int64_t rows = begin + part_begin(end - begin, tiles, i + 1) - row;
    if constexpr (Tile::kMayBeLow)
      if (is_low(tile)) {
        tile.template run_low<kVectors>(row, int(rows), unit, panel);
        continue;
      }
    // Each tile fetches a part of the next block. The first one, which waits for its own, has to
    // help where there are few.
    constexpr int all = kGroups * kVectors;
    const bool two = all > 2 && tiles == 2;
    const int64_t part = two ? 2 * i : i - (tiles > all);
    const Ahead<T> ahead = part >= 0 && part < all ? Ahead<T>{next, part, two && part + 1 < all}
                                                   : Ahead<T>{panel, 0, false};
    switch (rows) {
      case 1: tile.template run<1, kVectors>(row, unit, panel, ahead); break;
      case 2: tile.template run<2, kVectors>(row, unit, panel, ahead); break;
      case 3: tile.template run<3, kVectors>(row, unit, panel, ahead); break;
      case 4:
        if constexpr (most >= 4) tile.template run<4, kVectors>(row, unit, panel, ahead);
        break;
      case 5:
        if constexpr (most >= 5) tile.template run<5, kVectors>(row, unit, panel, ahead);
        break;
      case 6:
        if constexpr (most >= 6) tile.template run<6, kVectors>(row, unit, panel, ahead);
        break;
      case 7:
        if constexpr (most >= 7) tile.template run<7, kVectors>(row, unit, panel, ahead);
        break;
      case 8:
        if constexpr (most >= 8) tile.template run<8, kVectors>(row, unit, panel, ahead);
        break;
    }
  }
}

// Calls tile.run_together over a share's units of one row, whose panels lie one after the other.
template <class T, int kGroups, class Tile>
RNNFAST_INLINE void over_units(const Tile& tile, const Share& share, const Panels<T>& panels,
                               int64_t depth, int64_t row, bool backwards) {
  const int64_t blocks = share.block_end - share.block_begin;
  for (int64_t done = 0, together; done < blocks; done += together) {
    together = lesser(blocks - done, 2);
    const int64_t vector = backwards ? share.block_end - done - together : share.block_begin + done;
    const T* panel = panels.data + vector * kGroups * kLanes<T> * depth;
    if (together == 2)
      tile.template run_together<2>(row, vector * kLanes<T>, panel, depth, backwards);
    else
      tile.template run_together<1>(row, vector * kLanes<T>, panel, depth, backwards);
  }
}

// Calls tile.run over a share, within rows [begin, end). Column blocks are visited in turn from
// either side, so that those used last are found in the cache.
template <class T, int kGroups, class Tile>
RNNFAST_INLINE void over_tiles(const Tile& tile, const Share& share, const Panels<T>& panels,
                               int64_t depth, int64_t begin, int64_t end, bool backwards) {
  begin = begin > share.row_begin ? begin : share.row_begin;
  end = lesser(end, share.row_end);
  if (begin >= end) return;
  if constexpr (Tile::kMayBeTogether && unit_vectors(kGroups) == 1)
    if (end - begin == 1 && !panels.one_by_one && !is_low(tile))
      return over_units<T, kGroups>(tile, share, panels, depth, begin, backwards);
  const int64_t vectors = parts(panels.n, kLanes<T>);
  for (int64_t j = share.block_begin; j < share.block_end; j++) {
    const int64_t i = backwards ? share.block_end - 1 - (j - share.block_begin) : j;
    const Block block = block_of(vectors, panels.widest, i);
    const T* panel = panels.data;
    const T* next = panel;
    if (!panels.one_by_one) {
      const int64_t following = j + 1 < share.block_end ? (backwards ? i - 1 : i + 1) : i;
      panel += block.vector * kGroups * kLanes<T> * depth;
      next += block_of(vectors, panels.widest, following).vector * kGroups * kLanes<T> * depth;
    } else if (tile.operand && !across(tile, end - begin)) {
      pack_block(panels, block.vector, block.vectors, 0, depth, panels.data);
    }
    const int64_t unit = block.vector * kLanes<T>;
    if constexpr (unit_vectors(kGroups) == 1) {
      over_rows<kGroups, 1>(tile, begin, end, unit, panel, next, depth);
    } else if constexpr (unit_vectors(kGroups) == 2) {
      if (block.vectors == 1)
        over_rows<kGroups, 1>(tile, begin, end, unit, panel, next, depth);
      else
        over_rows<kGroups, 2>(tile, begin, end, unit, panel, next, depth);
    } else {
      switch (block.vectors) {
        case 1: over_rows<kGroups, 1>(tile, begin, end, unit, panel, next, depth); break;
        case 2: over_rows<kGroups, 2>(tile, begin, end, unit, panel, next, depth); break;
        case 3: over_rows<kGroups, 3>(tile, begin, end, unit, panel, next, depth); break;
        case 4: over_rows<kGroups, 4>(tile, begin, end, unit, panel, next, depth); break;
      }
    }
  }
}

// ------------------------------------------------------------------------------- forward

// One vector of units of one row on its way through a step.
template <class T>
struct Unit {
  Vec<T> a[4];     // in: pre-activations of the stage's gates
  Vec<T> x_apart;  // in: x part of the gate whose recurrent part stays apart
  Vec<T> h, c;     // in: state before
  Vec<T> s[4];  // what the backward pass needs; a later stage finds what an earlier one put there
  Vec<T> h_next, c_next;  // out, in the last stage
};

template <class Cell, class T, int kStage>
struct ForwardTile {
  static constexpr bool kMayBeLow = sizeof(T) == sizeof(float);
  static constexpr bool kMayLieAcross = true;
  static constexpr bool kMayBeTogether = true;
  int64_t hidden, y_stride;
  const T* gx;       // [n, G, H] of this step, the gates at their places
  const int* place;  // [G]
  const T* bias_h;   // [H] or null
  const T* operand;  // [n, operand_stride] what the recurrent matrix multiplies; null for zeros
  int64_t operand_stride;
  const T* h_before;  // [n, H]
  const T* c_before;  // [n, H] or null
  T* gates;           // [n, S, H] or null
  T* h;               // [n, H], or null where only the gates are wanted
  T* c;               // [n, H] or null
  T* y;               // [n, y_stride], or [B, y_stride] with y_order
  const int64_t* y_order;
  const Panels<T>* columns;  // of the recurrent matrix, or null where they are packed
  const LowForward* low;
  const uint32_t* low_operand;  // [n, low->h_words] the operand, converted
  const float* low_scale;       // [n]

  // Where the sums of a gate start.
  RNNFAST_INLINE Vec<T> start(int64_t row, int gate, int64_t unit) const {
    constexpr int first = Cell::stage_first(kStage);
    const T* from = first + gate == Cell::kApart
                        ? bias_h
                        : gx + (row * Cell::kGates + place[first + gate]) * hidden;
    return load_tail(from + unit, int(lesser(kLanes<T>, hidden - unit)));
  }

  template <int kRows, int kVectors>
  void run(int64_t row, int64_t unit, const T* panel, Ahead<T> ahead) const {
    constexpr int n = kLanes<T>;
    constexpr int gates_here = Cell::stage_gates(kStage);

    Vec<T> acc[kRows][gates_here * kVectors];
#pragma GCC unroll 8
    for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
      for (int g = 0; g < gates_here; g++)
#pragma GCC unroll 4
        for (int u = 0; u < kVectors; u++)
          acc[m][g * kVectors + u] = start(row + m, g, unit + u * n);
    if (operand)
      ahead.multiply(
          acc, [&](int m, int64_t k) { return operand[(row + m) * operand_stride + k]; }, panel, 0,
          hidden);
    T sums[kRows * gates_here * kVectors * n] __attribute__((aligned(64)));
#pragma GCC unroll 8
    for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
      for (int v = 0; v < gates_here * kVectors; v++)
        store(&sums[(m * gates_here * kVectors + v) * n], acc[m][v]);
    finish<kVectors>(row, kRows, unit, sums);
  }

  // One row, a block of one vector of units after the other. After the products each waits for one
  // function after another, which they do side by side.
  template <int kVectors>
  void run_together(int64_t row, int64_t unit, const T* panels, int64_t depth,
                    bool backwards) const {
    constexpr int n = kLanes<T>;
    constexpr int gates_here = Cell::stage_gates(kStage);
    T sums[gates_here * kVectors * n] __attribute__((aligned(64)));
    for (int i = 0; i < kVectors; i++) {
      const int u = backwards ? kVectors - 1 - i : i;
      const T* panel = panels + u * gates_here * n * depth;
      Vec<T> acc[1][gates_here];
#pragma GCC unroll 4
      for (int g = 0; g < gates_here; g++) acc[0][g] = start(row, g, unit + u * n);
      if (operand)
        multiply<T, 1, gates_here>(
            acc, [&](int, int64_t k) { return operand[row * operand_stride + k]; }, panel, hidden);
#pragma GCC unroll 4
      for (int g = 0; g < gates_here; g++) store(&sums[(g * kVectors + u) * n], acc[0][g]);
    }
    finish<kVectors>(row, 1, unit, sums);
  }

  template <int kVectors>
  __attribute__((noinline)) void run_across(int64_t row, int64_t unit) const {
    constexpr int n = kLanes<T>;
    constexpr int gates_here = Cell::stage_gates(kStage);
    T sums[gates_here * kVectors * n] __attribute__((aligned(64)));
    for (int g = 0; g < gates_here; g++)
      for (int u = 0; u < kVectors; u++)
        store(&sums[(g * kVectors + u) * n], start(row, g, unit + u * n));
    if (operand)
      multiply_columns(operand + row * operand_stride, *columns, unit / n, kVectors, sums);
    finish<kVectors>(row, 1, unit, sums);
  }

  template <int kVectors>
  void run_low(int64_t row, int rows, int64_t unit, const T* panel) const {
    constexpr int n = kLanes<T>;
    constexpr int vectors = Cell::stage_gates(kStage) * kVectors;
    T sums[kMostLowRows * vectors * n] __attribute__((aligned(64)));
    if (low->precision == Precision::kSplit)
      return run_split<kVectors>(row, rows, unit, panel, reinterpret_cast<float*>(sums));
    for (int m = 0; m < rows; m++)
      for (int g = 0; g < Cell::stage_gates(kStage); g++)
        for (int u = 0; u < kVectors; u++)
          store(&sums[(m * vectors + g * kVectors + u) * n], start(row + m, g, unit + u * n));
    if (operand) {
      const LowColumns& columns = low->h[kStage];
      const int64_t column = unit * Cell::stage_gates(kStage);
      low->kernels->multiply(low->precision, {low_operand + row * low->h_words,
                                              low_scale + row,
                                              low->h_words,
                                              rows,
                                              reinterpret_cast<const uint32_t*>(panel),
                                              words_of(low->precision, hidden),
                                              vectors,
                                              {columns.scale + column, columns.correction + column},
                                              reinterpret_cast<float*>(sums)});
    }
    finish<kVectors>(row, rows, unit, sums);
  }

  template <int kVectors>
  void run_split(int64_t row, int rows, int64_t unit, const T* panel, float* sums) const {
    constexpr int n = kLanes<T>, vectors = Cell::stage_gates(kStage) * kVectors;
    if constexpr (kMayBeLow) {
      SplitTile t{};
      t.operand = low_operand + row * low->h_words;
      t.operand_scale = low_scale + row;
      t.operand_words = low->h_words;
      t.rows = rows;
      t.panel = reinterpret_cast<const uint32_t*>(panel);
      t.depth = words_of(Precision::kSplit, hidden);
      t.apart = t.depth * n;
      t.vectors = vectors;
      t.special = low->h[kStage].scale + unit * Cell::stage_gates(kStage);
      t.stay_in(sums, n);
      for (int g = 0; g < Cell::stage_gates(kStage); g++)
        for (int u = 0; u < kVectors; u++) {
          const int v = g * kVectors + u, gate = Cell::stage_first(kStage) + g;
          if (!operand || unit + (u + 1) * n > hidden)
            for (int m = 0; m < rows; m++)
              store(sums + (m * vectors + v) * n, start(row + m, g, unit + u * n));
          else if (gate == Cell::kApart)
            t.from[v] = {bias_h + unit + u * n, 0};
          else
            t.from[v] = {gx + (row * Cell::kGates + place[gate]) * hidden + unit + u * n,
                         Cell::kGates * hidden};
        }
      if (operand) low->kernels->split->multiply(t);
      finish<kVectors>(row, rows, unit, sums);
    }
  }

  // From the sums [rows, gates of the stage * kVectors vectors] to what the step leaves. Through
  // memory, so that there is one copy of this for every number of rows.
  template <int kVectors>
  __attribute__((noinline)) void finish(int64_t row, int rows, int64_t unit, const T* sums) const {
    constexpr int n = kLanes<T>;
    constexpr int gates_here = Cell::stage_gates(kStage);
    constexpr bool last = kStage + 1 == Cell::kStages;
    const int64_t left = hidden - unit;
    for (int m = 0; m < rows; m++) {
      const int64_t at_row = (row + m) * hidden + unit;
      T* saved = gates ? gates + (row + m) * Cell::kSaved * hidden + unit : nullptr;
      for (int u = 0; u < kVectors; u++) {
        const int lanes = int(lesser(n, left - u * n));
        const int64_t at = at_row + u * n;
        Unit<T> x;
        for (int g = 0; g < gates_here; g++)
          x.a[g] = load(sums + ((m * gates_here + g) * kVectors + u) * n);
        if constexpr (Cell::kApart >= 0)
          x.x_apart = load_tail(
              gx + ((row + m) * Cell::kGates + place[Cell::kApart]) * hidden + unit + u * n, lanes);
        if constexpr (Cell::kReadsH) x.h = load_tail(h_before + at, lanes);
        if constexpr (Cell::kHasC) x.c = load_tail(c_before + at, lanes);
        if constexpr (kStage > 0)
          for (int q = 0; q < Cell::kSaved; q++)
            if (Cell::stage_saves(0) >> q & 1)
              x.s[q] = load_tail(saved + q * hidden + u * n, lanes);
        Cell::template forward<T, kStage>(x);
        if (saved)
          for (int q = 0; q < Cell::kSaved; q++)
            if (Cell::stage_saves(kStage) >> q & 1)
              store_tail(saved + q * hidden + u * n, x.s[q], lanes);
        if (last && h) {
          store_tail(h + at, x.h_next, lanes);
          const int64_t y_row = y_order ? y_order[row + m] : row + m;
          store_tail(y + y_row * y_stride + unit + u * n, x.h_next, lanes);
          if constexpr (Cell::kHasC) store_tail(c + at, x.c_next, lanes);
        }
      }
    }
  }
};

// The rows that a member converts, of [from, to) in its share: all where it waits for no one, else
// its part of those that all who wait for one another multiply.
struct Converted {
  int64_t begin, end;

  RNNFAST_INLINE Converted(const Share& share, Team waiting, int64_t from, int64_t to) {
    from = from > share.row_begin ? from : share.row_begin;
    to = lesser(to, share.row_end);
    const int64_t rows = to > from ? to - from : 0;
    begin = from + part_begin(rows, waiting.size, waiting.id);
    end = from + part_begin(rows, waiting.size, waiting.id + 1);
  }
};

// Converts the rows of the operand that a member multiplies: in parts together with the others that
// multiply them, who wait for one another, else for itself alone.
template <class T, class Tile>
void convert_operand(const Forward<T>& p, Tile& tile, const Share& share, int member, Team waiting,
                     int64_t begin, int64_t end) {
  const LowForward& low = *p.low;
  const bool together = low.precision == Precision::kSplit;
  const Converted own(share, together ? waiting : Team{0, 1, nullptr}, begin, end);
  uint32_t* operand = low.h_operand + (together ? 0 : member * p.batch * low.h_words);
  float* scale = low.h_scale + (together ? 0 : member * p.batch);
  if (share.block_begin < share.block_end || together)
    low.kernels->convert(
        low.precision, {tile.operand + own.begin * tile.operand_stride, tile.operand_stride},
        own.end - own.begin, p.hidden, operand + own.begin * low.h_words, scale + own.begin);
  tile.low_operand = operand;
  tile.low_scale = scale;
  if (together) meet(waiting.barrier, waiting.size);
}

template <class Cell, class T, int kStage>
void forward_stage(const Forward<T>& p, const Visits& visits, int64_t i, const T* gx,
                   const Share& share, int member, Team waiting) {
  const int64_t H = p.hidden;
  const int64_t row = visits.row(i), rows = visits.rows(i);
  const int64_t continuing = lesser(rows, visits.rows(i - 1));
  ForwardTile<Cell, T, kStage> tile;
  tile.hidden = H;
  tile.y_stride = p.y_stride;
  tile.gx = gx;
  tile.place = p.place;
  tile.bias_h = p.bias_h;
  tile.gates = p.gates ? p.gates + (p.save_gates ? row * Cell::kSaved * H : 0) : nullptr;
  tile.h = p.save ? p.h + row * H : p.h + i % 2 * p.batch * H;
  tile.c = p.save ? p.c + row * H : p.c;
  tile.y = p.y + (p.y_order ? visits.step(i) * p.batch : row) * p.y_stride;
  tile.y_order = p.y_order;
  tile.columns = &p.h_panels[kStage];
  tile.low = p.low && p.low->h_words ? p.low : nullptr;
  for (const bool starting : {false, true}) {
    const int64_t begin = starting ? continuing : 0;
    const int64_t end = starting ? rows : continuing;
    if (begin >= end) continue;
    if (starting) {
      tile.h_before = p.h_0;
      tile.c_before = p.c_0;
    } else {
      const int64_t before = visits.row(i - 1);
      tile.h_before = p.save ? p.h + before * H : p.h + (i - 1) % 2 * p.batch * H;
      tile.c_before = p.save ? p.c + before * H : p.c;
    }
    tile.operand = starting && p.zero_h ? nullptr
                   : kStage == 0        ? tile.h_before
                                        : tile.gates + Cell::kStageOperand * H;
    tile.operand_stride = kStage == 0 ? H : Cell::kSaved * H;
    if constexpr (tile.kMayBeLow)
      if (tile.low && tile.operand) convert_operand(p, tile, share, member, waiting, begin, end);
    over_tiles<T, Cell::stage_gates(kStage)>(tile, share, p.h_panels[kStage], p.h_panels[kStage].k,
                                             begin, end, i % 2 != 0);
  }
}

// Where the rows of x lie that the steps of visits [begin, end) have among `of`.
template <class T>
void point_to_rows(const Forward<T>& p, const Visits& visits, int64_t begin, int64_t end,
                   const Band& of, const T** to, Team team) {
  const int64_t first = visits.first_step(begin, end);
  for (int64_t t = first; team.id == 0 && t < first + end - begin; t++) {
    const int64_t rows = of.rows(p.steps.offset[t + 1] - p.steps.offset[t]);
    const T* from = p.x + (p.x_order ? t * p.batch : p.steps.offset[t]) * p.input;
    for (int64_t r = of.begin; r < of.begin + rows; r++)
      *to++ = from + (p.x_order ? p.x_order[r] : r) * p.input;
  }
  meet(team.barrier, team.size);
}

// The rows of a padded array [T, B, stride] that no step reaches.
template <class T>
void clear_padding(const Steps& steps, const int64_t* order, int64_t batch, T* padded,
                   int64_t stride, int64_t width, Team team) {
  for (int64_t t = part_begin(steps.count, team.size, team.id);
       t < part_begin(steps.count, team.size, team.id + 1); t++)
    for (int64_t r = steps.offset[t + 1] - steps.offset[t]; r < batch; r++)
      __builtin_memset(padded + (t * batch + order[r]) * stride, 0, size_t(width) * sizeof(T));
}

// gx = x w_ih^T + bias for the rows of a chunk, in the scratch from row `at` on.
template <class T>
void project(const Forward<T>& p, const Rows<const T>& x, int64_t rows, int64_t at, int64_t width,
             Team team) {
  T* gx = p.gx + at * width;
  if constexpr (sizeof(T) == sizeof(float))
    if (p.low && p.low->x_words) {
      const LowForward& low = *p.low;
      const int64_t begin = part_begin(rows, team.size, team.id);
      const int64_t end = part_begin(rows, team.size, team.id + 1);
      uint32_t* operand = low.x_operand + at * low.x_words;
      low.kernels->convert(low.precision, x.from(begin), end - begin, p.input,
                           operand + begin * low.x_words, low.x_scale + at + begin);
      meet(team.barrier, team.size);
      low.kernels->multiply_panels(low.precision, operand, low.x_scale + at, low.x_words, rows,
                                   p.x_panels, low.x, p.bias, Rows<float>{gx, width}, team);
      return;
    }
  multiply_panels(x, rows, p.x_panels, p.bias, Rows<T>{gx, width}, team);
}

template <class Cell, class T>
void forward_pass(const Forward<T>& given, Team everyone) {
  Forward<T> p = given;
  const Visits visits{p.steps, p.reverse};
  const int64_t T_ = p.steps.count, H = p.hidden, width = Cell::kGates * H;
  if (everyone.id == 0) {  // rows that no step reaches keep their state
    const int64_t reached = T_ > 0 ? p.steps.offset[1] - p.steps.offset[0] : 0;
    copy_rows(p.h_0, p.h_n, reached, p.batch, H, 0, H);
    if (Cell::kHasC) copy_rows(p.c_0, p.c_n, reached, p.batch, H, 0, H);
  }
  if (p.y_order) clear_padding(p.steps, p.y_order, p.batch, p.y, p.y_stride, H, everyone);

  const int members = p.split.members;
  const bool takes_part = everyone.id < members;
  const Part part = divide(p.split, everyone.id, 0, T_);
  // Members with rows of their own never wait for one another: each projects its own x, in scratch
  // of its own.
  const bool apart = members > 1 && part.rows;
  const Team team = apart ? Team{0, 1, nullptr} : everyone;
  const Band own = apart ? Band{part.row_begin, part.row_end} : Band{};
  if (apart && !p.save) {
    p.h += everyone.id * p.between;
    if (p.c) p.c += everyone.id * p.between;
    if (p.gates) p.gates += everyone.id * p.between * Cell::kSaved;
  }
  const int64_t scratch = apart ? everyone.id * p.chunk + own.begin : 0;
  const int waiting = part.rows ? 1 : members;
  const Team dividing{part.rows ? 0 : everyone.id, waiting, p.split.barrier};
  Share shares[Cell::kStages] = {};
  if (takes_part)
    for (int s = 0; s < Cell::kStages; s++)
      shares[s] = share_of(part, everyone.id, members, p.h_panels[s]);
  const Share& last = shares[Cell::kStages - 1];
  int64_t unit_begin = 0, unit_end = 0;
  units_of(last, p.h_panels[Cell::kStages - 1], unit_begin, unit_end);

  for (int64_t i = 0; i < T_;) {
    const int64_t begin = i;
    int64_t rows = 0;
    while (i < T_ && (i == begin || rows < p.chunk)) rows += own.rows(visits.rows(i++));
    const int64_t chunk_row = p.reverse ? visits.row(i - 1) : visits.row(begin);
    if (p.ready) wait_until(p.ready, chunk_row + rows);
    Rows<const T> x{p.x + chunk_row * p.input, p.input};
    if (p.x_order || apart) {
      const T** to = p.x_rows + scratch;
      point_to_rows(p, visits, begin, i, own, to, team);
      x = {nullptr, 0, to};
    }
    project(p, x, rows, scratch, width, team);
    meet(team.barrier, team.size);
    if (takes_part) {
      int64_t at = p.reverse ? rows : 0;  // in the chunk
      for (int64_t j = begin; j < i; j++) {
        const int64_t rows_here = own.rows(visits.rows(j));
        if (p.reverse) at -= rows_here;
        const T* gx = p.gx + (scratch + at - own.begin) * width;
        if (!p.reverse) at += rows_here;
        forward_stage<Cell, T, 0>(p, visits, j, gx, shares[0], everyone.id, dividing);
        if constexpr (Cell::kStages > 1) {
          meet(p.split.barrier, waiting);
          forward_stage<Cell, T, 1>(p, visits, j, gx, shares[1], everyone.id, dividing);
        }
        // Rows whose last step this is.
        const int64_t row_end = lesser(visits.rows(j), last.row_end);
        int64_t ending = lesser(visits.rows(j), visits.rows(j + 1));
        ending = ending > last.row_begin ? ending : last.row_begin;
        if (ending < row_end) {
          const T* h = p.save ? p.h + visits.row(j) * H : p.h + j % 2 * p.batch * H;
          copy_rows(h, p.h_n, ending, row_end, H, unit_begin, unit_end);
          const T* c = p.save ? p.c + visits.row(j) * H : p.c;
          if (Cell::kHasC && c != p.c_n)
            copy_rows(c, p.c_n, ending, row_end, H, unit_begin, unit_end);
        }
        if (j + 1 < i) meet(p.split.barrier, waiting);
      }
    }
    if (p.done) raise_to(p.done, chunk_row + rows);
    if (i < T_) meet(team.barrier, team.size);
  }
  if (p.low && p.low->kernels->split) p.low->kernels->split->release();
}

// ------------------------------------------------------------------------------ backward

// One vector of units of one row on its way back through a step.
template <class T>
struct UnitGradient {
  Vec<T> s[4];                // in: as saved
  Vec<T> h_before, c_before;  // in: state before the step
  Vec<T> h, c;                // in: state after it
  Vec<T> dh;                  // in: gradient of h after the step; in the second stage, the product
  Vec<T> dc;                  // in: of c after the step; out: of c before
  Vec<T> direct;              // out: what dh passes to h before the step without a matrix
  Vec<T> d[4];                // out: gradients of the pre-activations
};

template <class Cell, class T, int kStage>
struct BackwardTile {
  static constexpr bool kMayBeLow = sizeof(T) == sizeof(float);
  static constexpr bool kMayLieAcross = false;
  static constexpr bool kMayBeTogether = false;
  int64_t hidden, y_stride;
  const T* operand;  // [n, W, H] gradients of pre-activations, or null where there is no product
  int64_t depth;     // of the product
  int64_t k_begin, k_end;  // the part of it that is taken now
  bool finish;             // and whether it is the last one; until then sums wait in `partial`
  T* partial;              // [B, H]
  const T* gates;          // [n, S, H]
  const T* h_before;       // [n, H]
  const T* h;              // [n, H]
  const T* c_before;       // [n, H] or null
  const T* c;              // [n, H] or null
  const T* dy;             // [n, y_stride], or [B, y_stride] with y_order, or null
  const int64_t* y_order;
  const T* dh_n;  // [B, H] for rows that end here, or null
  bool add_direct;
  T* direct;               // [B, H]
  T* dc;                   // [B, H] or null
  T* dgates;               // [n, W, H]
  T* dh_0;                 // [B, H]: only the gradient of the initial state is wanted; else null
  const LowBackward* low;  // then k counts words
  const uint32_t* low_operand;  // [n, low->h_words[kStage]] the operand, converted
  const float* low_special;     // [n]

  template <int kRows, int kVectors>
  void run(int64_t row, int64_t unit, const T* panel, Ahead<T> ahead) const {
    constexpr int n = kLanes<T>;
    const int64_t left = hidden - unit;
    T sums[kRows * kVectors * n] __attribute__((aligned(64)));
    {
      Vec<T> acc[kRows][kVectors] = {};
      if (k_begin > 0)
#pragma GCC unroll 8
        for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
          for (int u = 0; u < kVectors; u++)
            acc[m][u] = load_tail(partial + (row + m) * hidden + unit + u * n,
                                  int(lesser(n, left - u * n)));
      if (operand) {
        const int64_t stride = Cell::kWritten * hidden;
        int64_t k = 0;
        for (int part = 0; part < Cell::back_parts(kStage); part++) {
          const int64_t first = k > k_begin ? k : k_begin;
          const int64_t column = Cell::back_first(kStage, part) * hidden + first - k;
          k += Cell::back_gates(kStage, part) * hidden;
          const int64_t count = lesser(k, k_end) - first;
          if (count > 0)
            ahead.multiply(
                acc, [&](int m, int64_t i) { return operand[(row + m) * stride + column + i]; },
                panel, first, count);
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
        for (int u = 0; u < kVectors; u++) store(&sums[(m * kVectors + u) * n], acc[m][u]);
    }
    finish_rows<kVectors>(row, kRows, unit, sums);
  }

  template <int kVectors>
  void run_low(int64_t row, int rows, int64_t unit, const T* panel) const {
    constexpr int n = kLanes<T>;
    T sums[kMostLowRows * kVectors * n] __attribute__((aligned(64)));
    const auto at = [&](int m, int u) { return &sums[(m * kVectors + u) * n]; };
    const bool resume = k_begin > 0;
    for (int m = 0; m < rows; m++)
      for (int u = 0; u < kVectors; u++) {
        const int lanes = int(lesser(n, hidden - unit - u * n));
        if (resume)
          store(at(m, u), load_tail(partial + (row + m) * hidden + unit + u * n, lanes));
        else if (!operand)
          store(at(m, u), Vec<T>{});
      }
    if (operand) {
      SplitTile t{};
      t.operand_words = low->most_words;
      t.operand = low_operand + row * t.operand_words + k_begin;
      t.operand_scale = low_special + row;
      t.rows = rows;
      t.panel = reinterpret_cast<const uint32_t*>(panel) + k_begin * n;
      t.apart = depth * n;
      t.depth = k_end - k_begin;
      t.vectors = kVectors;
      t.special = low->h[kStage].scale + unit;
      t.stay_in(reinterpret_cast<float*>(sums), n);
      for (int u = 0; u < kVectors; u++)
        if (!resume) t.from[u].at = nullptr;
      low->kernels->split->multiply(t);
    }
    finish_rows<kVectors>(row, rows, unit, sums);
  }

  // From the sums [rows, kVectors vectors] of the product to what the step leaves.
  template <int kVectors>
  __attribute__((noinline)) void finish_rows(int64_t row, int rows, int64_t unit,
                                             const T* sums) const {
    constexpr int n = kLanes<T>;
    const int64_t left = hidden - unit;
    if (!finish) {
      for (int m = 0; m < rows; m++)
        for (int u = 0; u < kVectors; u++)
          store_tail(partial + (row + m) * hidden + unit + u * n,
                     load(sums + (m * kVectors + u) * n), int(lesser(n, left - u * n)));
      return;
    }

    for (int m = 0; m < rows; m++)
      for (int u = 0; u < kVectors; u++) {
        const int lanes = int(lesser(n, left - u * n));
        const int64_t at = (row + m) * hidden + unit + u * n;
        UnitGradient<T> x;
        x.dh = load(sums + (m * kVectors + u) * n);
        if (kStage > 0 || add_direct) x.direct = load_tail(direct + at, lanes);
        if constexpr (kStage == 0) {
          if (add_direct) x.dh += x.direct;
          if (dh_0) {
            store_tail(dh_0 + at, x.dh, lanes);
            continue;
          }
          if (dh_n) x.dh += load_tail(dh_n + at, lanes);
          if (dy) {
            const int64_t y_row = y_order ? y_order[row + m] : row + m;
            x.dh += load_tail(dy + y_row * y_stride + unit + u * n, lanes);
          }
        }
        const T* saved = gates + (row + m) * Cell::kSaved * hidden + unit + u * n;
        for (int q = 0; q < Cell::kSaved; q++) x.s[q] = load_tail(saved + q * hidden, lanes);
        if constexpr (Cell::kReadsH) x.h_before = load_tail(h_before + at, lanes);
        if constexpr (Cell::kReadsHAfter) x.h = load_tail(h + at, lanes);
        if constexpr (Cell::kHasC) {
          x.c_before = load_tail(c_before + at, lanes);
          x.c = load_tail(c + at, lanes);
          x.dc = load_tail(dc + at, lanes);
        }
        Cell::template backward<T, kStage>(x);
        T* written = dgates + (row + m) * Cell::kWritten * hidden + unit + u * n;
        for (int q = 0; q < Cell::kWritten; q++)
          if (Cell::back_writes(kStage) >> q & 1) store_tail(written + q * hidden, x.d[q], lanes);
        if constexpr (Cell::kDirect) store_tail(direct + at, x.direct, lanes);
        if constexpr (Cell::kHasC) store_tail(dc + at, x.dc, lanes);
      }
  }
};

// Makes the gates of a chunk once more, with the same sums as the forward pass and so the same
// bits. As every h is known, no step waits for another.
template <class Cell, class T, int kStage>
void recompute_stage(const Backward<T>& p, int64_t chunk_row, int64_t rows, Team team) {
  const Forward<T>& f = *p.again;
  const int64_t H = p.hidden;
  const Panels<T>& panels = f.h_panels[kStage];
  const int64_t blocks = parts(parts(H, kLanes<T>), panels.widest);
  ForwardTile<Cell, T, kStage> tile{};
  tile.hidden = H;
  tile.gx = f.gx;
  tile.place = f.place;
  tile.bias_h = f.bias_h;
  tile.gates = f.gates;
  tile.low = f.low && f.low->h_words ? f.low : nullptr;
  const T** before = p.before + chunk_row;
  for (int64_t begin = 0, end; begin < rows; begin = end) {
    // Rows whose h before lie one after the other, all in h_0 or all in what was saved.
    for (end = begin + 1; end < rows && before[end] == before[end - 1] + H && before[end] != p.h;)
      end++;
    const T* h = before[begin];
    const bool starts = h >= p.h_0 && h < p.h_0 + p.batch * H;
    tile.h_before = h - begin * H;
    tile.c_before = !p.c ? nullptr : (starts ? p.c_0 + (h - p.h_0) : p.c + (h - p.h)) - begin * H;
    tile.operand = starts && f.zero_h ? nullptr
                   : kStage == 0      ? tile.h_before
                                      : f.gates + Cell::kStageOperand * H;
    tile.operand_stride = kStage == 0 ? H : Cell::kSaved * H;
    const Share share = product_share(begin, end, blocks, team);
    if constexpr (tile.kMayBeLow)
      if (tile.low && tile.operand)
        convert_operand(f, tile, {begin, end, 0, blocks}, team.id, team, begin, end);
    over_tiles<T, Cell::stage_gates(kStage)>(tile, share, panels, panels.k, begin, end, false);
  }
  meet(team.barrier, team.size);
}

// From a packed row on.
template <class T>
RNNFAST_INLINE Rows<const T> rows_of_x(const Backward<T>& p, int64_t row) {
  return p.x_order ? Rows<const T>{nullptr, 0, p.x_rows + row}
                   : Rows<const T>{p.x + row * p.input, p.input};
}

template <class Cell, class T>
void recompute(const Backward<T>& p, int64_t chunk_row, int64_t rows, Team team) {
  const Forward<T>& f = *p.again;
  project(f, rows_of_x(p, chunk_row), rows, 0, Cell::kGates * p.hidden, team);
  meet(team.barrier, team.size);
  recompute_stage<Cell, T, 0>(p, chunk_row, rows, team);
  if constexpr (Cell::kStages > 1) recompute_stage<Cell, T, 1>(p, chunk_row, rows, team);
}

// partial = the product of the rows [begin, end) of a share with weights that are read in place.
template <class Cell, class T, int kStage>
void backward_rows(const Backward<T>& p, const T* operand, const Share& share, int64_t begin,
                   int64_t end) {
  const int64_t H = p.hidden, stride = Cell::kWritten * H;
  const Panels<T>& panels = p.h_panels[kStage];
  begin = begin > share.row_begin ? begin : share.row_begin;
  end = lesser(end, share.row_end);
  if (begin >= end) return;
  int64_t unit_begin = 0, unit_end = 0, k = 0;
  units_of(share, panels, unit_begin, unit_end);
  const T* weights = panels.source.data + panels.source.begin[0] + unit_begin;
  for (int part = 0; part < Cell::back_parts(kStage); part++) {
    const int64_t count = Cell::back_gates(kStage, part) * H;
    const Rows<const T> rows{operand + begin * stride + Cell::back_first(kStage, part) * H, stride};
    multiply_rows(rows, end - begin, weights + k * panels.source.row, panels.source.row, count,
                  static_cast<const T*>(nullptr), part > 0,
                  Rows<T>{p.partial + begin * H + unit_begin, H}, unit_end - unit_begin);
    k += count;
  }
}

// The same of a backward pass in parts.
template <class Cell, class T, int kStage>
void convert_gradients(const Backward<T>& p, BackwardTile<Cell, T, kStage>& tile,
                       const Share& share, int member, Team waiting, int64_t begin, int64_t end) {
  const LowBackward& low = *p.low;
  const int64_t H = p.hidden, stride = Cell::kWritten * H;
  const Converted own(share, waiting, begin, end);
  tile.low_operand = low.h_operand;
  tile.low_special = low.h_special;
  float* stitched = low.row + member * stride;
  for (int64_t r = own.begin; r < own.end; r++) {
    const T* gates = tile.operand + r * stride;
    const T* row = gates + Cell::back_first(kStage, 0) * H;
    int64_t k = Cell::back_gates(kStage, 0) * H;
    if (Cell::back_parts(kStage) > 1) {
      row = stitched;
      k = 0;
      for (int part = 0; part < Cell::back_parts(kStage); part++) {
        const int64_t count = Cell::back_gates(kStage, part) * H;
        __builtin_memcpy(stitched + k, gates + Cell::back_first(kStage, part) * H,
                         size_t(count) * sizeof(float));
        k += count;
      }
    }
    low.kernels->convert(Precision::kSplit, {row, k}, 1, k, low.h_operand + r * low.most_words,
                         low.h_special + r);
  }
  meet(waiting.barrier, waiting.size);
}

// One stage of the backward pass through visit i. `gates` are what that step saved, `later` the
// gradients that visit i + 1 wrote, `here` those that this one writes. With i = -1, only the
// initial state is left.
template <class Cell, class T, int kStage>
void backward_stage(const Backward<T>& p, const Visits& visits, int64_t i, const T* gates,
                    const T* later, T* here, const Share& share, int member, Team waiting) {
  const int64_t H = p.hidden;
  BackwardTile<Cell, T, kStage> tile{};
  tile.hidden = H;
  tile.y_stride = p.y_stride;
  tile.direct = p.direct;
  tile.partial = p.partial;
  // A deep product is taken in parts, so that a part of a column block stays in the cache while the
  // rows pass by.
  const Panels<T>& panels = p.h_panels[kStage];
  const int64_t depth = tile.depth = panels.k;
  tile.low = p.low && p.low->h_words[kStage] ? p.low : nullptr;
  const auto run = [&](int64_t begin, int64_t end) {
    if (tile.operand && panels.in_place(end - begin)) {
      backward_rows<Cell, T, kStage>(p, tile.operand, share, begin, end);
      tile.operand = nullptr;  // all of the product is in `partial`
      tile.k_begin = tile.k_end = depth;
      tile.finish = true;
      over_tiles<T, 1>(tile, share, panels, depth, begin, end, false);
      return;
    }
    if constexpr (tile.kMayBeLow)
      if (tile.low && tile.operand) convert_gradients(p, tile, share, member, waiting, begin, end);
    const bool deep = tile.operand && end - begin > max_rows(kWidest);
    const int64_t most = tile.low ? words_of(Precision::kSplit, kBackwardDepth) : kBackwardDepth;
    const int64_t step = deep ? lesser(depth, most) : depth;
    for (tile.k_begin = 0; tile.k_begin < depth; tile.k_begin += step) {
      tile.k_end = lesser(tile.k_begin + step, depth);
      tile.finish = tile.k_end == depth;
      over_tiles<T, 1>(tile, share, panels, depth, begin, end, i % 2 != 0);
    }
  };
  const int64_t rows = visits.rows(i), rows_later = visits.rows(i + 1);
  const int64_t continuing = lesser(rows, rows_later);

  if (kStage == 0 && p.dh_0 && continuing < rows_later) {  // rows that started at visit i + 1
    tile.operand = later;
    tile.add_direct = Cell::kDirect;
    tile.dh_0 = p.dh_0;
    run(continuing, rows_later);
    tile.dh_0 = nullptr;
  }
  if (i < 0) return;

  const int64_t row = visits.row(i);
  tile.gates = gates;
  tile.h = p.h + row * H;
  tile.c = p.c ? p.c + row * H : nullptr;
  tile.dy = p.dy ? p.dy + (p.y_order ? visits.step(i) * p.batch : row) * p.y_stride : nullptr;
  tile.y_order = p.y_order;
  tile.dc = p.dc;
  tile.dgates = here;
  // Where the state before comes from cuts the rows in two as well.
  const int64_t continued = lesser(rows, visits.rows(i - 1));
  const int64_t cuts[] = {0, lesser(continuing, continued),
                          continuing > continued ? continuing : continued, rows};
  for (int k = 0; k < 3; k++) {
    const int64_t begin = cuts[k], end = lesser(cuts[k + 1], rows);
    if (begin >= end) continue;
    const bool ends = begin >= continuing, starts = begin >= continued;
    tile.operand = kStage > 0 ? here : ends ? nullptr : later;
    tile.add_direct = kStage == 0 && Cell::kDirect && !ends;
    tile.dh_n = ends ? p.dh_n : nullptr;
    const int64_t before = starts ? 0 : visits.row(i - 1);
    tile.h_before = starts ? p.h_0 : p.h + before * H;
    tile.c_before = starts ? p.c_0 : p.c ? p.c + before * H : nullptr;
    run(begin, end);
  }
}

// Where the rows of a padded x and dx lie.
template <class T>
void point_to_rows(const Backward<T>& p) {
  for (int64_t t = 0; t < p.steps.count; t++)
    for (int64_t row = p.steps.offset[t]; row < p.steps.offset[t + 1]; row++) {
      const int64_t at = (t * p.batch + p.x_order[row - p.steps.offset[t]]) * p.input;
      p.x_rows[row] = p.x + at;
      if (p.dx) p.dx_rows[row] = p.dx + at;
    }
}

template <class T>
void point_before(const Backward<T>& p, const Visits& visits) {
  for (int64_t i = 0; i < p.steps.count; i++) {
    const int64_t continued = lesser(visits.rows(i), visits.rows(i - 1));
    const T** at = p.before + visits.row(i);
    const T* h = i > 0 ? p.h + visits.row(i - 1) * p.hidden : nullptr;
    for (int64_t b = 0; b < continued; b++) at[b] = h + b * p.hidden;
    for (int64_t b = continued; b < visits.rows(i); b++) at[b] = p.h_0 + b * p.hidden;
  }
}

// dx = dgates w_ih for some rows.
template <class T>
void input_gradient(const Backward<T>& p, const Rows<const T>& dgates, int64_t rows,
                    const Rows<T>& dx, Team team) {
  if constexpr (sizeof(T) == sizeof(float))
    if (p.low && p.low->x_words) {
      const LowBackward& low = *p.low;
      const int64_t begin = part_begin(rows, team.size, team.id);
      const int64_t end = part_begin(rows, team.size, team.id + 1);
      low.kernels->convert(Precision::kSplit, dgates.from(begin), end - begin, p.low->x_numbers,
                           low.x_operand + begin * low.x_words, low.x_special + begin);
      meet(team.barrier, team.size);
      low.kernels->multiply_panels(Precision::kSplit, low.x_operand, low.x_special, low.x_words,
                                   rows, p.x_panels, low.x, nullptr, dx, team);
      return;
    }
  multiply_panels(dgates, rows, p.x_panels, static_cast<const T*>(nullptr), dx, team);
}

// c (+)= a^T b, as multiply_tn.
template <class T>
void multiply_rows_of(const Backward<T>& p, const Rows<const T>& a, int64_t m,
                      const Rows<const T>& b, int64_t n, int64_t rows, T* c, int64_t c_stride,
                      bool accumulate, Team team) {
  if constexpr (sizeof(T) == sizeof(float))
    if (p.low && lesser(m, n) >= p.low->narrowest)
      return p.low->kernels->split->multiply_tn(a, m, b, n, rows, c, c_stride, accumulate,
                                                p.layout.transposed, p.pack, team);
  multiply_tn(a, m, b, n, rows, c, c_stride, accumulate, p.pack, team);
}

// Adds what a chunk of rows gives to the gradients of some gates' weights and biases: `dgates` are
// the columns of those gates, `operand` [rows, width] what their weights multiply.
template <class T>
void weight_gradient(const Backward<T>& p, int first, int count, Rows<const T> dgates,
                     const Rows<const T>& operand, int64_t width, int64_t rows, int all_gates,
                     T* dw, T* db, bool accumulate, Team team) {
  const int64_t H = p.hidden;
  const int* place = p.layout.place + first;
  for (int gate = 0, together; gate < count; gate += together, dgates.first += together * H) {
    for (together = 1; gate + together < count; together++)
      if (place[gate + together] != place[gate] + together) break;
    const int64_t row = place[gate] * H, m = together * H;
    if (dw && p.layout.transposed)
      multiply_rows_of(p, operand, width, dgates, m, rows, dw + row, all_gates * H, accumulate,
                       team);
    else if (dw)
      multiply_rows_of(p, dgates, m, operand, width, rows, dw + row * width, width, accumulate,
                       team);
    if (db) sum_rows(dgates.first, dgates.stride, m, rows, db + row, accumulate, team);
  }
}

template <class Cell, class T>
void backward_pass(const Backward<T>& p, Team team) {
  const Visits visits{p.steps, p.reverse};
  const int64_t T_ = p.steps.count, H = p.hidden;
  if (team.id == 0) {
    point_before(p, visits);
    if (p.x_order) point_to_rows(p);
    const int64_t reached = T_ > 0 ? p.steps.offset[1] - p.steps.offset[0] : 0;
    if (p.dh_0) copy_rows(p.dh_n, p.dh_0, reached, p.batch, H, 0, H);
    if (Cell::kHasC) copy_rows(p.dc_n, p.dc, 0, p.batch, H, 0, H);
  }
  if (p.x_order && p.dx) clear_padding(p.steps, p.x_order, p.batch, p.dx, p.input, p.input, team);
  meet(team.barrier, team.size);
  const bool takes_part = team.id < p.split.members;
  Share shares[Cell::kStages] = {};
  const int64_t width = Cell::kWritten * H;
  Team dividing{0, 1, nullptr};  // who divide the units of a step
  const T* later = nullptr;      // what the visit before (in this order) wrote
  int which = 0;
  bool accumulate = false;
  for (int64_t i = T_ - 1; i >= 0;) {
    const int64_t last = i;
    int64_t rows = 0;
    while (i >= 0 && (i == last || rows < p.chunk)) rows += visits.rows(i--);
    const int64_t chunk_row = p.reverse ? visits.row(last) : visits.row(i + 1);
    T* dgates = p.dgates[which];
    which ^= 1;
    if (takes_part) {
      const int64_t first = visits.first_step(i + 1, last + 1);
      const Part part = divide(p.split, team.id, first, first + last - i);
      dividing = {part.rows ? 0 : team.id, part.rows ? 1 : p.split.members, p.split.barrier};
      for (int s = 0; s < Cell::kStages; s++)
        shares[s] = share_of(part, team.id, p.split.members, p.h_panels[s]);
    }
    const T* saved = p.gates + chunk_row * Cell::kSaved * H;  // [rows, S, H]
    if (p.again) {
      recompute<Cell>(p, chunk_row, rows, team);
      saved = p.again->gates;
    }
    for (int64_t j = last; j > i;) {
      int64_t stretch = 0;
      int64_t before = j;
      while (before > i && (before == j || stretch < p.stretch)) stretch += visits.rows(before--);
      const int64_t first = p.reverse ? visits.row(j) : visits.row(before + 1);
      if (p.ready) wait_until(p.ready, p.steps.offset[T_] - first);
      for (; j > before; j--) {
        T* here = dgates + (visits.row(j) - chunk_row) * width;
        const T* gates = saved + (visits.row(j) - chunk_row) * Cell::kSaved * H;
        if (takes_part) {
          backward_stage<Cell, T, 0>(p, visits, j, gates, later, here, shares[0], team.id,
                                     dividing);
          if constexpr (Cell::kStages > 1) {
            meet(p.split.barrier, dividing.size);
            backward_stage<Cell, T, 1>(p, visits, j, gates, later, here, shares[1], team.id,
                                       dividing);
          }
          if (j - 1 > before) meet(p.split.barrier, dividing.size);
        }
        later = here;
      }
      meet(team.barrier, team.size);
      if (p.dx)
        input_gradient(p, Rows<const T>{dgates + (first - chunk_row) * width, width}, stretch,
                       p.x_order ? Rows<T>{nullptr, 0, p.dx_rows + first}
                                 : Rows<T>{p.dx + first * p.input, p.input},
                       team);
      if (p.done) raise_to(p.done, p.steps.offset[T_] - first);
    }
    weight_gradient(p, 0, Cell::kGates, Rows<const T>{dgates, width}, rows_of_x(p, chunk_row),
                    p.input, rows, Cell::kGates, p.dw_ih, p.db_ih, accumulate, team);
    for (int s = 0; s < Cell::kWeightParts; s++) {
      const Rows<const T> columns{dgates + Cell::weight_column(s) * H, width};
      const Rows<const T> operand =
          Cell::weight_from_saved(s)
              ? Rows<const T>{saved + Cell::kStageOperand * H, Cell::kSaved * H}
              : Rows<const T>{nullptr, 0, p.before + chunk_row};
      weight_gradient(p, Cell::weight_row(s), Cell::weight_gates(s), columns, operand, H, rows,
                      Cell::kGates, p.dw_hh, p.db_hh, accumulate, team);
    }
    accumulate = true;
  }
  if (Cell::kHasC && team.id == 0) copy_rows<T>(p.dc, p.dc_0, 0, p.batch, H, 0, H);
  if (takes_part && p.dh_0)
    backward_stage<Cell, T, 0>(p, visits, -1, static_cast<const T*>(nullptr), later,
                               static_cast<T*>(nullptr), shares[0], team.id, dividing);
  if (p.low && p.low->kernels->split) p.low->kernels->split->release();
}

template <class Cell, class T>
constexpr CellKernels<T> kernels_of() {
  CellKernels<T> k{};
  k.gates = Cell::kGates;
  k.saved = Cell::kSaved;
  k.written = Cell::kWritten;
  k.stages = Cell::kStages;
  k.has_c = Cell::kHasC;
  k.apart = Cell::kApart;
  for (int s = 0; s < Cell::kStages; s++) {
    k.stage_first[s] = Cell::stage_first(s);
    k.stage_gates[s] = Cell::stage_gates(s);
    k.unit_vectors[s] = unit_vectors(Cell::stage_gates(s));
  }
  k.forward = forward_pass<Cell, T>;
  k.backward = backward_pass<Cell, T>;
  return k;
}

// Of a cell whose step is one product: everything but the mathematics.
template <int kGateCount, int kSavedCount>
struct OneStage {
  static constexpr int kGates = kGateCount;    // G
  static constexpr int kSaved = kSavedCount;   // S
  static constexpr int kWritten = kGateCount;  // W
  static constexpr int kStages = 1;
  static constexpr bool kHasC = false;
  static constexpr bool kReadsH = false;       // forward and backward need h before the step
  static constexpr bool kReadsHAfter = false;  // backward needs h after it
  static constexpr bool kDirect = false;       // dh passes on without a matrix too
  static constexpr int kApart = -1;            // the gate whose recurrent part stays apart
  static constexpr int kStageOperand = 0;      // what a second stage multiplies, among the saved

  // Forward: the gates of a stage, and which of the saved numbers it writes.
  static constexpr int stage_first(int) { return 0; }
  static constexpr int stage_gates(int) { return kGateCount; }
  static constexpr int stage_saves(int) { return (1 << kSavedCount) - 1; }
  // Backward: the written gates that a stage multiplies with their rows of w_hh, in parts, and
  // which it writes.
  static constexpr int back_parts(int) { return 1; }
  static constexpr int back_first(int, int) { return 0; }
  static constexpr int back_gates(int, int) { return kGateCount; }
  static constexpr int back_writes(int) { return (1 << kGateCount) - 1; }
  // The gradient of w_hh: written gates times the state before, or times what was saved.
  static constexpr int kWeightParts = 1;
  static constexpr int weight_row(int) { return 0; }
  static constexpr int weight_gates(int) { return kGateCount; }
  static constexpr int weight_column(int) { return 0; }
  static constexpr bool weight_from_saved(int) { return false; }
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
