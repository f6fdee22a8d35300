// Derivatives along a direction for XLA, by dual numbers; the notes of flat_pass.hpp hold here too.
//
//   rnnfast_tangent   operands, tangents -> the tangents of y, h_n and c_n
//   rnnfast_second    operands, tangents, dy, dh_n, dc_n
//                  -> the tangents of what the backward pass makes of this dy, dh_n and dc_n: dx,
//                     dh_0, dc_0 and the gradients of the weights
//   operands          those of rnnfast_flexible_forward, for any number of layers: masks and
//                     weights of every direction of every layer in order
//   tangents          of x, h_0, c_0 and the weights; an empty one is zero
//
// float32 is computed in float64, and rounded in the end.
#include "ffi.hpp"
#include "ffi_options.hpp"

namespace rnnfast {
namespace {

// The operands as dual numbers, packed.
template <class T>
struct DualCall : PackedInputs<Dual> {
  int64_t T_, B, I, H, P, G, L, D, N;
  bool has_c;
  const Dual *x, *h_0, *c_0;
  std::vector<StateMasks<Dual>> masks;         // [L*D]
  std::vector<FlexibleWeights<Dual>> weights;  // [L*D]
  std::vector<FlexibleLayer<Dual>> layers;
  Buffers& buffers;

  DualCall(Buffers& buffers, std::string_view cell, ffi::Span<const double> options, int64_t count,
           int64_t directions)
      : L(count), D(directions), buffers(buffers), tangents_(buffers) {
    const FlexibleKind which = flexible_kind(cell);
    const FlexibleKernels<Dual>& kernel = kernels<Dual>(active_set()).flexible[which];
    const FlatBuffer &of_x = buffers.peek(0), &of_w = buffers.peek(8);
    if (of_x.rank != 3 || of_w.rank != 2 || L < 1 || D < 1 || D > 2)
      throw std::invalid_argument("rnnfast: unexpected rank of a buffer");
    G = kernel.gates, has_c = kernel.has_c;
    T_ = of_x.dims[0], B = of_x.dims[1], I = of_x.dims[2], H = of_w.dims[0] / G, P = of_w.dims[1],
    N = T_ * B;
    tangents_.skip(7 + kWeightFields * L * D);
    x = next(N * I);
    h_0 = next(L * D * B * P);
    c_0 = next(L * D * B * H);
    read_lengths(buffers, T_, B);
    x = pack_rows(x, I);
    h_0 = sort_states(h_0, P);
    c_0 = sort_states(c_0, H);
    masks.resize(L * D);
    const Dual* recurrent = sort_states(constant(L * D * B * P), P);
    for (int64_t k = 0; k < L * D && recurrent; k++) masks[k].recurrent = recurrent + k * B * P;
    read_keep(P, &StateMasks<Dual>::keep_h, &StateMasks<Dual>::keep_h_stride);
    read_keep(H, &StateMasks<Dual>::keep_c, &StateMasks<Dual>::keep_c_stride);
    for (int64_t k = 0; k < L * D; k++) weights.push_back(next_weights(input_of(k / D)));
    for (int64_t k = 0; k < L; k++)
      layers.emplace_back(which, options_of(options),
                          std::vector<FlexibleWeights<Dual>>(weights.begin() + k * D,
                                                             weights.begin() + (k + 1) * D),
                          input_of(k), H, P);
    buffers.skip(3 + kWeightFields * L * D);
  }

  int64_t input_of(int64_t layer) const { return layer > 0 ? D * P : I; }
  // The next input, whose tangent is zero.
  const Dual* constant(int64_t size) { return widen(buffers.input<T>(size), nullptr, size); }
  const Dual* sort_states(const Dual* states, int64_t width) { return sort(states, L * D, width); }

  // The derivatives of results, in the caller's order; nothing where `to` is null.
  static void give(const Buffer<Dual>& from, int64_t size, T* to) {
    for (int64_t j = 0; j < size && to; j++) to[j] = T(from.get()[j].d);
  }
  void give_rows(const Buffer<Dual>& from, int64_t width, T* to) const {
    if (!ragged.is_ragged() || !to) return give(from, N * width, to);
    const Buffer<Dual> padded(N * width);
    pad(from.get(), width, padded.get());
    give(padded, N * width, to);
  }
  void give_states(const Buffer<Dual>& from, int64_t width, T* to) const {
    const int64_t size = L * D * B * width;
    if (!ragged.is_ragged() || !to) return give(from, size, to);
    const Buffer<Dual> unsorted(size);
    ragged.unsort(from.get(), L * D, width, unsorted.get());
    give(unsorted, size, to);
  }

 private:
  const Dual* widen(const T* value, const T* tangent, int64_t size) {
    if (!value) return nullptr;
    Dual* const to = keep(Buffer<Dual>(size));
    for (int64_t j = 0; j < size; j++) {
      to[j].v = value[j];
      to[j].d = tangent ? tangent[j] : T(0);
    }
    return to;
  }
  const Dual* next(int64_t size) {
    const T* value = buffers.input<T>(size);
    return widen(value, tangents_.input<T>(size), size);
  }
  void read_keep(int64_t width, const Dual* StateMasks<Dual>::* mask,
                 int64_t StateMasks<Dual>::* stride) {
    const bool one_row = int64_t(buffers.peek(0).count()) == L * D * width;
    const int64_t rows = one_row ? 1 : N;
    const T* all = buffers.input<T>(L * D * rows * width);
    for (int64_t k = 0; k < L * D && all; k++) {
      const Dual* own = widen(all + k * rows * width, nullptr, rows * width);
      masks[k].*mask = one_row ? own : pack_rows(own, width);
      masks[k].*stride = one_row ? 0 : width;
    }
  }
  FlexibleWeights<Dual> next_weights(int64_t features) {
    FlexibleWeights<Dual> w{};
    const auto fields = each_field(w);
    const auto sizes = weight_sizes(G, features, H, P);
    for (int k = 0; k < kWeightFields; k++) *fields[k] = next(sizes[k]);
    if (!complete(w, H, P)) throw std::invalid_argument("rnnfast: weights that do not fit");
    return w;
  }

