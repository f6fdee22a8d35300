// A unit of a row of the batch in a time step, but for the sums of its matrix products: everything
// that it reads and writes beside them. steps.cu launches this once a step (the alternating
// engine), and grid.cu and cluster.cu once for all steps (those of a grid and of clusters).
//
// T is what is computed with: float or double. S is what weights, inputs, outputs and everything
// that products read is stored in: T itself, or 16 bits beside float.
//
// Letters: n rows of the step, B of the batch, H units, P size of h, G gates.
#pragma once
#include "cells.cuh"

namespace rnnfast {

typedef long long Index;

// One step of one direction. Pointers to what belongs to the step begin at its first row. Null
// stands for what there is not, or is not wanted.
template <class T, class S>
struct ForwardStep {
  const T* gx;    // (n, G*H) W_ih x; normalised where there is a norm
  T* raw;         // (n, G*H) W_hh h; normalised in place where there is a norm
  const S* b_ih;  // (G*H,) or null
  const S* b_hh;
  const S* ln_ih;  // (G*H,) with a norm
  const S* ln_hh;
  const S* ln_c;  // (H,) or null
  const S* ln_c_shift;
  const S* w_peep;     // (3, H) or null
  const T* recurrent;  // (B, P) or null; masks, here and below
  const T* keep_h;     // (n, P), or one row with a stride of 0, or null
  const T* keep_c;     // (n, H), or one row, or null
  T* h;                // (B, P) in: before the step, out: after it
  T* c;                // (B, H) likewise
  S* operand;          // (B, P) h * recurrent for the next product, or null where h itself serves
  S* y;                // (n, y_stride)
  const T* step_h;     // (n, P) what a projection made, or null without one
  T* gates;            // (n, G*H) or null; may be gx
  T* value;            // (n, H) LSTM: of the output activation, or null
  T* c_step;           // (n, H) LSTM: c before zoneout, or null
  S* extra;            // (n, H) LSTM: what a projection reads; GRU: r * operand; or null
  T* q;                // (n, H) GRU with reset_after: the recurrent part of n; or null
  T* h_before;         // (n, P) or null
  T* c_before;         // (n, H) or null
  T* hat_c;            // (n, H) with ln_c
  T* scale_h;          // (n, groups) with a norm
  T* scale_c;          // (n,) with ln_c
  T* given;            // cluster.cu: one number, what goes to operand, once more; or null
  Index hidden, outputs, y_stride, keep_h_stride, keep_c_stride;
  Options options;
};

template <class T, class S>
struct BackwardStep {
  const S* dy;  // (n, dy_stride) or null
  const T* gates;
  const T* value;
  const T* c_step;
  const T* q;
  const T* h_before;
  const T* c_before;
  const T* hat_c;
  const T* hat_h;  // (n, G*H) W_hh h normalised
  const T* scale_h;
  const T* scale_c;
  const S* ln_hh;
  const S* ln_c;
  const S* w_peep;
  const T* recurrent;
  const T* keep_h;
  const T* keep_c;
  const T* sum;  // (n, H or P) what the last product made
  T* dh;         // (B, P) in: after the step, out: what reaches h before without the products
  T* dc;         // (B, H) in: after the step, out: before it
  S* dh_step;    // (n, P) with a projection: of its result; else null
  T* d;          // (n, G*H) of the gates' arguments
  T* d_h;        // (n, G*H) of W_hh h with its bias; d but for a GRU with reset_after
  S* product_h;  // (n, G*H) of W_hh h; d_h without a norm where T is S
  T* du;         // (n, H) with ln_c: of what the output activation reads
  T* dc_norm;    // (n, H) with ln_c: what of it reaches c
  T* given;      // cluster.cu: (G,) what one unit gives to product_h, once more; or null
  Index hidden, outputs, dy_stride, keep_h_stride, keep_c_stride;
  Index cut;  // so many rows pass no gradient to the step before
  Options options;
};

// --------------------------------------------------------------------------- rows and blocks

#define RNNFAST_FOR_UNITS(u, count)                                         \
  for (Index u = Index(blockIdx.y) * blockDim.x + threadIdx.x; u < (count); \
       u += Index(gridDim.y) * blockDim.x)

// The sum over a block, of whole warps; every thread gets it, added in one fixed order.
template <class T>
__device__ T block_sum(T value) {
  __shared__ T parts[32];
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  __syncthreads();  // the sum before this one has been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
  for (unsigned w = 0; w < blockDim.x / 32; w++) total += parts[w];
  return total;
}

// a to mean 0 and variance 1 in place, by the whole block, which may read all of it afterwards.
template <class T>
__device__ void normalise(T* a, Index count, T* scale) {
  T sum = 0;
  RNNFAST_FOR_UNITS(u, count) sum += a[u];
  const T mean = block_sum(sum) / T(count);
  T squares = 0;
  RNNFAST_FOR_UNITS(u, count) squares += (a[u] - mean) * (a[u] - mean);
  const T factor = 1 / root(block_sum(squares) / T(count) + T(1e-5));  // as the reference's
  RNNFAST_FOR_UNITS(u, count) a[u] = (a[u] - mean) * factor;
  if (threadIdx.x == 0) *scale = factor;
  __syncthreads();
}

// da, given d of gain * hat + shift.
template <class T, class S, class Result>
__device__ void normalise_back(const T* d, const S* gain, const T* hat, const T* scale, Index count,
                               Result* da) {
  T sum = 0, along = 0;
  RNNFAST_FOR_UNITS(u, count) {
    const T dhat = d[u] * gain[u];
    sum += dhat;
    along += dhat * hat[u];
  }
  const T mean = block_sum(sum) / T(count), parallel = block_sum(along) / T(count);
  RNNFAST_FOR_UNITS(u, count) {
    da[u] = Result(*scale * (d[u] * gain[u] - mean - hat[u] * parallel));
  }
  __syncthreads();
}

// Every cell: gates that are normalised together are a group.
template <int kGateCount>
struct OneGroup {
  static constexpr int kGates = kGateCount;
  static constexpr int kSums = kGateCount;  // that the first product of a step makes
  static constexpr int kGroups = 1;
  static constexpr bool kSecondProduct = false;
  static constexpr bool kHasC = false;
  static constexpr bool kBackwardReadsH = false;  // h_before
  __device__ static constexpr int group_gates(int) { return kGateCount; }
};

template <class Cell, class T>
__device__ void normalise_groups(T* row, Index hidden, T* scales, int first, int end) {
  int gate = 0;
  for (int g = 0; g < end; g++) {
    if (g >= first) normalise(row + gate * hidden, Cell::group_gates(g) * hidden, scales + g);
    gate += Cell::group_gates(g);
  }
}

template <class Cell, class T, class S>
__device__ void normalise_groups_back(const T* d, const S* gain, const T* hat, Index hidden,
                                      const T* scales, int first, int end, S* da) {
  int gate = 0;
  for (int g = 0; g < end; g++) {
    const Index at = gate * hidden;
    if (g >= first)
      normalise_back(d + at, gain + at, hat + at, scales + g, Cell::group_gates(g) * hidden,
                     da + at);
    gate += Cell::group_gates(g);
  }
}

// ------------------------------------------------------------------------ parts of every cell

// The two summands of a gate's argument.
template <class Cell, class T, class S>
__device__ T by_x(const ForwardStep<T, S>& p, Index b, int gate, Index u) {
  const Index at = gate * p.hidden + u;
  T a = p.gx[b * Cell::kGates * p.hidden + at];
  if (p.ln_ih) a *= p.ln_ih[at];
  return p.b_ih ? a + p.b_ih[at] : a;
}

template <class T, class S>
__device__ T by_h(const ForwardStep<T, S>& p, int gate, Index u, T sum) {
  const Index at = gate * p.hidden + u;
  if (p.ln_hh) sum *= p.ln_hh[at];
  return p.b_hh ? sum + p.b_hh[at] : sum;
}

template <class Cell, class T, class S>
__device__ T argument(const ForwardStep<T, S>& p, Index b, int gate, Index u, T sum) {
  return by_x<Cell>(p, b, gate, u) + by_h(p, gate, u, sum);
}

template <class Cell, class T, class S>
__device__ void save_gate(const ForwardStep<T, S>& p, Index b, int gate, Index u, T value) {
  if (p.gates) p.gates[(b * Cell::kGates + gate) * p.hidden + u] = value;
}

// From h as the step made it to everything that h goes to.
template <class T, class S>
__device__ void finish_h(const ForwardStep<T, S>& p, Index b, Index u, T h) {
  const Index at = b * p.outputs + u;
  const T before = p.h[at];
  if (p.keep_h) h = zoned_out(p.keep_h[b * p.keep_h_stride + u], before, h);
  if (p.h_before) p.h_before[at] = before;
  if (p.operand || p.given) {
    const S operand = S(p.recurrent ? h * p.recurrent[at] : h);
    if (p.operand) p.operand[at] = operand;
    if (p.given) *p.given = operand;
  }
  p.h[at] = h;
  p.y[b * p.y_stride + u] = S(h);
}

// The gradient of h as the step made it; p.dh keeps what zoneout passes on.
template <class T, class S>
__device__ T gather(const BackwardStep<T, S>& p, Index b, Index u) {
  T d = p.dh[b * p.outputs + u], kept = 0;
  if (p.dy) d += p.dy[b * p.dy_stride + u];
  if (p.keep_h) {
    kept = d * p.keep_h[b * p.keep_h_stride + u];
    d -= kept;
  }
  p.dh[b * p.outputs + u] = kept;
  return d;
}

// Stores the gradient of a gate's argument for the products, where they do not read d_h itself or
// what a norm makes of it.
template <class Cell, bool kNorm, class T, class S>
__device__ void give(const BackwardStep<T, S>& p, Index b, int gate, Index u, T d) {
  const Index at = (b * Cell::kGates + gate) * p.hidden + u;
  if constexpr (kNarrow<T, S> && !kNorm) p.product_h[at] = S(d);
  if constexpr (!kNorm)
    if (p.given) p.given[gate] = S(d);
}

// dh for the step before, from what the product with w_hh made; nothing where gradients stop.
template <class T, class S>
__device__ void pass_on(const BackwardStep<T, S>& p, Index b, Index u, T sum) {
  const Index at = b * p.outputs + u;
  const bool cut = b < p.cut;
  if (p.recurrent) sum *= p.recurrent[at];
  p.dh[at] = cut ? T(0) : p.dh[at] + sum;
  if (cut && p.dc) p.dc[b * p.hidden + u] = 0;
}

// ------------------------------------------------------------------------------------- cells

// i f g o.
struct Lstm : OneGroup<4> {
  static constexpr bool kHasC = true;

