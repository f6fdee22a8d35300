// The time loops of cells with options: any activations, clipping, peepholes, projection, layer
// normalisation, masks on the state. Unlike those of layer.hpp, where a cell's functions are
// applied to sums in registers, the products of a step go through memory, and rows of it are then
// worked on: slower by some percent, and free to look at a whole row.
//
// The state runs in place: h_n and c_n begin as the initial state, rows that have not started keep
// it, and rows that have ended keep theirs.
#pragma once

#include "../flexible_params.hpp"
#include "../plan.hpp"
#include "../simd/dual.hpp"
#include "../threads.hpp"
#include "gemm.hpp"
#include "tile.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

constexpr double kNormEpsilon = 1e-5;  // as rnnfast/reference/common.py has it

// ------------------------------------------------------------------------------- functions

// Where both are equal the bound is what counts, and has no slope.
template <class T>
RNNFAST_INLINE IntVec<T> up_to(Vec<T> a, Vec<T> b) {
  return below<T>(a, b) | equal<T>(a, b);
}

template <class T>
RNNFAST_INLINE Vec<T> limited(Vec<T> x, double bound) {
  if (bound <= 0) return x;
  const Vec<T> most = constant<T>(bound), least = constant<T>(-bound);
  return choose<T>(up_to<T>(most, x), most, choose<T>(up_to<T>(x, least), least, x));
}

// k before + (1 - k) after: exactly one of them where k is 1 or 0.
template <class T>
RNNFAST_INLINE Vec<T> zoned_out(Vec<T> k, Vec<T> before, Vec<T> after) {
  return fma(k, before, (constant<T>(1) - k) * after);
}

template <class T>
__attribute__((noinline)) Vec<T> activated(const Activation& f, Vec<T> a) {
  const Vec<T> zero = constant<T>(0), one = constant<T>(1);
  const Vec<T> alpha = constant<T>(f.alpha), beta = constant<T>(f.beta);
  switch (f.function) {
    case Function::kSigmoid: return logistic<T>(a);
    case Function::kTanh: return hyperbolic<T>(a);
    case Function::kRelu: return choose<T>(up_to<T>(a, zero), zero, a);
    case Function::kLinear: return a;
    case Function::kAffine: return alpha * a + beta;
    case Function::kLeakyRelu: return choose<T>(below<T>(a, zero), alpha * a, a);
    case Function::kThresholdedRelu: return choose<T>(up_to<T>(a, alpha), zero, a);
    case Function::kScaledTanh: return alpha * hyperbolic<T>(beta * a);
    case Function::kHardSigmoid: {
      const Vec<T> y = alpha * a + beta;
      return choose<T>(up_to<T>(y, zero), zero, choose<T>(up_to<T>(one, y), one, y));
    }
    case Function::kElu: return choose<T>(below<T>(a, zero), alpha * exponential_less_one<T>(a), a);
    case Function::kSoftsign: return a / (one + choose<T>(below<T>(a, zero), -a, a));
    case Function::kSoftplus: {
      const Vec<T> size = choose<T>(below<T>(a, zero), -a, a);
      return choose<T>(below<T>(a, zero), zero, a) + log_of_one_more<T>(exponential<T>(-size));
    }
  }
  return a;
}

// The slope of a function where its value is y: all of them are monotonic.
template <class T>
__attribute__((noinline)) Vec<T> slope(const Activation& f, Vec<T> y) {
  const Vec<T> zero = constant<T>(0), one = constant<T>(1);
  const Vec<T> alpha = constant<T>(f.alpha), beta = constant<T>(f.beta);
  switch (f.function) {
    case Function::kSigmoid: return y * (one - y);
    case Function::kTanh: return one - y * y;
    case Function::kRelu: return choose<T>(below<T>(zero, y), one, y - y);  // NaN stays
    case Function::kLinear: return one;
    case Function::kAffine: return alpha;
    case Function::kLeakyRelu: return choose<T>(below<T>(y, zero), alpha, one);
    case Function::kThresholdedRelu: return choose<T>(equal<T>(y, zero), zero, one);
    case Function::kScaledTanh: {
      const Vec<T> t = y / alpha;
      return alpha * beta * (one - t * t);
    }
    case Function::kHardSigmoid:
      return choose<T>(below<T>(zero, y) & below<T>(y, one), alpha, zero);
    case Function::kElu: return choose<T>(below<T>(y, zero), y + alpha, one);
    case Function::kSoftsign: {
      const Vec<T> left = one - choose<T>(below<T>(y, zero), -y, y);
      return left * left;
    }
    case Function::kSoftplus: return -exponential_less_one<T>(-y);
  }
  return one;
}

