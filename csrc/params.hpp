// What passes between the driver (ops.cpp) and the kernels of an instruction set: plain structures.
//
// Letters: T time steps, B batch rows, N = sum of the rows of all steps, I input size, H hidden
// size, D directions, G gates of the cell, S numbers that training saves a unit, W numbers that the
// backward pass writes a unit (both listed in cells/).
#pragma once

#include <cstdint>

namespace rnnfast {

struct Barrier;
struct LowForward;
struct LowBackward;
struct Workload;

// Of packed weights. kSplit is float32 as well, in three parts (see kernels/split.hpp); no user
// chooses it.
enum class Precision { kFull, kBfloat16, kInt8, kSplit };

// The threads that work on one direction; all of them call the same functions.
struct Team {
  int id;  // 0 to size - 1
  int size;
  Barrier* barrier;  // of `size` members
};

// How packed rows fall into time steps. Sizes never grow with t.
struct Steps {
  int64_t count;          // T
  const int64_t* offset;  // [T + 1] first packed row of each step; offset[T] = N
};

// How the user's weights lie, and so their gradients.
struct Layout {
  bool transposed = false;      // w_ih is [I, G*H] and w_hh [H, G*H]
  int place[4] = {0, 1, 2, 3};  // of each gate, among those of the user
};

// One direction's weights as the user gave them.
template <class T>
struct Weights {
  const T* w_ih;  // [G*H, I]
  const T* w_hh;  // [G*H, H]
  const T* b_ih;  // [G*H] or null
  const T* b_hh;  // [G*H] or null
  Layout layout = {};
};

// Where the numbers of a matrix [K, N] lie: (k, n) at data[k * row + n * column], one of the
// strides being 1. Several such matrices, of one gate each, are packed as one: side by side, so
// that a unit has its gates together, or, where they have a height, one below another, K rows in
// all.
template <class T>
struct Source {
  const T* data = nullptr;
  int64_t row = 0, column = 0;
  int groups = 1;         // side by side
  int64_t height = 0;     // rows of each, or 0
  int64_t begin[4] = {};  // of each, from data on
};

// The rows of a matrix: the first one and a stride, or a pointer to each.
template <class T>
struct Rows {
  T* first;
  int64_t stride;
  T* const* each = nullptr;

  T* row(int64_t r) const { return each ? each[r] : first + r * stride; }
  Rows from(int64_t r) const {
    return each ? Rows{nullptr, 0, each + r} : Rows{first + r * stride, stride};
  }
};

constexpr int64_t kFewRows = 6;  // that are one tile

// A matrix [K, N] packed for the products x M: blocks of columns, each block [K, its columns].
// Where each block is used once, `data` has place for one, which is packed as its turn comes.
template <class T>
struct Panels {
  T* data = nullptr;  // [K, groups * N in whole vectors], or [K, the widest block]; 64-byte aligned
  int64_t k = 0;
  int64_t n = 0;   // of one group
  int widest = 1;  // vectors of the widest block, of one group
  Source<T> source = {};
  bool one_by_one = false;