  template <class T, class S>
  __device__ static void output(const ForwardStep<T, S>& p, Index b, Index u, T o, T c) {
    const T value = activated(p.options.output, c), h = o * value;
    if (p.value) p.value[b * p.hidden + u] = value;
    if (p.extra)
      p.extra[b * p.hidden + u] = S(h);
    else
      finish_h(p, b, u, h);
  }

  template <bool kNorm, class T, class S>
  __device__ static void forward(const ForwardStep<T, S>& p, Index b, Index u, const T* sums) {
    const Index H = p.hidden, at = b * H + u;
    T a[4], peep[3] = {0, 0, 0};
    for (int g = 0; g < 4; g++) a[g] = argument<Lstm>(p, b, g, u, sums[g]);
    if (p.w_peep)
      for (int k = 0; k < 3; k++) peep[k] = p.w_peep[k * H + u];
    const T c = p.c[at];
    const LstmUnit<T> s = lstm(p.options, a, p.w_peep ? peep : nullptr, c);
    save_gate<Lstm>(p, b, 0, u, s.i);
    save_gate<Lstm>(p, b, 1, u, s.f);
    save_gate<Lstm>(p, b, 2, u, s.g);
    save_gate<Lstm>(p, b, 3, u, s.o);
    if (p.c_before) p.c_before[at] = c;
    if (p.c_step) p.c_step[at] = s.c;
    p.c[at] = p.keep_c ? zoned_out(p.keep_c[b * p.keep_c_stride + u], c, s.c) : s.c;
    if (kNorm && p.ln_c)
      p.hat_c[at] = s.c;
    else
      output(p, b, u, s.o, s.c);
  }