// A function with its clipped argument, and the slope of both. A value that one of the bounds has
// is taken for clipped: where arguments within the bounds have it too, the function is flat.
template <class T>
struct Clipped {
  const Activation& f;
  double clip;
  Vec<T> low, high;

  Clipped(const Activation& function, double bound) : f(function), clip(bound) {
    if (clip > 0) {
      low = activated<T>(f, constant<T>(-clip));
      high = activated<T>(f, constant<T>(clip));
    }
  }
  RNNFAST_INLINE Vec<T> operator()(Vec<T> a) const { return activated<T>(f, limited<T>(a, clip)); }
  RNNFAST_INLINE Vec<T> back(Vec<T> dy, Vec<T> y) const {
    const Vec<T> zero = constant<T>(0), s = slope<T>(f, y);
    // Where it is flat nothing goes back, be the gradient infinite.
    const Vec<T> da = has_flat_parts() ? choose<T>(equal<T>(s, zero), zero, dy * s) : dy * s;
    if (clip <= 0) return da;
    return choose<T>(equal<T>(y, low) | equal<T>(y, high), zero, da);
  }

 private:
  bool has_flat_parts() const {
    return f.function == Function::kRelu || f.function == Function::kThresholdedRelu ||
           f.function == Function::kHardSigmoid;
  }
};

template <class T>
struct Functions {
  Clipped<T> gate, candidate, output;

  explicit Functions(const CellOptions& o)
      : gate(o.gate, o.clip), candidate(o.candidate, o.clip), output(o.output, 0) {}
};

// ---------------------------------------------------------------------- normalisation of rows

// hat = a with mean 0 and variance 1, and what it was multiplied with. `a` may be `hat`.
template <class T>
void normalise(const T* a, int64_t count, T* hat, T* scale) {
  constexpr int n = kLanes<T>;
  const Vec<T> share = constant<T>(1.0 / double(count));
  Vec<T> sum = constant<T>(0);
  for (int64_t u = 0; u < count; u += n) sum += load_tail(a + u, int(lesser(n, count - u)));
  const Vec<T> mean = sum_of_lanes<T>(sum) * share;
  Vec<T> squares = constant<T>(0);
  for (int64_t u = 0; u < count; u += n) {
    const int lanes = int(lesser(n, count - u));
    store_tail(hat + u, load_tail(a + u, lanes) - mean, lanes);
    const Vec<T> centred = load_tail(hat + u, lanes);
    squares = fma(centred, centred, squares);
  }
  const Vec<T> variance = sum_of_lanes<T>(squares) * share;
  const Vec<T> factor = constant<T>(1) / root<T>(variance + constant<T>(kNormEpsilon));
  for (int64_t u = 0; u < count; u += n) {
    const int lanes = int(lesser(n, count - u));
    store_tail(hat + u, load_tail(hat + u, lanes) * factor, lanes);
  }
  store_tail(scale, factor, 1);
}

