// Every cell with options. Equations: rnnfast/reference/<cell>.py.
#include "../kernels/flexible.hpp"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Calls body(unit, lanes) for the vectors of units [begin, end).
template <class T, class Body>
RNNFAST_INLINE void over_units(int64_t begin, int64_t end, Body body) {
  for (int64_t u = begin; u < end; u += kLanes<T>) body(u, int(lesser(kLanes<T>, end - u)));
}

// Gates i f g o. Saved: those, the value v of the last activation, c of the step before zoneout,
// m = o * v, and c normalised.
struct FlexLstm : Flexible<4, 8> {
  static constexpr bool kHasC = true;
  static constexpr int kOperand = 6;

  template <class T>
  static void forward(const ForwardRow<T>& x, int64_t begin, int64_t end) {
    const int64_t H = x.p.hidden;
    const FlexibleWeights<T>& w = x.p.w;
    const StateMasks<T>& masks = x.p.masks;
    T *v = x.saved + 4 * H, *c_step = x.saved + 5 * H, *m = x.saved + 6 * H, *hat = x.saved + 7 * H;
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const auto argument = [&](int g) {
        return load_tail(x.gx + g * H + u, lanes) + load_tail(x.raw + g * H + u, lanes);
      };
      const auto peep = [&](int k, Vec<T> c, Vec<T> a) {
        return w.w_peep ? fma(load_tail(w.w_peep + k * H + u, lanes), c, a) : a;
      };
      const Vec<T> c = load_tail(x.c + u, lanes);
      const Vec<T> i = x.f.gate(peep(0, c, argument(0)));
      const Vec<T> f =
          x.p.options.input_forget ? constant<T>(1) - i : x.f.gate(peep(1, c, argument(1)));
      const Vec<T> g = x.f.candidate(argument(2));
      const Vec<T> c_next = fma(f, c, i * g);
      const Vec<T> o = x.f.gate(peep(2, c_next, argument(3)));
      const Vec<T> gates[] = {i, f, g, o};
      for (int q = 0; q < 4; q++) store_tail(x.saved + q * H + u, gates[q], lanes);
      store_tail(c_step + u, c_next, lanes);
      if (x.p.save) store_tail(x.p.c_before + x.packed * H + u, c, lanes);
      Vec<T> after = c_next;
      if (masks.keep_c)
        after = zoned_out<T>(load_tail(masks.keep_c + x.packed * masks.keep_c_stride + u, lanes), c,
                             c_next);
      store_tail(x.c + u, after, lanes);
    });
    const T* to_output = c_step;
    if (w.ln_c) {
      normalise(static_cast<const T*>(c_step), H, hat, x.scales + 4);
      scale_and_shift(static_cast<const T*>(hat), w.ln_c, w.ln_c_shift, H, v);
      to_output = v;
    }
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const Vec<T> value = x.f.output(load_tail(to_output + u, lanes));
      const Vec<T> h = load_tail(x.saved + 3 * H + u, lanes) * value;
      store_tail(v + u, value, lanes);
      store_tail(m + u, h, lanes);
      if (!w.w_hr) store_tail(x.step_h + u, h, lanes);
    });
  }

  template <class T>
  static void backward(const BackwardRow<T>& x, int64_t begin, int64_t end) {
    const int64_t H = x.p.hidden;
    const FlexibleWeights<T>& w = x.p.w;
    const StateMasks<T>& masks = x.p.masks;
    const Written& to = x.p.written;
    const double most = x.p.options.grad_clip;
    T *d = x.rows + to.arguments * H, *du = x.rows + to.work * H;
    const auto saved = [&](int q, int64_t u, int lanes) {
      return load_tail(x.saved + q * H + u, lanes);
    };
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const Vec<T> dh = load_tail(x.dh + u, lanes), o = saved(3, u, lanes), v = saved(4, u, lanes);
      store_tail(d + 3 * H + u, limited<T>(x.f.gate.back(dh * v, o), most), lanes);
      store_tail(du + u, x.f.output.back(dh * o, v), lanes);
    });
    if (w.ln_c) {
      T* gain = x.rows + to.c_gain * H;
      multiply_rows(static_cast<const T*>(du), x.saved + 7 * H, H, gain);
      over_units<T>(0, H, [&](int64_t u, int lanes) {
        store_tail(gain + H + u, load_tail(du + u, lanes), lanes);
      });
      multiply_rows(static_cast<const T*>(du), w.ln_c, H, du);
      normalise_back(static_cast<const T*>(du), x.saved + 7 * H, x.scales + 4, H, du);
    }
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const Vec<T> i = saved(0, u, lanes), f = saved(1, u, lanes), g = saved(2, u, lanes);
      const Vec<T> c = load_tail(x.c_before + u, lanes), d_o = load_tail(d + 3 * H + u, lanes);
      Vec<T> dc = load_tail(x.dc + u, lanes), kept = constant<T>(0);
      if (masks.keep_c) {
        kept = dc * load_tail(masks.keep_c + x.packed * masks.keep_c_stride + u, lanes);
        dc = dc - kept;
      }
      dc += load_tail(du + u, lanes);
      if (w.w_peep) dc = fma(d_o, load_tail(w.w_peep + 2 * H + u, lanes), dc);
      Vec<T> di = dc * g, df = dc * c;
      if (x.p.options.input_forget) {
        di = di - df;
        df = constant<T>(0);
      } else {
        df = limited<T>(x.f.gate.back(df, f), most);
      }
      di = limited<T>(x.f.gate.back(di, i), most);
      const Vec<T> dg = limited<T>(x.f.candidate.back(dc * i, g), most);
      Vec<T> before = fma(dc, f, kept);
      store_tail(d + u, di, lanes);
      store_tail(d + H + u, df, lanes);
      store_tail(d + 2 * H + u, dg, lanes);
      if (w.w_peep) {
        before = fma(di, load_tail(w.w_peep + u, lanes), before);
        before = fma(df, load_tail(w.w_peep + H + u, lanes), before);
        T* peep = x.rows + to.peep * H + u;
        store_tail(peep, di * c, lanes);
        store_tail(peep + H, df * c, lanes);
        store_tail(peep + 2 * H, d_o * saved(5, u, lanes), lanes);
      }
      store_tail(x.dc + u, before, lanes);
    });
  }
};