  Buffers tangents_;
};

template <class T>
void dual_passes(Buffers& buffers, std::string_view cell, ffi::Span<const double> options,
                 int64_t count, int64_t directions, bool second) {
  DualCall<T> call(buffers, cell, options, count, directions);
  const int64_t L = call.L, D = call.D, B = call.B, H = call.H, P = call.P, N = call.N;
  const int64_t of_c = call.has_c ? B * H : 0;
  const Batch batch = call.batch();

  std::vector<Buffer<Dual>> ys;
  std::vector<std::unique_ptr<FlexibleSaved<Dual>>> saved;
  const Buffer<Dual> h_n(L * D * B * P), c_n(L * D * of_c);
  for (int64_t k = 0; k < L; k++) {
    const int64_t at = k * D;
    const Dual* x = k > 0 ? ys.back().get() : call.x;
    ys.emplace_back(N * D * P);
    FlexibleForwardArrays<Dual> a{x,
                                  call.h_0 ? call.h_0 + at * B * P : nullptr,
                                  call.c_0 ? call.c_0 + at * B * H : nullptr,
                                  ys.back().get(),
                                  h_n.get() + at * B * P,
                                  call.has_c ? c_n.get() + at * B * H : nullptr,
                                  {}};
    std::copy_n(call.masks.begin() + at, D, a.masks);
    saved.push_back(call.layers[k].forward(batch, a, second));
  }
  if (!second) {
    call.give_rows(ys.back(), D * P, buffers.needed<T>(N * D * P));
    call.give_states(h_n, P, buffers.needed<T>(L * D * B * P));
    call.give_states(c_n, H, buffers.needed<T>(L * D * of_c));
    buffers.end();
    return;
  }

  const Dual* dy = call.pack_rows(call.constant(N * D * P), D * P);
  const Dual* dh_n = call.sort_states(call.constant(L * D * B * P), P);
  const Dual* dc_n = call.sort_states(call.constant(L * D * B * H), H);
  T* to_dx = buffers.needed<T>(N * call.I);
  T* to_dh_0 = buffers.needed<T>(L * D * B * P);
  T* to_dc_0 = buffers.needed<T>(L * D * of_c);
  struct Given {
    Buffer<Dual> from;
    int64_t size;
    T* to;
  };
  std::vector<Given> given;
  std::vector<FlexibleGradients<Dual>> dweights;
  for (int64_t k = 0; k < L * D; k++) {
    FlexibleGradients<Dual> g{};
    const auto of = each_field(call.weights[k]);
    const auto fields = each_field(g);
    const auto sizes = weight_sizes(call.G, call.input_of(k / D), H, P);
    for (int f = 0; f < kWeightFields; f++) {
      T* to = buffers.output<T>(*of[f] ? sizes[f] : 0);
      if (!to) continue;
      given.push_back({Buffer<Dual>(sizes[f]), sizes[f], to});
      *fields[f] = given.back().from.get();
    }
    dweights.push_back(g);
  }
  buffers.end();

  const Buffer<Dual> dh_0(L * D * B * P), dc_0(L * D * of_c);
  Buffer<Dual> dx;
  for (int64_t k = L; k-- > 0;) {
    const int64_t at = k * D;
    Buffer<Dual> below(N * call.input_of(k));
    FlexibleBackwardArrays<Dual> a{};
    a.dy = dy;
    a.dh_n = dh_n ? dh_n + at * B * P : nullptr;
    a.dc_n = dc_n ? dc_n + at * B * H : nullptr;
    a.dx = below.get();
    a.dh_0 = dh_0.get() + at * B * P;
    a.dc_0 = call.has_c ? dc_0.get() + at * B * H : nullptr;
    std::copy_n(dweights.begin() + at, D, a.dweights);
    std::copy_n(call.masks.begin() + at, D, a.masks);
    call.layers[k].backward(*saved[k], a);
    dx = std::move(below);
    dy = dx.get();
  }
  call.give_rows(dx, call.I, to_dx);
  call.give_states(dh_0, P, to_dh_0);
  call.give_states(dc_0, H, to_dc_0);
  for (const Given& g : given) call.give(g.from, g.size, g.to);
}

template <bool kSecond>
ffi::Error run_dual(ffi::RemainingArgs from, ffi::RemainingRets to, std::string_view cell,
                    ffi::Span<const double> options, int64_t layers, int64_t directions) {
  return guarded(from, to, [&](Buffers& buffers, auto zero) {
    dual_passes<decltype(zero)>(buffers, cell, options, layers, directions, kSecond);
  });
}

auto dual_binding() {
  return ffi::Ffi::Bind()
      .RemainingArgs()
      .RemainingRets()
      .Attr<std::string_view>("cell")
      .Attr<ffi::Span<const double>>("options")
      .Attr<int64_t>("layers")
      .Attr<int64_t>("directions");
}

}  // namespace

void add_dual_handlers(py::dict handlers) {
  XLA_FFI_DEFINE_HANDLER(on_tangent, run_dual<false>, dual_binding());
  XLA_FFI_DEFINE_HANDLER(on_second, run_dual<true>, dual_binding());
  handlers["rnnfast_tangent"] = py::capsule(reinterpret_cast<void*>(on_tangent));
  handlers["rnnfast_second"] = py::capsule(reinterpret_cast<void*>(on_second));
}

}  // namespace rnnfast
