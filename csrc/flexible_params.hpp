// What passes between the driver of cells with options (flexible.cpp) and their kernels.
//
// Letters as in params.hpp, and P: the size of h, which is H but for an LSTM with projection.
#pragma once

#include "params.hpp"

namespace rnnfast {

// A number and its derivative along some direction. Layers of these differentiate their results:
// forward passes along the direction, backward passes a second time.
struct Dual {
  double v, d;

  Dual() = default;
  __attribute__((always_inline)) Dual(double value) : v(value), d(0) {}  // no weak symbol
};

// In the order of rnnfast.spec.ACTIVATIONS.
enum class Function {
  kSigmoid,
  kTanh,
  kRelu,
  kLinear,
  kAffine,
  kLeakyRelu,
  kThresholdedRelu,
  kScaledTanh,
  kHardSigmoid,
  kElu,
  kSoftsign,
  kSoftplus
};

struct Activation {
  Function function;
  double alpha, beta;
};

struct CellOptions {
  Activation gate, candidate, output;
  double clip;  // of the arguments of gates and candidate; 0 for none
  double grad_clip;
  bool input_forget;
  int64_t truncate;  // steps between stops of the gradient; 0 for none
};

// Something for each array of weights of a direction.
template <class Each>
struct WeightFields {
  Each w_ih;        // [G*H, I]
  Each w_hh;        // [G*H, P]
  Each b_ih;        // [G*H] or null
  Each b_hh;        // [G*H] or null
  Each w_hr;        // [P, H] or null
  Each w_peep;      // [3, H] or null
  Each ln_ih;       // [G*H] or null
  Each ln_hh;       // [G*H] or null
  Each ln_c;        // [H] or null
  Each ln_c_shift;  // [H] or null
};
template <class T>
using FlexibleWeights = WeightFields<const T*>;
template <class T>
using FlexibleGradients = WeightFields<T*>;  // null for weights that are not there

// See rnnfast.spec.Masks. A stride of 0 means one row for all.
template <class T>
struct StateMasks {
  const T* recurrent;  // [B, P] or null
  const T* keep_h;     // [N, P] or null
  int64_t keep_h_stride;
  const T* keep_c;  // [N, H] or null
  int64_t keep_c_stride;
};

constexpr int kScales = 5;  // a row has: of two groups of W_ih x, two of W_hh h, and c

template <class T>
struct FlexibleForward {
  Steps steps;
  int64_t batch, input, hidden, outputs;
  bool reverse, save;
  Split split;
  int64_t chunk;
  CellOptions options;
  FlexibleWeights<T> w;
  StateMasks<T> masks;
  const T* x;             // [N, I]
  Panels<T> x_panels;     // [I, G*H]
  Panels<T> h_panels[2];  // [P, G*H], or in a GRU before [H, 2*H] and [H, H]; [H, P] of w_hr
  int saved_slots;        // S
  T* gx;                  // [chunk + B, G, H] scratch
  T* raw;                 // [B, G, H] scratch: recurrent products of a step
  T* step_h;              // [B, P] scratch: h after the step, before zoneout
  T* operand;             // [B, P] scratch: h_n times its mask; h_n itself where there is none
  T* saved;               // [N, S, H] when saving, else [chunk + B, S, H] scratch
  T* scales;              // [as many, kScales]
  T* h_before;            // [N, P] when saving: h before each step
  T* operand_before;      // [N, P] when saving and masked: the operand
  T* c_before;            // [N, H] when saving, for a cell with c
  T* y;                   // [N, D*P] at this direction's first column
  int64_t y_stride;       // D*P
  T* h_n;                 // [B, P] in: the initial state; out: the last one
  T* c_n;                 // [B, H] likewise, or null
};

// Slots of H numbers that the backward pass writes a row; -1 for those that are not there.
struct Written {
  int arguments;  // G: gradients of the gates' arguments, as W_ih x has them
  int of_h;       // G: as W_hh h has them; the same slots but for a GRU after
  int product_x;  // G: of W_ih x itself, before its normalisation; arguments where there is none
  int product_h;  // G: of W_hh h
  int gain_x;     // G: what sums up to the gradient of ln_ih
  int gain_h;     // G
  int peep;       // 3
  int c_gain;     // 2: of ln_c and ln_c_shift
  int work;       // 1
  int count;      // W
};

template <class T>
struct FlexibleBackward {
  Steps steps;
  int64_t batch, input, hidden, outputs;
  bool reverse;
  Split split;
  int64_t chunk;
  CellOptions options;
  FlexibleWeights<T> w;
  StateMasks<T> masks;
  const T* x;               // [N, I]
  Panels<T> x_panels;       // [G*H, I]
  Panels<T> h_panels[2];    // [G*H, P], or [2*H, H] and [H, H]; [P, H] of w_hr
  int saved_slots;          // S
  const T* saved;           // [N, S, H]
  const T* scales;          // [N, kScales]
  const T* h_before;        // [N, P]
  const T* operand_before;  // [N, P]
  const T* c_before;        // [N, H] or null
  const T* dy;              // [N, D*P] at this direction's first column, or null
  int64_t y_stride;         // D*P
  Written written;
  T* rows;  // [chunk + B, W, H] scratch
  T* dh;    // [chunk + B, P] scratch: gradients of h after each step, before zoneout
  T* sum;   // [B, max(H, P)] scratch: of a product
  T* pack;  // scratch of the weight products, see tn_scratch
  T* dh_0;  // [B, P] in: dh_n; out: dh_0
  T* dc_0;  // [B, H] likewise, or null
  T* dx;    // [N, I] written
  FlexibleGradients<T> dw;  // written
};

enum FlexibleKind { kFlexLstm, kFlexGruAfter, kFlexGruBefore, kFlexRnn, kFlexGated, kFlexKinds };

template <class T>
struct FlexibleKernels {
  int gates;  // G
  int saved;  // S without normalisation
  bool has_c;
  bool apart;       // W_hh h has other gradients than W_ih x
  int first_gates;  // of the first product
  void (*forward)(const FlexibleForward<T>&, Team);
  void (*backward)(const FlexibleBackward<T>&, Team);
};

}  // namespace rnnfast