// Gates r z n, q the recurrent part of n. Saved: r z n q.
struct FlexGruAfter : Flexible<3, 4> {
  static constexpr bool kApart = true;
  static constexpr int kGroups = 2;
  static constexpr int group_gates(int group) { return group == 0 ? 2 : 1; }

  template <class T>
  static void forward(const ForwardRow<T>& x, int64_t begin, int64_t end) {
    const int64_t H = x.p.hidden;
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const auto gx = [&](int g) { return load_tail(x.gx + g * H + u, lanes); };
      const auto gh = [&](int g) { return load_tail(x.raw + g * H + u, lanes); };
      const Vec<T> r = x.f.gate(gx(0) + gh(0)), z = x.f.gate(gx(1) + gh(1)), q = gh(2);
      const Vec<T> n = x.f.candidate(fma(r, q, gx(2)));
      const Vec<T> saved[] = {r, z, n, q};
      for (int k = 0; k < 4; k++) store_tail(x.saved + k * H + u, saved[k], lanes);
      const Vec<T> h = load_tail(x.h + u, lanes);
      store_tail(x.step_h + u, fma(z, h, (constant<T>(1) - z) * n), lanes);
    });
  }

  template <class T>
  static void backward(const BackwardRow<T>& x, int64_t begin, int64_t end) {
    const int64_t H = x.p.hidden;
    const double most = x.p.options.grad_clip;
    T *by_x = x.rows + x.p.written.arguments * H, *by_h = x.rows + x.p.written.of_h * H;
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const auto saved = [&](int q) { return load_tail(x.saved + q * H + u, lanes); };
      const Vec<T> r = saved(0), z = saved(1), n = saved(2), q = saved(3);
      const Vec<T> dh = load_tail(x.dh + u, lanes), h = load_tail(x.h_before + u, lanes);
      const Vec<T> dz = limited<T>(x.f.gate.back(dh * (h - n), z), most);
      const Vec<T> dn = limited<T>(x.f.candidate.back(dh * (constant<T>(1) - z), n), most);
      const Vec<T> dr = limited<T>(x.f.gate.back(dn * q, r), most);
      store_tail(by_x + u, dr, lanes);
      store_tail(by_x + H + u, dz, lanes);
      store_tail(by_x + 2 * H + u, dn, lanes);
      store_tail(by_h + u, dr, lanes);
      store_tail(by_h + H + u, dz, lanes);
      store_tail(by_h + 2 * H + u, dn * r, lanes);
      store_tail(x.passed + u, fma(dh, z, load_tail(x.passed + u, lanes)), lanes);
    });
  }
};