  // After all units of a row, with ln_c.
  template <class T, class S>
  __device__ static void forward_normalised(const ForwardStep<T, S>& p, Index b) {
    const Index H = p.hidden;
    normalise(p.hat_c + b * H, H, p.scale_c + b);
    RNNFAST_FOR_UNITS(u, H) {
      const T c = p.ln_c[u] * p.hat_c[b * H + u];
      output(p, b, u, p.gates[(b * 4 + 3) * H + u], p.ln_c_shift ? c + p.ln_c_shift[u] : c);
    }
  }

  // Before all units of a row, with ln_c.
  template <class T, class S>
  __device__ static void backward_normalised(const BackwardStep<T, S>& p, Index b) {
    const Index H = p.hidden;
    RNNFAST_FOR_UNITS(u, H) { p.du[b * H + u] = of_output<true>(p, b, u); }
    normalise_back(p.du + b * H, p.ln_c, p.hat_c + b * H, p.scale_c + b, H, p.dc_norm + b * H);
  }

  template <bool kNorm, class T, class S>
  __device__ static void backward(const BackwardStep<T, S>& p, Index b, Index u) {
    const Index H = p.hidden, at = b * H + u;
    const T* gates = p.gates + b * 4 * H;
    T* d = p.d + b * 4 * H;
    const T du = kNorm && p.ln_c ? p.dc_norm[at] : of_output<kNorm>(p, b, u);
    T dc = p.dc[at], kept = 0, peep[3] = {0, 0, 0}, by_gate[3];
    if (p.keep_c) {
      kept = dc * p.keep_c[b * p.keep_c_stride + u];
      dc -= kept;
    }
    if (p.w_peep)
      for (int k = 0; k < 3; k++) peep[k] = p.w_peep[k * H + u];
    const LstmUnit<T> s = {gates[u], gates[H + u], gates[2 * H + u], gates[3 * H + u], 0};
    p.dc[at] = kept + lstm_back(p.options, s, p.w_peep ? peep : nullptr, p.c_before[at],
                                d[3 * H + u], dc + du, by_gate);
    for (int g = 0; g < 3; g++) {
      d[g * H + u] = by_gate[g];
      give<Lstm, kNorm>(p, b, g, u, by_gate[g]);
    }
  }

