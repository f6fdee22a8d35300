// The vanilla RNN with tanh, relu or sigmoid. Nothing is saved but h. Equations:
// rnnfast/reference/rnn.py.
#include "../kernels/layer.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

enum Nonlinearity { kTanh, kRelu, kSigmoid };

template <Nonlinearity kPhi>
struct Rnn : OneStage<1, 0> {
  static constexpr bool kReadsHAfter = true;

  template <class T, int>
  static RNNFAST_INLINE void forward(Unit<T>& x) {
    const Vec<T> a = x.a[0];
    if constexpr (kPhi == kTanh)
      x.h_next = tanh<T>(a);
    else if constexpr (kPhi == kRelu)
      x.h_next = a < 0 ? Vec<T>{} : a;  // NaN stays
    else
      x.h_next = sigmoid<T>(a);
  }

  template <class T, int>
  static RNNFAST_INLINE void backward(UnitGradient<T>& x) {
    if constexpr (kPhi == kTanh)
      x.d[0] = x.dh * (1 - x.h * x.h);
    else if constexpr (kPhi == kRelu)
      x.d[0] = x.h <= 0 ? Vec<T>{} : x.dh;  // NaN stays
    else
      x.d[0] = x.dh * x.h * (1 - x.h);
  }
};

}  // namespace

#define RNNFAST_DEFINE_RNN(name, phi)                                \
  extern const CellKernels<float> name##32;                          \
  extern const CellKernels<double> name##64;                         \
  const CellKernels<float> name##32 = kernels_of<Rnn<phi>, float>(); \
  const CellKernels<double> name##64 = kernels_of<Rnn<phi>, double>();

RNNFAST_DEFINE_RNN(rnn_tanh, kTanh)
RNNFAST_DEFINE_RNN(rnn_relu, kRelu)
RNNFAST_DEFINE_RNN(rnn_sigmoid, kSigmoid)

}  // namespace rnnfast::RNNFAST_ISA
