// What happens in a time step beside its matrix products, which are cuBLAS': one kernel forward and
// one backward, two where a cell has a second product in a step. A block works on one row of the
// batch (blockIdx.x), on all of its units where a layer normalisation must see them (gridDim.y is 1
// then), else on some. rnnfast/backends/cuda/engine.py launches them.
//
// Compiled once for every cell, pair of types and presence of layer normalisation, which the macros
// at the end name.
#include "units.cuh"

namespace rnnfast {

// ----------------------------------------------------------------------------------- kernels

// W_ih x of every row of the batch and step at once, in place.
template <class Cell, class T>
__device__ void inputs_kernel(T* gx, T* scales, Index hidden) {
  const Index b = blockIdx.x;
  normalise_groups<Cell>(gx + b * Cell::kGates * hidden, hidden, scales + b * Cell::kGroups, 0,
                         Cell::kGroups);
}

template <class Cell, class T, class S>
__device__ void inputs_back_kernel(const T* d, const S* gain, const T* hat, const T* scales, S* da,
                                   Index hidden) {
  const Index b = blockIdx.x, row = b * Cell::kGates * hidden;
  normalise_groups_back<Cell>(d + row, gain, hat + row, hidden, scales + b * Cell::kGroups, 0,
                              Cell::kGroups, da + row);
}

// After the product W_hh h; with a second product, of the gates before it.
template <class Cell, class T, class S, bool kNorm>
__device__ void forward_kernel(const ForwardStep<T, S>& p) {
  const Index b = blockIdx.x;
  if (kNorm)
    normalise_groups<Cell>(p.raw + b * Cell::kGates * p.hidden, p.hidden,
                           p.scale_h + b * Cell::kGroups, 0,
                           Cell::kSecondProduct ? 1 : Cell::kGroups);
  RNNFAST_FOR_UNITS(u, p.hidden) {
    T sums[Cell::kSums];
    for (int g = 0; g < Cell::kSums; g++) sums[g] = p.raw[(b * Cell::kGates + g) * p.hidden + u];
    Cell::template forward<kNorm>(p, b, u, sums);
  }
  if constexpr (kNorm && Cell::kHasC)
    if (p.ln_c) Cell::forward_normalised(p, b);
}

template <class Cell, class T, class S, bool kNorm>
__device__ void forward_second_kernel(const ForwardStep<T, S>& p) {
  const Index b = blockIdx.x;
  if constexpr (Cell::kSecondProduct) {
    if (kNorm)
      normalise_groups<Cell>(p.raw + b * Cell::kGates * p.hidden, p.hidden,
                             p.scale_h + b * Cell::kGroups, 1, Cell::kGroups);
    const T* sums = p.raw + (b * Cell::kGates + Cell::kSums) * p.hidden;
    RNNFAST_FOR_UNITS(u, p.hidden) Cell::forward_second(p, b, u, sums[u]);
  } else {  // after a projection
    RNNFAST_FOR_UNITS(u, p.outputs) finish_h(p, b, u, p.step_h[b * p.outputs + u]);
  }
}

// Before the product of a projection.
template <class T, class S>
__device__ void gather_kernel(const BackwardStep<T, S>& p) {
  const Index b = blockIdx.x;
  RNNFAST_FOR_UNITS(u, p.outputs) { p.dh_step[b * p.outputs + u] = S(gather(p, b, u)); }
}

template <class Cell, class T, class S, bool kNorm>
__device__ void backward_kernel(const BackwardStep<T, S>& p) {
  const Index b = blockIdx.x, row = b * Cell::kGates * p.hidden;
  if constexpr (kNorm && Cell::kHasC)
    if (p.ln_c) Cell::backward_normalised(p, b);
  RNNFAST_FOR_UNITS(u, p.hidden) Cell::template backward<kNorm>(p, b, u);
  if (kNorm) {
    __syncthreads();
    normalise_groups_back<Cell>(p.d_h + row, p.ln_hh, p.hat_h + row, p.hidden,
                                p.scale_h + b * Cell::kGroups, Cell::kSecondProduct ? 1 : 0,
                                Cell::kGroups, p.product_h + row);
  }
}

template <class Cell, class T, class S, bool kNorm>
__device__ void backward_second_kernel(const BackwardStep<T, S>& p) {
  if constexpr (Cell::kSecondProduct) {
    const Index b = blockIdx.x, row = b * Cell::kGates * p.hidden;
    RNNFAST_FOR_UNITS(u, p.hidden) {
      Cell::template backward_second<kNorm>(p, b, u, p.sum[b * p.hidden + u]);
    }
    if (kNorm) {
      __syncthreads();
      normalise_groups_back<Cell>(p.d_h + row, p.ln_hh, p.hat_h + row, p.hidden,
                                  p.scale_h + b * Cell::kGroups, 0, 1, p.product_h + row);
    }
  }
}

// After all products of a step, where a mask lies on h or gradients stop: with a mask, p.sum is the
// gradient of what was masked; else the product was added to p.dh itself.
template <class T, class S>
__device__ void pass_kernel(const BackwardStep<T, S>& p) {
  const Index b = blockIdx.x;
  RNNFAST_FOR_UNITS(u, p.outputs) {
    const Index at = b * p.outputs + u;
    if (b < p.cut)
      p.dh[at] = 0;
    else if (p.recurrent)
      p.dh[at] += p.sum[at] * p.recurrent[at];
  }
  if (b < p.cut && p.dc) RNNFAST_FOR_UNITS(u, p.hidden) p.dc[b * p.hidden + u] = 0;
}

}  // namespace rnnfast