// The gradient of a, given that of hat; `da` may be `dhat`.
template <class T>
void normalise_back(const T* dhat, const T* hat, const T* scale, int64_t count, T* da) {
  constexpr int n = kLanes<T>;
  const Vec<T> share = constant<T>(1.0 / double(count));
  Vec<T> sum = constant<T>(0), along = constant<T>(0);
  for (int64_t u = 0; u < count; u += n) {
    const int lanes = int(lesser(n, count - u));
    const Vec<T> d = load_tail(dhat + u, lanes);
    sum += d;
    along = fma(d, load_tail(hat + u, lanes), along);
  }
  const Vec<T> mean = sum_of_lanes<T>(sum) * share;
  const Vec<T> parallel = sum_of_lanes<T>(along) * share;
  const Vec<T> factor = broadcast(*scale);
  for (int64_t u = 0; u < count; u += n) {
    const int lanes = int(lesser(n, count - u));
    const Vec<T> d = load_tail(dhat + u, lanes), h = load_tail(hat + u, lanes);
    store_tail(da + u, factor * (d - mean - h * parallel), lanes);
  }
}

// a = gain * hat + bias over n numbers; without bias 0 is added.
template <class T>
void scale_and_shift(const T* hat, const T* gain, const T* bias, int64_t count, T* a) {
  constexpr int n = kLanes<T>;
  for (int64_t u = 0; u < count; u += n) {
    const int lanes = int(lesser(n, count - u));
    const Vec<T> shift = bias ? load_tail(bias + u, lanes) : constant<T>(0);
    store_tail(a + u, fma(load_tail(gain + u, lanes), load_tail(hat + u, lanes), shift), lanes);
  }
}

template <class T>
void multiply_rows(const T* a, const T* b, int64_t count, T* product) {
  constexpr int n = kLanes<T>;
  for (int64_t u = 0; u < count; u += n) {
    const int lanes = int(lesser(n, count - u));
    store_tail(product + u, load_tail(a + u, lanes) * load_tail(b + u, lanes), lanes);
  }
}

// ------------------------------------------------------------------------- division of a step

// The rows and units that a member works on.
struct Patch {
  int64_t row_begin, row_end, unit_begin, unit_end;
};

template <class T>
Patch patch_of(const Split& split, const Part& part, int id, int64_t rows, int64_t units,
               bool whole_rows) {
  if (part.rows) return {part.row_begin, lesser(part.row_end, rows), 0, units};
  if (whole_rows || rows >= split.members)
    return {part_begin(rows, split.members, id), part_begin(rows, split.members, id + 1), 0, units};
  const int64_t vectors = parts(units, kLanes<T>);
  return {0, rows, lesser(units, part_begin(vectors, split.members, id) * kLanes<T>),
          lesser(units, part_begin(vectors, split.members, id + 1) * kLanes<T>)};
}

// c[rows] = a[rows] panels + bias, a member's part of it.
template <class T>
void product_of_step(const Split& split, const Part& part, int id, int64_t rows, const T* a,
                     int64_t a_stride, const Panels<T>& panels, const T* bias, T* c,
                     int64_t c_stride) {
  if (part.rows) {
    const int64_t begin = part.row_begin, end = lesser(part.row_end, rows);
    if (begin < end)
      multiply_panels(Rows<const T>{a + begin * a_stride, a_stride}, end - begin, panels, bias,
                      Rows<T>{c + begin * c_stride, c_stride}, Team{0, 1, nullptr});
  } else {
    multiply_panels(Rows<const T>{a, a_stride}, rows, panels, bias, Rows<T>{c, c_stride},
                    Team{id, split.members, split.barrier});
  }
}

RNNFAST_INLINE void meet(const Split& split, const Part& part) {
  if (!part.rows && split.members > 1) split.barrier->wait();
}
RNNFAST_INLINE void meet(Team team) {
  if (team.size > 1) team.barrier->wait();
}

// ------------------------------------------------------------------------------- forward

// One row on its way through a step.
template <class T>
struct ForwardRow {
  const FlexibleForward<T>& p;
  const Functions<T>& f;
  int64_t b, packed;  // its place in the batch, and among all rows
  const T* gx;        // [G, H] x part of the arguments, bias included
  T* raw;             // [G, H] recurrent part, bias included
  T* saved;           // [S, H]
  T* scales;          // [kScales]
  T* h;               // [P] before the step
  T* c;               // [H] in: before the step; out: after it
  T* step_h;          // [P] out
};

