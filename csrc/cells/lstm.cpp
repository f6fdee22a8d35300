// LSTM. Gates, saved and written: i f g o. Equations: rnnfast/reference/lstm.py.
#include "../kernels/layer.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

struct Lstm : OneStage<4, 4> {
  static constexpr bool kHasC = true;

  template <class T, int>
  static RNNFAST_INLINE void forward(Unit<T>& x) {
    const Vec<T> i = sigmoid<T>(x.a[0]), f = sigmoid<T>(x.a[1]);
    const Vec<T> g = tanh<T>(x.a[2]), o = sigmoid<T>(x.a[3]);
    x.c_next = fma(f, x.c, i * g);
    x.h_next = o * tanh<T>(x.c_next);
    x.s[0] = i;
    x.s[1] = f;
    x.s[2] = g;
    x.s[3] = o;
  }

  template <class T, int>
  static RNNFAST_INLINE void backward(UnitGradient<T>& x) {
    const Vec<T> i = x.s[0], f = x.s[1], g = x.s[2], o = x.s[3];
    const Vec<T> tanh_c = tanh<T>(x.c);
    const Vec<T> dc = fma(x.dh * o, 1 - tanh_c * tanh_c, x.dc);
    x.d[0] = dc * g * i * (1 - i);
    x.d[1] = dc * x.c_before * f * (1 - f);
    x.d[2] = dc * i * (1 - g * g);
    x.d[3] = x.dh * tanh_c * o * (1 - o);
    x.dc = dc * f;
  }
};

}  // namespace

extern const CellKernels<float> lstm32;
extern const CellKernels<double> lstm64;
const CellKernels<float> lstm32 = kernels_of<Lstm, float>();
const CellKernels<double> lstm64 = kernels_of<Lstm, double>();

}  // namespace rnnfast::RNNFAST_ISA
