// The article's gated recurrence. Gates, saved and written: i f c. Equations:
// rnnfast/reference/gated.py.
#include "../kernels/layer.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

struct Gated : OneStage<3, 3> {
  static constexpr bool kReadsH = true;
  static constexpr bool kDirect = true;

  template <class T, int>
  static RNNFAST_INLINE void forward(Unit<T>& x) {
    for (int g = 0; g < 3; g++) x.s[g] = sigmoid<T>(x.a[g]);
    x.h_next = fma(x.s[1], x.h, x.s[0] * x.s[2]);
  }

  template <class T, int>
  static RNNFAST_INLINE void backward(UnitGradient<T>& x) {
    const Vec<T> i = x.s[0], f = x.s[1], u = x.s[2];
    x.d[0] = x.dh * u * i * (1 - i);
    x.d[1] = x.dh * x.h_before * f * (1 - f);
    x.d[2] = x.dh * i * u * (1 - u);
    x.direct = x.dh * f;
  }
};

}  // namespace

extern const CellKernels<float> gated32;
extern const CellKernels<double> gated64;
const CellKernels<float> gated32 = kernels_of<Gated, float>();
const CellKernels<double> gated64 = kernels_of<Gated, double>();

}  // namespace rnnfast::RNNFAST_ISA