// The recurrent part of a row with its normalisation, in groups of gates.
template <class Cell, class T>
void normalise_recurrent(const ForwardRow<T>& x, int first_group, int groups) {
  const int64_t H = x.p.hidden;
  int gate = 0;
  for (int g = 0; g < first_group + groups; g++) {
    const int count = Cell::group_gates(g);
    if (g >= first_group) {
      T* hat = x.saved + (x.p.saved_slots - Cell::kGates + gate) * H;
      T* raw = x.raw + gate * H;
      normalise(raw, count * H, hat, x.scales + 2 + g);
      scale_and_shift(hat, x.p.w.ln_hh + gate * H, x.p.w.b_hh ? x.p.w.b_hh + gate * H : nullptr,
                      count * H, raw);
    }
    gate += count;
  }
}

// The x part of the rows of a chunk with its normalisation.
template <class Cell, class T>
void normalise_inputs(const FlexibleForward<T>& p, int64_t rows, int64_t saved_row, Team team) {
  const int64_t H = p.hidden, S = p.saved_slots;
  for (int64_t r = part_begin(rows, team.size, team.id);
       r < part_begin(rows, team.size, team.id + 1); r++) {
    int gate = 0;
    for (int g = 0; g < Cell::kGroups; g++) {
      T* gx = p.gx + (r * Cell::kGates + gate) * H;
      T* hat = p.saved + ((saved_row + r) * S + S - 2 * Cell::kGates + gate) * H;
      const int64_t count = Cell::group_gates(g) * H;
      normalise(gx, count, hat, p.scales + (saved_row + r) * kScales + g);
      scale_and_shift(hat, p.w.ln_ih + gate * H, p.w.b_ih ? p.w.b_ih + gate * H : nullptr, count,
                      gx);
      gate += Cell::group_gates(g);
    }
  }
}

// From h after the step, `step_h`, to everything that h goes to.
template <class T>
void finish_h(const FlexibleForward<T>& p, int64_t b, int64_t packed, int64_t begin, int64_t end) {
  constexpr int n = kLanes<T>;
  const int64_t P = p.outputs;
  for (int64_t u = begin; u < end; u += n) {
    const int lanes = int(lesser(n, end - u));
    const Vec<T> before = load_tail(p.h_n + b * P + u, lanes);
    Vec<T> h = load_tail(p.step_h + b * P + u, lanes);
    if (p.masks.keep_h)
      h = zoned_out<T>(load_tail(p.masks.keep_h + packed * p.masks.keep_h_stride + u, lanes),
                       before, h);
    if (p.save) store_tail(p.h_before + packed * P + u, before, lanes);
    if (p.masks.recurrent) {
      T* operand = p.operand + b * P + u;
      if (p.save) store_tail(p.operand_before + packed * P + u, load_tail(operand, lanes), lanes);
      store_tail(operand, h * load_tail(p.masks.recurrent + b * P + u, lanes), lanes);
    }
    store_tail(p.h_n + b * P + u, h, lanes);
    store_tail(p.y + packed * p.y_stride + u, h, lanes);
  }
}