// Gates r z n. Saved: r z n p, p = r times the operand, which a second product multiplies.
struct FlexGruBefore : Flexible<3, 4> {
  static constexpr bool kSecondProduct = true;
  static constexpr int kFirstGates = 2;
  static constexpr int kOperand = 3;
  static constexpr int kGroups = 2;
  static constexpr int group_gates(int group) { return group == 0 ? 2 : 1; }

  template <class T>
  static void forward(const ForwardRow<T>& x, int64_t begin, int64_t end) {
    const int64_t H = x.p.hidden;
    const T* operand = x.p.operand + x.b * H;
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      for (int g = 0; g < 2; g++) {
        const Vec<T> a = load_tail(x.gx + g * H + u, lanes) + load_tail(x.raw + g * H + u, lanes);
        const Vec<T> gate = x.f.gate(a);
        store_tail(x.saved + g * H + u, gate, lanes);
        if (g == 0) store_tail(x.saved + 3 * H + u, gate * load_tail(operand + u, lanes), lanes);
      }
    });
  }
  template <class T>
  static void forward_second(const ForwardRow<T>& x, int64_t begin, int64_t end) {
    const int64_t H = x.p.hidden;
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const Vec<T> n =
          x.f.candidate(load_tail(x.gx + 2 * H + u, lanes) + load_tail(x.raw + 2 * H + u, lanes));
      const Vec<T> z = load_tail(x.saved + H + u, lanes), h = load_tail(x.h + u, lanes);
      store_tail(x.saved + 2 * H + u, n, lanes);
      store_tail(x.step_h + u, fma(z, h, (constant<T>(1) - z) * n), lanes);
    });
  }

  template <class T>
  static void backward(const BackwardRow<T>& x, int64_t begin, int64_t end) {
    const int64_t H = x.p.hidden;
    const double most = x.p.options.grad_clip;
    T* d = x.rows + x.p.written.arguments * H;
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const Vec<T> z = load_tail(x.saved + H + u, lanes), n = load_tail(x.saved + 2 * H + u, lanes);
      const Vec<T> dh = load_tail(x.dh + u, lanes), h = load_tail(x.h_before + u, lanes);
      store_tail(d + H + u, limited<T>(x.f.gate.back(dh * (h - n), z), most), lanes);
      store_tail(d + 2 * H + u, limited<T>(x.f.candidate.back(dh * (constant<T>(1) - z), n), most),
                 lanes);
      store_tail(x.passed + u, fma(dh, z, load_tail(x.passed + u, lanes)), lanes);
    });
  }
  template <class T>
  static void backward_second(const BackwardRow<T>& x, int64_t begin, int64_t end) {
    const int64_t H = x.p.hidden;
    const double most = x.p.options.grad_clip;
    T* d = x.rows + x.p.written.arguments * H;
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const Vec<T> r = load_tail(x.saved + u, lanes), dp = load_tail(x.product + u, lanes);
      const Vec<T> operand = load_tail(x.operand + u, lanes);
      store_tail(d + u, limited<T>(x.f.gate.back(dp * operand, r), most), lanes);
      Vec<T> direct = dp * r;
      if (x.mask) direct = direct * load_tail(x.mask + u, lanes);
      store_tail(x.passed + u, direct + load_tail(x.passed + u, lanes), lanes);
    });
  }
};