  // Whether it is used once, by a few rows, and lies as they read it: then it is not packed at all.
  bool in_place(int64_t rows) const {
    return one_by_one && rows <= kFewRows && source.column == 1 && source.groups == 1 &&
           source.height == 0;
  }
  // Whether it is used once, by one row, and lies across: then columns are turned in registers.
  bool across(int64_t rows) const {
    return one_by_one && rows == 1 && source.row == 1 && source.column != 1 && source.height == 0;
  }
};

// Who runs a direction's time loop. Members of the team beyond `members` only help with the matrix
// products.
struct Split {
  int members;
  Barrier* barrier;      // of `members` members
  const Workload* work;  // that they divide (see divide in plan.hpp)
};

// What one member does of some steps: batch rows of its own, without a barrier, or hidden units of
// its own of all rows, with a barrier a step.
struct Part {
  bool rows;
  int64_t row_begin, row_end;
};

template <class T>
struct Forward {
  Steps steps;
  int64_t batch, input, hidden;
  bool reverse;
  Split split;
  int64_t chunk;           // rows of the products between two stretches of the time loop
  const int64_t* ready;    // rows of x that are there by now (see wait_until), or null for all
  int64_t* done;           // rows that this pass has finished, told as it goes on, or null
  const T* x;              // [N, I], or where there is an order [T, B, I]
  const int64_t* x_order;  // [B] the row of a padded step where each packed row lies, or null
  const T** x_rows;        // [threads * chunk + B] scratch: rows of x that lie apart
  Panels<T> x_panels;      // [I, G*H]
  Panels<T> h_panels[2];   // [H, gates of the stage * H], gates of a unit side by side
  const int* place;        // [G] of each gate in x_panels, bias and gx
  const T* bias;           // [G*H] added to x w_ih^T
  const T* bias_h;         // [H] added to the recurrent part that stays apart (GRU), or null
  const T* h_0;            // [B, H]
  bool zero_h;             // whether h_0 is zero, so that its product is
  const T* c_0;            // [B, H] or null for a cell without c
  T* gx;                   // [threads * chunk + B, G*H] scratch
  T* gates;                // [N, S, H] when saving them, else [B, S, H] scratch or null
  T* h;                    // [N, H] when saving, else [2, B, H] scratch
  T* c;                    // [N, H] when saving, else [B, H] as it runs, which may be c_n; or null
  int64_t between;         // numbers from one member's scratch of h and c to the next one's
  bool save;               // h and c
  bool save_gates;         // and the gates
  const LowForward* low;   // where panels hold words (kernels/low.hpp), or null
  T* y;                    // [N, D*H], or where there is an order [T, B, D*H], at this direction's
                           // first column
  const int64_t* y_order;  // [B] as x_order, of y
  int64_t y_stride;        // D*H
  T* h_n;                  // [B, H] written
  T* c_n;                  // [B, H] written, or null
};

template <class T>
struct Backward {
  Steps steps;
  int64_t batch, input, hidden;
  bool reverse;
  Split split;
  int64_t chunk;
  int64_t stretch;          // rows of dx at a time, where others wait for them; else chunk
  const int64_t* ready;     // rows of dy that are there by now, from the last on, or null for all
  int64_t* done;            // rows of dx that this pass has finished, or null
  const T* x;               // [N, I], or where there is an order [T, B, I]
  const int64_t* x_order;   // [B] as in Forward, of x and dx, or null
  const int64_t* y_order;   // [B] likewise of dy
  Panels<T> x_panels;       // [W of w_ih, I] for dx = dgates w_ih
  Panels<T> h_panels[2];    // [W of w_hh, H] for dh = dgates w_hh, per stage
  const T* h_0;             // [B, H]
  const T* c_0;             // [B, H] or null
  const T* gates;           // [N, S, H] as the forward pass saved them, or null
  const Forward<T>* again;  // where it did not: how to make those of a chunk, in again->gates
  const T* h;               // [N, H]
  const T* c;               // [N, H] or null
  const T* dy;              // [N, D*H], or where there is an order [T, B, D*H], at this
                            // direction's first column, or null for zeros
  int64_t y_stride;         // D*H
  const T* dh_n;            // [B, H] or null for zeros
  const T* dc_n;            // [B, H] or null for zeros
  T* dgates[2];             // [chunk + B, W, H] scratch, in turn
  T* direct;                // [B, H] scratch: what dh passes on without a matrix
  T* dc;                    // [B, H] scratch: the gradient of c as it runs, or null
  T* partial;               // [B, H] scratch: sums of a product that is taken in parts
  const T** before;         // [N] scratch: the row of h that each packed row continues
  const T** x_rows;         // [N] scratch: each row of a padded x
  T** dx_rows;              // [N] scratch: and of a padded dx
  T* pack;                  // scratch of the weight products, see tn_scratch
  Layout layout;            // of the gradients of weights
  T* dx;                    // [N, I], or where there is an order [T, B, I], written, or null
  T* dw_ih;                 // [G*H, I] written, or null
  T* dw_hh;                 // [G*H, H] written, or null
  T* db_ih;                 // [G*H] written, or null
  T* db_hh;                 // [G*H] written, or null
  T* dh_0;                  // [B, H] written, or null
  T* dc_0;                  // [B, H] written, or null
  const LowBackward* low;   // where products are split (kernels/split.hpp), or null
};

}  // namespace rnnfast