template <class Cell, class T>
void flexible_forward_step(const FlexibleForward<T>& p, const Functions<T>& f, const Visits& visits,
                           int64_t i, int64_t chunk_row, const Part& part, int id) {
  const int64_t H = p.hidden, P = p.outputs, G = Cell::kGates, S = p.saved_slots;
  const int64_t row = visits.row(i), rows = visits.rows(i);
  const int64_t saved_row = p.save ? row : row - chunk_row;
  const bool norm = p.w.ln_hh != nullptr;
  const T* const bias = norm ? nullptr : p.w.b_hh;
  const auto each_row = [&](int64_t units, bool whole_rows, auto body) {
    const Patch patch = patch_of<T>(p.split, part, id, rows, units, whole_rows);
    if (patch.unit_begin >= patch.unit_end) return;
    for (int64_t b = patch.row_begin; b < patch.row_end; b++) {
      const ForwardRow<T> x{p,
                            f,
                            b,
                            row + b,
                            p.gx + (row + b - chunk_row) * G * H,
                            p.raw + b * G * H,
                            p.saved + (saved_row + b) * S * H,
                            p.scales + (saved_row + b) * kScales,
                            p.h_n + b * P,
                            p.c_n ? p.c_n + b * H : nullptr,
                            p.step_h + b * P};
      body(x, patch.unit_begin, patch.unit_end);
    }
  };

  product_of_step(p.split, part, id, rows, static_cast<const T*>(p.operand), P, p.h_panels[0], bias,
                  p.raw, G * H);
  meet(p.split, part);
  each_row(H, norm, [&](const ForwardRow<T>& x, int64_t begin, int64_t end) {
    if (norm) normalise_recurrent<Cell>(x, 0, Cell::kSecondProduct ? 1 : Cell::kGroups);
    Cell::template forward<T>(x, begin, end);
    if (!Cell::kSecondProduct && !p.w.w_hr) finish_h(p, x.b, x.packed, begin, end);
  });
  if constexpr (Cell::kSecondProduct) {
    meet(p.split, part);
    product_of_step(p.split, part, id, rows,
                    static_cast<const T*>(p.saved + (saved_row * S + Cell::kOperand) * H), S * H,
                    p.h_panels[1], bias ? bias + Cell::kFirstGates * H : nullptr,
                    p.raw + Cell::kFirstGates * H, G * H);
    meet(p.split, part);
    each_row(H, norm, [&](const ForwardRow<T>& x, int64_t begin, int64_t end) {
      if (norm) normalise_recurrent<Cell>(x, 1, 1);
      Cell::template forward_second<T>(x, begin, end);
      finish_h(p, x.b, x.packed, begin, end);
    });
  } else if (p.w.w_hr) {
    meet(p.split, part);
    product_of_step(p.split, part, id, rows,
                    static_cast<const T*>(p.saved + (saved_row * S + Cell::kOperand) * H), S * H,
                    p.h_panels[1], static_cast<const T*>(nullptr), p.step_h, P);
    meet(p.split, part);
    each_row(P, false, [&](const ForwardRow<T>& x, int64_t begin, int64_t end) {
      finish_h(p, x.b, x.packed, begin, end);
    });
  }
  meet(p.split, part);
}

template <class Cell, class T>
void flexible_forward(const FlexibleForward<T>& p, Team team) {
  const Visits visits{p.steps, p.reverse};
  const int64_t T_ = p.steps.count;
  const Functions<T> f(p.options);
  if (p.masks.recurrent) {
    const int64_t count = p.batch * p.outputs;
    if (team.id == 0)
      multiply_rows(static_cast<const T*>(p.h_n), p.masks.recurrent, count, p.operand);
  }
  for (int64_t i = 0; i < T_;) {
    const int64_t begin = i;
    int64_t rows = 0;
    while (i < T_ && (i == begin || rows < p.chunk)) rows += visits.rows(i++);
    const int64_t chunk_row = p.reverse ? visits.row(i - 1) : visits.row(begin);
    multiply_panels(Rows<const T>{p.x + chunk_row * p.input, p.input}, rows, p.x_panels,
                    p.w.ln_ih ? nullptr : p.w.b_ih, Rows<T>{p.gx, Cell::kGates * p.hidden}, team);
    meet(team);
    if (p.w.ln_ih) {
      normalise_inputs<Cell>(p, rows, p.save ? chunk_row : 0, team);
      meet(team);
    }
    if (team.id < p.split.members) {
      const int64_t first = visits.first_step(begin, i);
      const Part part = divide(p.split, team.id, first, first + i - begin);
      for (int64_t j = begin; j < i; j++)
        flexible_forward_step<Cell>(p, f, visits, j, chunk_row, part, team.id);
    }
    if (i < T_) meet(team);
  }
}

// ------------------------------------------------------------------------------ backward