  // Stores the gradient of o's argument and returns that of what the output activation reads.
  template <bool kNorm, class T, class S>
  __device__ static T of_output(const BackwardStep<T, S>& p, Index b, Index u) {
    const Index H = p.hidden, at = (b * 4 + 3) * H + u;
    const T dh = p.dh_step ? p.sum[b * H + u] : gather(p, b, u);
    const T o = p.gates[at], value = p.value[b * H + u];
    const T d = argument_back(p.options, p.options.gate, dh * value, o);
    p.d[at] = d;
    give<Lstm, kNorm>(p, b, 3, u, d);
    return activated_back(p.options.output, dh * o, value);
  }
};

template <int kGateCount>
struct GruGroups : OneGroup<kGateCount> {
  static constexpr bool kBackwardReadsH = true;
  static constexpr int kGroups = 2;
  __device__ static constexpr int group_gates(int group) { return group == 0 ? 2 : 1; }
};

// r z n, the reset gate after the product.
struct GruAfter : GruGroups<3> {
  template <bool kNorm, class T, class S>
  __device__ static void forward(const ForwardStep<T, S>& p, Index b, Index u, const T* sums) {
    const Options& o = p.options;
    const T r = clipped(o.gate, o.clip, argument<GruAfter>(p, b, 0, u, sums[0]));
    const T z = clipped(o.gate, o.clip, argument<GruAfter>(p, b, 1, u, sums[1]));
    const T q = by_h(p, 2, u, sums[2]);
    const T n = clipped(o.candidate, o.clip, by_x<GruAfter>(p, b, 2, u) + r * q);
    save_gate<GruAfter>(p, b, 0, u, r);
    save_gate<GruAfter>(p, b, 1, u, z);
    save_gate<GruAfter>(p, b, 2, u, n);
    if (p.q) p.q[b * p.hidden + u] = q;
    finish_h(p, b, u, gru(z, n, p.h[b * p.hidden + u]));
  }

