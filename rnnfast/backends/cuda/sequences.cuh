// All steps of a layer in one launch: what its two ways have in common, that of grid.cu (w_hh in
// shared memory, a barrier of the grid) and that of cluster.cu (w_hh in registers, clusters).
//
// Blocks: x is a slice of the units, y a slice of the rows of the batch, z the direction. Rows do
// not depend on one another, so that only the blocks of one y and z wait for each other.
#pragma once
#include "units.cuh"

#ifdef __CUDACC__
#define RNNFAST_ASSUME(what) __builtin_assume(what)
#else
#define RNNFAST_ASSUME(what)
#endif

namespace rnnfast {

typedef unsigned long long Count;

// Of forward and backward. Rows of y count from rows * blockIdx.y on.
template <class S>
struct Sequence {
  const S* w_hh;        // (G*H, H)
  const Index* visits;  // (3, visit_count) as `Visit`; null where all steps have all rows
  Count* arrived;       // (gridDim.y,) grid.cu: blocks at barriers so far; 0 at launch
  S* exchange;          // (2, B, H) grid.cu, forward: what the next product reads; h_0 at launch
  const void* h_0;  // (B, H) cluster.cu: the state, or in backward its gradient, that steps start
  const void* c_0;  // from; null for zeros
  void* h_n;        // (B, H) cluster.cu: that which they leave
  void* c_n;
  Index visit_count, batch, w_stride;
  Index units, rows;   // of a block at most
  Index extra_stride;  // between the packed rows of `extra`; 0 where they are rows of the batch
  Index reverse;       // whether the last step comes first, without `visits`
  Index wide_ends;     // whether h_0, c_0, h_n and c_n are of what is computed with, not of S
};

// A step in the order of its direction.
struct Visit {
  Index first, rows;  // of its packed rows
  Index cut;          // so many rows pass no gradient to the visit before
};

template <class S>
__device__ Visit visited(const Sequence<S>& s, Index k) {
  if (s.visits) return {s.visits[k], s.visits[s.visit_count + k], s.visits[2 * s.visit_count + k]};
  return {(s.reverse ? s.visit_count - 1 - k : k) * s.batch, s.batch, 0};
}

// The step has pointers to the numbers of packed row 0.
template <class T, class S>
struct ForwardSequence {
  Sequence<S> of;
  ForwardStep<T, S> step;
};

template <class T, class S>
struct BackwardSequence {
  Sequence<S> of;
  BackwardStep<T, S> step;
};

template <class Parameters>
struct Directions {
  Parameters of[2];
};

template <class T>
__device__ T* advanced(T* pointer, Index count) {
  return pointer ? pointer + count : pointer;
}

// The step whose first packed row is `first`.
template <class Cell, class T, class S>
__device__ ForwardStep<T, S> at_row(ForwardStep<T, S> p, Index first, Index extra_stride) {
  const Index H = p.hidden, unit = first * H, gate = unit * Cell::kGates;
  p.gx += gate;
  p.gates = advanced(p.gates, gate);
  p.y += first * p.y_stride;
  p.keep_h = advanced(p.keep_h, first * p.keep_h_stride);
  p.h_before = advanced(p.h_before, unit);
  p.extra = advanced(p.extra, first * extra_stride);
  p.q = advanced(p.q, unit);
  if (Cell::kHasC) {
    p.keep_c = advanced(p.keep_c, first * p.keep_c_stride);
    p.c_before = advanced(p.c_before, unit);
    p.c_step = advanced(p.c_step, unit);
    p.value = advanced(p.value, unit);
  }
  return p;
}

template <class Cell, class T, class S>
__device__ BackwardStep<T, S> at_row(BackwardStep<T, S> p, Index first) {
  const Index H = p.hidden, unit = first * H, gate = unit * Cell::kGates;
  p.gates += gate;
  p.d += gate;
  p.d_h += gate;
  p.product_h += gate;
  p.dy = advanced(p.dy, first * p.dy_stride);
  p.keep_h = advanced(p.keep_h, first * p.keep_h_stride);
  p.h_before += unit;
  p.q = advanced(p.q, unit);
  if (Cell::kHasC) {
    p.keep_c = advanced(p.keep_c, first * p.keep_c_stride);
    p.c_before += unit;
    p.value += unit;
  }
  return p;
}

// What a block works on.
struct Share {
  Index unit, unit_count, row, row_count;

  template <class S>
  __device__ Share(const Sequence<S>& s, Index hidden)
      : unit(blockIdx.x * s.units),
        unit_count(smaller(s.units, hidden - unit)),
        row(blockIdx.y * s.rows),
        row_count(smaller(s.rows, s.batch - row)) {}

  __device__ static Index smaller(Index a, Index b) { return a < b ? a : b; }

  // Its rows of a step that has n.
  __device__ Index rows_of(Index n) const { return smaller(row_count, n - row); }
};

// The sums over 2 * kLanes lanes that lie beside one another, of kPlaces * kSums numbers a lane.
// Halving the places while halving the lanes that hold each, a lane ends up with all sums of its
// share of the places in the first numbers, in order; where there are more lanes than places, some
// have the same.
template <int kPlaces, int kSums, int kLanes, class T>
__device__ void lane_sums(T* a) {
  if constexpr (kLanes > 0 && kPlaces > 1) {
    constexpr int half = kPlaces / 2 * kSums;
    const bool upper = threadIdx.x & kLanes;
    for (int i = 0; i < half; i++) {
      const T kept = upper ? a[half + i] : a[i], given = upper ? a[i] : a[half + i];
      a[i] = kept + __shfl_xor_sync(0xffffffffu, given, kLanes);
    }
    lane_sums<kPlaces / 2, kSums, kLanes / 2>(a);
  } else if constexpr (kLanes > 0) {
    for (int i = 0; i < kSums; i++) a[i] += __shfl_xor_sync(0xffffffffu, a[i], kLanes);
    lane_sums<1, kSums, kLanes / 2>(a);
  }
}

#ifdef RNNFAST_POINTERS

// The parameters of a block's direction, with what is known when a kernel is compiled: besides that
// of `specialise`, the number of units, whether there are two directions, whether all steps are
// equal, and RNNFAST_NULL(name) or RNNFAST_THERE(name) for each pointer of a step that is so in
// both directions. RNNFAST_BACKWARD tells which kernel it is for.
#define RNNFAST_NULL(name) found.step.name = nullptr;
#define RNNFAST_THERE(name) RNNFAST_ASSUME(found.step.name != nullptr);

template <class Sequences>
__device__ __forceinline__ auto own(const Sequences& p) {
  auto found = p.of[RNNFAST_TWO ? blockIdx.z : 0];
  specialise(found.step.options);
  found.step.hidden = found.step.outputs = RNNFAST_HIDDEN;
  if (RNNFAST_EQUAL) found.of.visits = nullptr;
  RNNFAST_POINTERS
  return found;
}

#endif

}  // namespace rnnfast