// One row on its way back through a step.
template <class T>
struct BackwardRow {
  const FlexibleBackward<T>& p;
  const Functions<T>& f;
  int64_t packed;
  const T* saved;     // [S, H]
  const T* scales;    // [kScales]
  const T* h_before;  // [P]
  const T* operand;   // [P] h_before with its mask
  const T* c_before;  // [H] or null
  const T* mask;      // [P] or null
  const T* dh;        // [H] gradient of what the cell makes of it: h, or the operand of w_hr
  T* passed;          // [P] in: what reaches h before without the cell; the cell adds its part
  T* dc;              // [H] in: gradient of c after the step; out: of c before
  T* rows;            // [W, H] written
  T* product;         // [H] what a second product gave
};

// Of the arguments of groups of gates: the gradients of the products, and of the gains.
template <class Cell, class T>
void normalise_arguments_back(const BackwardRow<T>& x, int first_group, int groups, bool of_h) {
  const int64_t H = x.p.hidden, S = x.p.saved_slots;
  const Written& w = x.p.written;
  int gate = 0;
  for (int g = 0; g < first_group + groups; g++) {
    const int64_t count = Cell::group_gates(g) * H;
    if (g >= first_group) {
      const int slot = (of_h ? w.of_h : w.arguments) + gate;
      const T* hat = x.saved + (S - (of_h ? 1 : 2) * Cell::kGates + gate) * H;
      const T* gain = (of_h ? x.p.w.ln_hh : x.p.w.ln_ih) + gate * H;
      T* product = x.rows + ((of_h ? w.product_h : w.product_x) + gate) * H;
      multiply_rows(static_cast<const T*>(x.rows + slot * H), hat, count,
                    x.rows + ((of_h ? w.gain_h : w.gain_x) + gate) * H);
      multiply_rows(static_cast<const T*>(x.rows + slot * H), gain, count, product);
      normalise_back(static_cast<const T*>(product), hat, x.scales + (of_h ? 2 : 0) + g, count,
                     product);
    }
    gate += Cell::group_gates(g);
  }
}

