// The mathematics of the cells, one unit of one row at a time: plain functions of numbers, which
// the kernels of steps.cu call and any C++ compiler takes. Equations: rnnfast/reference/<cell>.py.
#pragma once
#include "numbers.cuh"

namespace rnnfast {

// What selects the mathematics at run time. Every field has 8 bytes, so that NumPy and any compiler
// lay it out alike: see rnnfast/backends/cuda/parameters.py.
struct Activation {
  long long function;  // its place in rnnfast.spec.ACTIVATIONS
  double alpha, beta;
};

struct Options {
  Activation gate, candidate, output;
  double clip, grad_clip;  // 0 for none
  long long input_forget;
};

enum Function {
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

RNNFAST_DEVICE float exponential(float x) { return expf(x); }
RNNFAST_DEVICE double exponential(double x) { return exp(x); }
RNNFAST_DEVICE float exponential_less_one(float x) { return expm1f(x); }
RNNFAST_DEVICE double exponential_less_one(double x) { return expm1(x); }
RNNFAST_DEVICE float log_of_one_more(float x) { return log1pf(x); }
RNNFAST_DEVICE double log_of_one_more(double x) { return log1p(x); }
RNNFAST_DEVICE float hyperbolic(float x) { return tanhf(x); }
RNNFAST_DEVICE double hyperbolic(double x) { return tanh(x); }
RNNFAST_DEVICE float root(float x) { return sqrtf(x); }
RNNFAST_DEVICE double root(double x) { return sqrt(x); }

// Of b from 1 to 2.
RNNFAST_DEVICE double quotient(double a, double b) { return a / b; }
#ifdef __CUDACC__
RNNFAST_DEVICE float quotient(float a, float b) { return __fdividef(a, b); }  // 2 ulp at most
#else
RNNFAST_DEVICE float quotient(float a, float b) { return a / b; }
#endif

template <class T>
RNNFAST_DEVICE T magnitude(T x) {
  return x < 0 ? -x : x;
}

// NaN stays.
template <class T>
RNNFAST_DEVICE T limited(T x, double bound) {
  if (bound <= 0) return x;
  const T most = T(bound);
  return x > most ? most : x < -most ? -most : x;
}

// Without overflow, and accurate in both tails.
template <class T>
RNNFAST_DEVICE T logistic(T x) {
  const T e = exponential(-magnitude(x));
  return quotient(x >= 0 ? T(1) : e, 1 + e);
}

template <class T>
RNNFAST_DEVICE T activated(const Activation& f, T a) {
  const T alpha = T(f.alpha), beta = T(f.beta);
  switch (f.function) {
    case kSigmoid: return logistic(a);
    case kTanh: return hyperbolic(a);
    case kRelu: return a <= 0 ? T(0) : a;
    case kLinear: return a;
    case kAffine: return alpha * a + beta;
    case kLeakyRelu: return a < 0 ? alpha * a : a;
    case kThresholdedRelu: return a <= alpha ? T(0) : a;
    case kScaledTanh: return alpha * hyperbolic(beta * a);
    case kHardSigmoid: {
      const T y = alpha * a + beta;
      return y <= 0 ? T(0) : y >= 1 ? T(1) : y;
    }
    case kElu: return a < 0 ? alpha * exponential_less_one(a) : a;
    case kSoftsign: return a / (1 + magnitude(a));
    default: return (a > 0 ? a : T(0)) + log_of_one_more(exponential(-magnitude(a)));  // kSoftplus
  }
}

// The gradient of a, given that of y = activated(f, a): all functions are monotonic, so that y
// tells.
template <class T>
RNNFAST_DEVICE T activated_back(const Activation& f, T dy, T y) {
  const T alpha = T(f.alpha), beta = T(f.beta);
  switch (f.function) {
    case kSigmoid: return dy * y * (1 - y);
    case kTanh: return dy * (1 - y * y);
    case kRelu: return y <= 0 ? T(0) : dy;
    case kLinear: return dy;
    case kAffine: return dy * alpha;
    case kLeakyRelu: return y < 0 ? alpha * dy : dy;
    case kThresholdedRelu: return y == 0 ? T(0) : dy;
    case kScaledTanh: {
      const T t = y / alpha;
      return dy * (alpha * beta) * (1 - t * t);
    }
    case kHardSigmoid: return y > 0 && y < 1 ? alpha * dy : T(0);
    case kElu: return y < 0 ? dy * (y + alpha) : dy;
    case kSoftsign: {
      const T left = 1 - magnitude(y);
      return dy * left * left;
    }
    default: return -dy * exponential_less_one(-y);  // kSoftplus
  }
}

template <class T>
RNNFAST_DEVICE T clipped(const Activation& f, double clip, T a) {
  return activated(f, limited(a, clip));
}

// A value that one of the bounds has is taken for clipped: where arguments within the bounds have
// it too, the function is flat.
template <class T>
RNNFAST_DEVICE T clipped_back(const Activation& f, double clip, T dy, T y) {
  const T da = activated_back(f, dy, y);
  if (clip <= 0) return da;
  return y == activated(f, T(-clip)) || y == activated(f, T(clip)) ? T(0) : da;
}

// The gradient of a gate's argument.
template <class T>
RNNFAST_DEVICE T argument_back(const Options& o, const Activation& f, T dy, T y) {
  return limited(clipped_back(f, o.clip, dy, y), o.grad_clip);
}

// h or c after zoneout: keep 1 leaves exactly what was before, 0 takes what the step made.
template <class T>
RNNFAST_DEVICE T zoned_out(T keep, T before, T after) {
  return keep * before + (1 - keep) * after;
}

// ------------------------------------------------------------------------------------- LSTM

template <class T>
struct LstmUnit {
  T i, f, g, o, c;
};

// From the sums of both products; peep holds p_i, p_f, p_o, or is null.
template <class T>
RNNFAST_DEVICE LstmUnit<T> lstm(const Options& o, const T* a, const T* peep, T c) {
  LstmUnit<T> u;
  u.i = clipped(o.gate, o.clip, peep ? a[0] + peep[0] * c : a[0]);
  u.f = o.input_forget ? 1 - u.i : clipped(o.gate, o.clip, peep ? a[1] + peep[1] * c : a[1]);
  u.g = clipped(o.candidate, o.clip, a[2]);
  u.c = u.f * c + u.i * u.g;
  u.o = clipped(o.gate, o.clip, peep ? a[3] + peep[2] * u.c : a[3]);
  return u;
}

// Gradients of the arguments of i, f and g, given that of c after the step; returns that of c
// before it. d_o is the gradient of o's argument.
template <class T>
RNNFAST_DEVICE T lstm_back(const Options& o, const LstmUnit<T>& u, const T* peep, T c, T d_o, T dc,
                           T* d) {
  if (peep) dc += d_o * peep[2];
  T di = dc * u.g, df = dc * c;
  if (o.input_forget) {
    di -= df;
    df = 0;
  } else {
    df = argument_back(o, o.gate, df, u.f);
  }
  d[0] = argument_back(o, o.gate, di, u.i);
  d[1] = df;
  d[2] = argument_back(o, o.candidate, dc * u.i, u.g);
  T before = dc * u.f;
  if (peep) before += d[0] * peep[0] + d[1] * peep[1];
  return before;
}

// -------------------------------------------------------------------------------------- GRU

template <class T>
RNNFAST_DEVICE T gru(T z, T n, T h) {
  return (1 - z) * n + z * h;
}

// Gradients of the arguments of z and n, given that of h after the step.
template <class T>
RNNFAST_DEVICE void gru_back(const Options& o, T z, T n, T h, T dh, T* dz, T* dn) {
  *dz = argument_back(o, o.gate, dh * (h - n), z);
  *dn = argument_back(o, o.candidate, dh * (1 - z), n);
}

// ------------------------------------------------------------------------------------ gated

template <class T>
RNNFAST_DEVICE void gated_back(const Options& o, T i, T f, T u, T h, T dh, T* d) {
  d[0] = argument_back(o, o.gate, dh * u, i);
  d[1] = argument_back(o, o.gate, dh * h, f);
  d[2] = argument_back(o, o.candidate, dh * i, u);
}

}  // namespace rnnfast