struct FlexRnn : Flexible<1, 1> {
  template <class T>
  static void forward(const ForwardRow<T>& x, int64_t begin, int64_t end) {
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const Vec<T> h = x.f.candidate(load_tail(x.gx + u, lanes) + load_tail(x.raw + u, lanes));
      store_tail(x.saved + u, h, lanes);
      store_tail(x.step_h + u, h, lanes);
    });
  }

  template <class T>
  static void backward(const BackwardRow<T>& x, int64_t begin, int64_t end) {
    T* d = x.rows + x.p.written.arguments * x.p.hidden;
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const Vec<T> da =
          x.f.candidate.back(load_tail(x.dh + u, lanes), load_tail(x.saved + u, lanes));
      store_tail(d + u, limited<T>(da, x.p.options.grad_clip), lanes);
    });
  }
};

// Gates, and saved: i f u.
struct FlexGated : Flexible<3, 3> {
  template <class T>
  static void forward(const ForwardRow<T>& x, int64_t begin, int64_t end) {
    const int64_t H = x.p.hidden;
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      Vec<T> s[3];
      for (int g = 0; g < 3; g++) {
        const Vec<T> a = load_tail(x.gx + g * H + u, lanes) + load_tail(x.raw + g * H + u, lanes);
        s[g] = g < 2 ? x.f.gate(a) : x.f.candidate(a);
        store_tail(x.saved + g * H + u, s[g], lanes);
      }
      store_tail(x.step_h + u, fma(s[1], load_tail(x.h + u, lanes), s[0] * s[2]), lanes);
    });
  }

  template <class T>
  static void backward(const BackwardRow<T>& x, int64_t begin, int64_t end) {
    const int64_t H = x.p.hidden;
    const double most = x.p.options.grad_clip;
    T* d = x.rows + x.p.written.arguments * H;
    over_units<T>(begin, end, [&](int64_t u, int lanes) {
      const auto saved = [&](int q) { return load_tail(x.saved + q * H + u, lanes); };
      const Vec<T> i = saved(0), f = saved(1), v = saved(2);
      const Vec<T> dh = load_tail(x.dh + u, lanes), h = load_tail(x.h_before + u, lanes);
      store_tail(d + u, limited<T>(x.f.gate.back(dh * v, i), most), lanes);
      store_tail(d + H + u, limited<T>(x.f.gate.back(dh * h, f), most), lanes);
      store_tail(d + 2 * H + u, limited<T>(x.f.candidate.back(dh * i, v), most), lanes);
      store_tail(x.passed + u, fma(dh, f, load_tail(x.passed + u, lanes)), lanes);
    });
  }
};

}  // namespace

#define RNNFAST_DEFINE_FLEXIBLE(T, suffix)                                                         \
  extern const FlexibleKernels<T> flexible##suffix[kFlexKinds];                                    \
  const FlexibleKernels<T> flexible##suffix[kFlexKinds] = {                                        \
      flexible_of<FlexLstm, T>(), flexible_of<FlexGruAfter, T>(), flexible_of<FlexGruBefore, T>(), \
      flexible_of<FlexRnn, T>(), flexible_of<FlexGated, T>()};

RNNFAST_DEFINE_FLEXIBLE(float, 32)
RNNFAST_DEFINE_FLEXIBLE(double, 64)
RNNFAST_DEFINE_FLEXIBLE(Dual, _dual)

}  // namespace rnnfast::RNNFAST_ISA