template <class Cell, class T>
void flexible_backward_step(const FlexibleBackward<T>& p, const Functions<T>& f,
                            const Visits& visits, int64_t i, int64_t chunk_row, const Part& part,
                            int id) {
  constexpr int n = kLanes<T>;
  const int64_t H = p.hidden, P = p.outputs, S = p.saved_slots, W = p.written.count;
  const int64_t sums = H > P ? H : P;  // one stride, as members do not wait for one another's rows
  const int64_t row = visits.row(i), rows = visits.rows(i);
  const bool norm = p.w.ln_hh != nullptr;
  T* const dh_rows = p.dh + (row - chunk_row) * P;
  const auto over_patch = [&](int64_t units, bool whole_rows, auto body) {
    const Patch patch = patch_of<T>(p.split, part, id, rows, units, whole_rows);
    if (patch.unit_begin >= patch.unit_end) return;
    for (int64_t b = patch.row_begin; b < patch.row_end; b++)
      body(b, patch.unit_begin, patch.unit_end);
  };
  const auto row_of = [&](int64_t b) {
    return BackwardRow<T>{p,
                          f,
                          row + b,
                          p.saved + (row + b) * S * H,
                          p.scales + (row + b) * kScales,
                          p.h_before + (row + b) * P,
                          p.operand_before + (row + b) * P,
                          p.c_before ? p.c_before + (row + b) * H : nullptr,
                          p.masks.recurrent ? p.masks.recurrent + b * P : nullptr,
                          p.w.w_hr ? p.sum + b * sums : dh_rows + b * P,
                          p.dh_0 + b * P,
                          p.dc_0 ? p.dc_0 + b * H : nullptr,
                          p.rows + (row + b - chunk_row) * W * H,
                          p.sum + b * sums};
  };
  // The gradient of h as the cell made it, and what zoneout passes on.
  const auto gather = [&](int64_t b, int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u += n) {
      const int lanes = int(lesser(n, end - u));
      Vec<T> d = load_tail(p.dh_0 + b * P + u, lanes), kept = constant<T>(0);
      if (p.dy) d += load_tail(p.dy + (row + b) * p.y_stride + u, lanes);
      if (p.masks.keep_h) {
        kept = d * load_tail(p.masks.keep_h + (row + b) * p.masks.keep_h_stride + u, lanes);
        d = d - kept;
      }
      store_tail(dh_rows + b * P + u, d, lanes);
      store_tail(p.dh_0 + b * P + u, kept, lanes);
    }
  };

  if (p.w.w_hr) {
    over_patch(P, false, gather);
    meet(p.split, part);
    product_of_step(p.split, part, id, rows, static_cast<const T*>(dh_rows), P, p.h_panels[1],
                    static_cast<const T*>(nullptr), p.sum, sums);
    meet(p.split, part);
  }
  over_patch(H, norm, [&](int64_t b, int64_t begin, int64_t end) {
    if (!p.w.w_hr) gather(b, begin, end);
    const BackwardRow<T> x = row_of(b);
    Cell::template backward<T>(x, begin, end);
    if (norm && !Cell::kSecondProduct) {
      normalise_arguments_back<Cell>(x, 0, Cell::kGroups, false);
      normalise_arguments_back<Cell>(x, 0, Cell::kGroups, true);
    } else if (norm) {
      normalise_arguments_back<Cell>(x, 1, 1, true);
    }
  });
  meet(p.split, part);
  if constexpr (Cell::kSecondProduct) {
    product_of_step(
        p.split, part, id, rows,
        static_cast<const T*>(
            p.rows + ((row - chunk_row) * W + p.written.product_h + Cell::kFirstGates) * H),
        W * H, p.h_panels[1], static_cast<const T*>(nullptr), p.sum, sums);
    meet(p.split, part);
    over_patch(H, norm, [&](int64_t b, int64_t begin, int64_t end) {
      const BackwardRow<T> x = row_of(b);
      Cell::template backward_second<T>(x, begin, end);
      if (norm) {
        normalise_arguments_back<Cell>(x, 0, Cell::kGroups, false);
        normalise_arguments_back<Cell>(x, 0, 1, true);
      }
    });
    meet(p.split, part);
  }
  product_of_step(p.split, part, id, rows,
                  static_cast<const T*>(p.rows + ((row - chunk_row) * W + p.written.product_h) * H),
                  W * H, p.h_panels[0], static_cast<const T*>(nullptr), p.sum, sums);
  meet(p.split, part);
  // Rows that were there in the visit before are cut off from it where the gradient stops.
  const int64_t continuing = i > 0 ? lesser(rows, visits.rows(i - 1)) : 0;
  const int64_t boundary = i > 0 ? (p.reverse ? visits.step(i - 1) : visits.step(i)) : 0;
  const bool cut = p.options.truncate > 0 && i > 0 && boundary % p.options.truncate == 0;
  over_patch(P, false, [&](int64_t b, int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u += n) {
      const int lanes = int(lesser(n, end - u));
      Vec<T> d = load_tail(p.sum + b * sums + u, lanes);
      if (p.masks.recurrent) d = d * load_tail(p.masks.recurrent + b * P + u, lanes);
      d += load_tail(p.dh_0 + b * P + u, lanes);
      if (cut && b < continuing) d = constant<T>(0);
      store_tail(p.dh_0 + b * P + u, d, lanes);
    }
  });
  if (cut && p.dc_0)
    over_patch(H, false, [&](int64_t b, int64_t begin, int64_t end) {
      if (b < continuing)
        __builtin_memset(static_cast<void*>(p.dc_0 + b * H + begin), 0,
                         size_t(end - begin) * sizeof(T));
    });
  meet(p.split, part);
}