  template <bool kNorm, class T, class S>
  __device__ static void backward(const BackwardStep<T, S>& p, Index b, Index u) {
    const Index H = p.hidden, row = b * 3 * H;
    const T r = p.gates[row + u], z = p.gates[row + H + u], n = p.gates[row + 2 * H + u];
    const T dh = gather(p, b, u);
    T dz, dn;
    gru_back(p.options, z, n, p.h_before[b * H + u], dh, &dz, &dn);
    const T dr = argument_back(p.options, p.options.gate, dn * p.q[b * H + u], r);
    p.d[row + u] = p.d_h[row + u] = dr;
    p.d[row + H + u] = p.d_h[row + H + u] = dz;
    p.d[row + 2 * H + u] = dn;
    p.d_h[row + 2 * H + u] = dn * r;
    give<GruAfter, kNorm>(p, b, 0, u, dr);
    give<GruAfter, kNorm>(p, b, 1, u, dz);
    give<GruAfter, kNorm>(p, b, 2, u, dn * r);
    p.dh[b * H + u] += dh * z;
  }
};

// r z n, the reset gate before the product; extra is r * operand, which a second product reads.
struct GruBefore : GruGroups<3> {
  static constexpr int kSums = 2;
  static constexpr bool kSecondProduct = true;

  template <bool kNorm, class T, class S>
  __device__ static void forward(const ForwardStep<T, S>& p, Index b, Index u, const T* sums) {
    const Options& o = p.options;
    const Index at = b * p.hidden + u;
    const T r = clipped(o.gate, o.clip, argument<GruBefore>(p, b, 0, u, sums[0]));
    const T z = clipped(o.gate, o.clip, argument<GruBefore>(p, b, 1, u, sums[1]));
    save_gate<GruBefore>(p, b, 0, u, r);
    save_gate<GruBefore>(p, b, 1, u, z);
    p.extra[at] = S(r * (p.recurrent ? p.h[at] * p.recurrent[at] : p.h[at]));
  }

  template <class T, class S>
  __device__ static void forward_second(const ForwardStep<T, S>& p, Index b, Index u, T sum) {
    const Options& o = p.options;
    const Index H = p.hidden;
    const T n = clipped(o.candidate, o.clip, argument<GruBefore>(p, b, 2, u, sum));
    save_gate<GruBefore>(p, b, 2, u, n);
    finish_h(p, b, u, gru(p.gates[(b * 3 + 1) * H + u], n, p.h[b * H + u]));
  }

  template <bool kNorm, class T, class S>
  __device__ static void backward(const BackwardStep<T, S>& p, Index b, Index u) {
    const Index H = p.hidden, row = b * 3 * H;
    const T z = p.gates[row + H + u];
    const T dh = gather(p, b, u);
    T dz, dn;
    gru_back(p.options, z, p.gates[row + 2 * H + u], p.h_before[b * H + u], dh, &dz, &dn);
    p.d[row + H + u] = dz;
    p.d[row + 2 * H + u] = dn;
    give<GruBefore, kNorm>(p, b, 1, u, dz);
    give<GruBefore, kNorm>(p, b, 2, u, dn);
    p.dh[b * H + u] += dh * z;
  }