// -------------------------------------------------------------------------------- entry points

// RNNFAST_CELL, _REAL, _STORED and _NORM name the instantiation; RNNFAST_GATE, _CANDIDATE and
// _OUTPUT the functions, which the compiler then builds in.
#ifdef RNNFAST_CELL

#define RNNFAST_KERNEL __global__ void __launch_bounds__(256)

namespace {
using Cell = rnnfast::RNNFAST_CELL;
using Real = RNNFAST_REAL;
using Stored = RNNFAST_STORED;
constexpr bool kNorm = RNNFAST_NORM;

template <class Step>
__device__ __forceinline__ Step specialised(Step p) {
  rnnfast::specialise(p.options);
  return p;
}
}  // namespace

extern "C" {
RNNFAST_KERNEL inputs(Real* gx, Real* scales, long long hidden) {
  rnnfast::inputs_kernel<Cell>(gx, scales, hidden);
}
RNNFAST_KERNEL inputs_back(const Real* d, const Stored* gain, const Real* hat, const Real* scales,
                           Stored* da, long long hidden) {
  rnnfast::inputs_back_kernel<Cell>(d, gain, hat, scales, da, hidden);
}
RNNFAST_KERNEL forward(const rnnfast::ForwardStep<Real, Stored> p) {
  rnnfast::forward_kernel<Cell, Real, Stored, kNorm>(specialised(p));
}
RNNFAST_KERNEL forward_second(const rnnfast::ForwardStep<Real, Stored> p) {
  rnnfast::forward_second_kernel<Cell, Real, Stored, kNorm>(specialised(p));
}
RNNFAST_KERNEL gather(const rnnfast::BackwardStep<Real, Stored> p) { rnnfast::gather_kernel(p); }
RNNFAST_KERNEL backward(const rnnfast::BackwardStep<Real, Stored> p) {
  rnnfast::backward_kernel<Cell, Real, Stored, kNorm>(specialised(p));
}
RNNFAST_KERNEL backward_second(const rnnfast::BackwardStep<Real, Stored> p) {
  rnnfast::backward_second_kernel<Cell, Real, Stored, kNorm>(specialised(p));
}
RNNFAST_KERNEL pass(const rnnfast::BackwardStep<Real, Stored> p) { rnnfast::pass_kernel(p); }
}

#endif