template <class Cell, class T>
void flexible_backward(const FlexibleBackward<T>& p, Team team) {
  const Visits visits{p.steps, p.reverse};
  const int64_t T_ = p.steps.count, H = p.hidden, P = p.outputs, G = Cell::kGates;
  const int64_t W = p.written.count, S = p.saved_slots;
  const Functions<T> f(p.options);
  bool accumulate = false;
  for (int64_t i = T_ - 1; i >= 0;) {
    const int64_t last = i;
    int64_t rows = 0;
    while (i >= 0 && (i == last || rows < p.chunk)) rows += visits.rows(i--);
    const int64_t chunk_row = p.reverse ? visits.row(last) : visits.row(i + 1);
    if (team.id < p.split.members) {
      const int64_t first = visits.first_step(i + 1, last + 1);
      const Part part = divide(p.split, team.id, first, first + last - i);
      for (int64_t j = last; j > i; j--)
        flexible_backward_step<Cell>(p, f, visits, j, chunk_row, part, team.id);
    }
    meet(team);

    const auto slot = [&](int s) { return static_cast<const T*>(p.rows + s * H); };
    const auto weights = [&](const T* a, int64_t a_stride, int64_t m, const T* b, int64_t b_stride,
                             int64_t columns, T* dw) {
      if (dw)
        multiply_tn(Rows<const T>{a, a_stride}, m, Rows<const T>{b, b_stride}, columns, rows, dw,
                    columns, accumulate, p.pack, team);
    };
    const auto sums = [&](int s, int64_t count, T* total) {
      if (total) sum_rows(slot(s), W * H, count, rows, total, accumulate, team);
    };
    multiply_panels(Rows<const T>{slot(p.written.product_x), W * H}, rows, p.x_panels,
                    static_cast<const T*>(nullptr), Rows<T>{p.dx + chunk_row * p.input, p.input},
                    team);
    weights(slot(p.written.product_x), W * H, G * H, p.x + chunk_row * p.input, p.input, p.input,
            p.dw.w_ih);
    const int64_t first = (Cell::kSecondProduct ? Cell::kFirstGates : Cell::kGates) * H;
    weights(slot(p.written.product_h), W * H, first, p.operand_before + chunk_row * P, P, P,
            p.dw.w_hh);
    const T* operand = p.saved + (chunk_row * S + Cell::kOperand) * H;
    if constexpr (Cell::kSecondProduct)
      weights(slot(p.written.product_h + Cell::kFirstGates), W * H, G * H - first, operand, S * H,
              H, p.dw.w_hh + first * H);
    weights(static_cast<const T*>(p.dh), P, P, operand, S * H, H, p.dw.w_hr);
    sums(p.written.arguments, G * H, p.dw.b_ih);
    sums(p.written.of_h, G * H, p.dw.b_hh);
    sums(p.written.gain_x, G * H, p.dw.ln_ih);
    sums(p.written.gain_h, G * H, p.dw.ln_hh);
    sums(p.written.peep, 3 * H, p.dw.w_peep);
    sums(p.written.c_gain, H, p.dw.ln_c);
    sums(p.written.c_gain + 1, H, p.dw.ln_c_shift);
    accumulate = true;
    meet(team);
  }
}

// Of every cell with options.
template <int kGateCount, int kSavedCount>
struct Flexible {
  static constexpr int kGates = kGateCount;
  static constexpr int kSaved = kSavedCount;  // S without normalisation
  static constexpr bool kHasC = false;
  static constexpr bool kApart = false;          // W_hh h has gradients other than W_ih x
  static constexpr bool kSecondProduct = false;  // with a part of w_hh, in every step
  static constexpr int kFirstGates = kGateCount;
  static constexpr int kOperand = 0;  // what a second product multiplies, among the saved
  static constexpr int kGroups = 1;   // of gates that are normalised together
  static constexpr int group_gates(int) { return kGateCount; }
};

template <class Cell, class T>
constexpr FlexibleKernels<T> flexible_of() {
  FlexibleKernels<T> k{};
  k.gates = Cell::kGates;
  k.saved = Cell::kSaved;
  k.has_c = Cell::kHasC;
  k.apart = Cell::kApart;
  k.first_gates = Cell::kFirstGates;
  k.forward = flexible_forward<Cell, T>;
  k.backward = flexible_backward<Cell, T>;
  return k;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