  // sum is the gradient of extra.
  template <bool kNorm, class T, class S>
  __device__ static void backward_second(const BackwardStep<T, S>& p, Index b, Index u, T sum) {
    const Index H = p.hidden, row = b * 3 * H;
    const T r = p.gates[row + u];
    if (p.recurrent) sum *= p.recurrent[b * H + u];
    const T dr = argument_back(p.options, p.options.gate, sum * p.h_before[b * H + u], r);
    p.d[row + u] = dr;
    give<GruBefore, kNorm>(p, b, 0, u, dr);
    p.dh[b * H + u] += sum * r;
  }
};

struct Rnn : OneGroup<1> {
  template <bool kNorm, class T, class S>
  __device__ static void forward(const ForwardStep<T, S>& p, Index b, Index u, const T* sums) {
    const T a = argument<Rnn>(p, b, 0, u, sums[0]);
    const T h = clipped(p.options.candidate, p.options.clip, a);
    save_gate<Rnn>(p, b, 0, u, h);
    finish_h(p, b, u, h);
  }

  template <bool kNorm, class T, class S>
  __device__ static void backward(const BackwardStep<T, S>& p, Index b, Index u) {
    const Index at = b * p.hidden + u;
    const T d = argument_back(p.options, p.options.candidate, gather(p, b, u), p.gates[at]);
    p.d[at] = d;
    give<Rnn, kNorm>(p, b, 0, u, d);
  }
};

// i f u.
struct Gated : OneGroup<3> {
  static constexpr bool kBackwardReadsH = true;

  template <bool kNorm, class T, class S>
  __device__ static void forward(const ForwardStep<T, S>& p, Index b, Index u, const T* sums) {
    const Options& o = p.options;
    const T i = clipped(o.gate, o.clip, argument<Gated>(p, b, 0, u, sums[0]));
    const T f = clipped(o.gate, o.clip, argument<Gated>(p, b, 1, u, sums[1]));
    const T v = clipped(o.candidate, o.clip, argument<Gated>(p, b, 2, u, sums[2]));
    save_gate<Gated>(p, b, 0, u, i);
    save_gate<Gated>(p, b, 1, u, f);
    save_gate<Gated>(p, b, 2, u, v);
    finish_h(p, b, u, f * p.h[b * p.hidden + u] + i * v);
  }

  template <bool kNorm, class T, class S>
  __device__ static void backward(const BackwardStep<T, S>& p, Index b, Index u) {
    const Index H = p.hidden, row = b * 3 * H;
    const T f = p.gates[row + H + u], dh = gather(p, b, u);
    T d[3];
    gated_back(p.options, p.gates[row + u], f, p.gates[row + 2 * H + u], p.h_before[b * H + u], dh,
               d);
    for (int g = 0; g < 3; g++) {
      p.d[row + g * H + u] = d[g];
      give<Gated, kNorm>(p, b, g, u, d[g]);
    }
    p.dh[b * H + u] += dh * f;
  }
};

#ifdef RNNFAST_CELL

// What is known when the kernels are compiled, and built in: the functions, and which options there
// are not.
__device__ __forceinline__ void specialise(Options& o) {
  o.gate.function = RNNFAST_GATE;
  o.candidate.function = RNNFAST_CANDIDATE;
  o.output.function = RNNFAST_OUTPUT;
  if (!RNNFAST_CLIP) o.clip = 0;
  if (!RNNFAST_GRAD_CLIP) o.grad_clip = 0;
  o.input_forget = RNNFAST_INPUT_FORGET;
}

#endif

}  // namespace rnnfast
