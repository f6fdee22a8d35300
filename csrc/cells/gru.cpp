// GRU in both forms. Gates: r z n. Equations: rnnfast/reference/gru.py.
#include "../kernels/layer.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

// n = tanh(x part + r * (h part)): one product, whose candidate part stays apart.
// Saved: r z n q, q the h part of n. Written: the gradients of r z n and of q.
struct GruAfter : OneStage<3, 4> {
  static constexpr int kWritten = 4;
  static constexpr bool kReadsH = true;
  static constexpr bool kDirect = true;
  static constexpr int kApart = 2;

  static constexpr int back_parts(int) { return 2; }  // dr dz, then dq: dn belongs to w_ih alone
  static constexpr int back_first(int, int part) { return part == 0 ? 0 : 3; }
  static constexpr int back_gates(int, int part) { return part == 0 ? 2 : 1; }
  static constexpr int back_writes(int) { return 0b1111; }
  static constexpr int kWeightParts = 2;
  static constexpr int weight_row(int part) { return part == 0 ? 0 : 2; }
  static constexpr int weight_gates(int part) { return part == 0 ? 2 : 1; }
  static constexpr int weight_column(int part) { return part == 0 ? 0 : 3; }

  template <class T, int>
  static RNNFAST_INLINE void forward(Unit<T>& x) {
    const Vec<T> r = sigmoid<T>(x.a[0]), z = sigmoid<T>(x.a[1]), q = x.a[2];
    const Vec<T> n = tanh<T>(fma(r, q, x.x_apart));
    x.h_next = fma(z, x.h, (1 - z) * n);
    x.s[0] = r;
    x.s[1] = z;
    x.s[2] = n;
    x.s[3] = q;
  }

  template <class T, int>
  static RNNFAST_INLINE void backward(UnitGradient<T>& x) {
    const Vec<T> r = x.s[0], z = x.s[1], n = x.s[2], q = x.s[3];
    const Vec<T> dn = x.dh * (1 - z) * (1 - n * n);
    x.d[0] = dn * q * r * (1 - r);
    x.d[1] = x.dh * (x.h_before - n) * z * (1 - z);
    x.d[2] = dn;
    x.d[3] = dn * r;
    x.direct = x.dh * z;
  }
};

// n = tanh(x part + W (r * h)): a second product waits for r of every unit.
// Saved: r z n p, p = r * h. Written: the gradients of r z n.
struct GruBefore : OneStage<3, 4> {
  static constexpr int kStages = 2;
  static constexpr bool kReadsH = true;
  static constexpr bool kDirect = true;
  static constexpr int kStageOperand = 3;

  static constexpr int stage_first(int stage) { return stage == 0 ? 0 : 2; }
  static constexpr int stage_gates(int stage) { return stage == 0 ? 2 : 1; }
  static constexpr int stage_saves(int stage) { return stage == 0 ? 0b1011 : 0b0100; }
  // Backwards, first r and z of the later step, then n of this one.
  static constexpr int back_first(int stage, int) { return stage == 0 ? 0 : 2; }
  static constexpr int back_gates(int stage, int) { return stage == 0 ? 2 : 1; }
  static constexpr int back_writes(int stage) { return stage == 0 ? 0b110 : 0b001; }
  static constexpr int kWeightParts = 2;
  static constexpr int weight_row(int part) { return part == 0 ? 0 : 2; }
  static constexpr int weight_gates(int part) { return part == 0 ? 2 : 1; }
  static constexpr int weight_column(int part) { return part == 0 ? 0 : 2; }
  static constexpr bool weight_from_saved(int part) { return part == 1; }

  template <class T, int kStage>
  static RNNFAST_INLINE void forward(Unit<T>& x) {
    if constexpr (kStage == 0) {
      x.s[0] = sigmoid<T>(x.a[0]);
      x.s[1] = sigmoid<T>(x.a[1]);
      x.s[3] = x.s[0] * x.h;
    } else {
      const Vec<T> z = x.s[1], n = tanh<T>(x.a[0]);
      x.h_next = fma(z, x.h, (1 - z) * n);
      x.s[2] = n;
    }
  }

  template <class T, int kStage>
  static RNNFAST_INLINE void backward(UnitGradient<T>& x) {
    const Vec<T> r = x.s[0], z = x.s[1], n = x.s[2];
    if constexpr (kStage == 0) {
      x.d[1] = x.dh * (x.h_before - n) * z * (1 - z);
      x.d[2] = x.dh * (1 - z) * (1 - n * n);
      x.direct = x.dh * z;
    } else {
      x.d[0] = x.dh * x.h_before * r * (1 - r);
      x.direct = fma(x.dh, r, x.direct);
    }
  }
};

}  // namespace

extern const CellKernels<float> gru_after32, gru_before32;
extern const CellKernels<double> gru_after64, gru_before64;
const CellKernels<float> gru_after32 = kernels_of<GruAfter, float>();
const CellKernels<double> gru_after64 = kernels_of<GruAfter, double>();
const CellKernels<float> gru_before32 = kernels_of<GruBefore, float>();
const CellKernels<double> gru_before64 = kernels_of<GruBefore, double>();

}  // namespace rnnfast::RNNFAST_ISA
