// Layers of cells with options for XLA, one at a time; the notes of flat_pass.hpp hold here too.
//
//   rnnfast_flexible_forward    x [T, B, I], h_0 [D, B, P], c_0 [D, B, H], lengths [B], masks,
//                               weights: all of WeightFields of every direction
//                            -> y [T, B, D*P], h_n, c_n, saved
//   rnnfast_flexible_backward   the arguments of the forward pass, saved, dy, dh_n, dc_n
//                            -> dx, dh_0, dc_0, the gradients of the weights
//   masks                       recurrent [D, B, P], keep_h [D, T, B, P], keep_c [D, T, B, H]; the
//                               last two also [D, 1, 1, P] and [D, 1, 1, H], one row for all
//   saved                       as in FlexibleSaved, in its order, D times as many numbers
#include <optional>

#include "ffi.hpp"
#include "ffi_options.hpp"
#include "python_flexible.hpp"

namespace rnnfast {
namespace {

template <class T>
struct FlexibleCall : PackedInputs<T> {
  int64_t T_, B, I, H, P, G, S, D, N;
  bool has_c;
  const T *x, *h_0, *c_0;
  StateMasks<T> masks[2] = {};
  std::optional<FlexibleLayer<T>> layer;
  std::vector<FlexibleWeights<T>> weights;

  FlexibleCall(Buffers& buffers, std::string_view cell, ffi::Span<const double> options,
               int64_t directions)
      : D(directions) {
    const FlexibleKind which = flexible_kind(cell);
    const FlexibleKernels<T>& kernel = kernels<T>(active_set()).flexible[which];
    const FlatBuffer &of_x = buffers.peek(0), &of_w = buffers.peek(8);
    if (of_x.rank != 3 || of_w.rank != 2 || D < 1 || D > 2)
      throw std::invalid_argument("rnnfast: unexpected rank of a buffer");
    G = kernel.gates, has_c = kernel.has_c;
    T_ = of_x.dims[0], B = of_x.dims[1], I = of_x.dims[2], H = of_w.dims[0] / G, P = of_w.dims[1],
    N = T_ * B;
    x = buffers.input<T>(N * I);
    h_0 = buffers.input<T>(D * B * P);
    c_0 = buffers.input<T>(D * B * H);
    this->read_lengths(buffers, T_, B);
    x = this->pack_rows(x, I);
    h_0 = sort_states(h_0, P);
    c_0 = sort_states(c_0, H);
    const T* recurrent = sort_states(buffers.input<T>(D * B * P), P);
    int64_t rows_h, rows_c;
    const T* keep_h = mask(buffers, P, &rows_h);
    const T* keep_c = mask(buffers, H, &rows_c);
    for (int64_t d = 0; d < D; d++) {
      StateMasks<T>& m = masks[d];
      m.recurrent = recurrent ? recurrent + d * B * P : nullptr;
      m.keep_h = keep_h ? keep_h + d * rows_h * P : nullptr;
      m.keep_c = keep_c ? keep_c + d * rows_c * H : nullptr;
      m.keep_h_stride = rows_h == 1 ? 0 : P;
      m.keep_c_stride = rows_c == 1 ? 0 : H;
    }
    for (int64_t d = 0; d < D; d++) {
      FlexibleWeights<T> w{};
      const auto fields = each_field(w);
      const auto sizes = weight_sizes(G, I, H, P);
      for (int k = 0; k < kWeightFields; k++) *fields[k] = buffers.input<T>(sizes[k]);
      if (!complete(w, H, P)) throw std::invalid_argument("rnnfast: weights that do not fit");
      weights.push_back(w);
    }
    S = flexible_slots(std::string(cell), weights[0].ln_ih != nullptr);
    layer.emplace(which, options_of(options), weights, I, H, P);
  }

  const T* sort_states(const T* states, int64_t width) { return this->sort(states, D, width); }

 private:
  // A mask of every row, or one row for all; how many rows of it there are for each direction.
  const T* mask(Buffers& buffers, int64_t width, int64_t* rows) {
    const int64_t count = int64_t(buffers.peek(0).count());
    *rows = count == D * width ? 1 : N;
    const T* all = buffers.input<T>(D * *rows * width);
    if (!this->ragged.is_ragged() || !all || *rows == 1) return all;
    T* packed = this->keep(Buffer<T>(D * N * width));
    for (int64_t d = 0; d < D; d++)
      this->ragged.pack(all + d * N * width, width, packed + d * N * width);
    return packed;
  }
};

template <class T>
void flexible_forward(Buffers& buffers, std::string_view cell, ffi::Span<const double> options,
                      int64_t directions, bool save) {
  FlexibleCall<T> call(buffers, cell, options, directions);
  const int64_t D = call.D, B = call.B, H = call.H, P = call.P, N = call.N, S = call.S;
  const bool ragged = call.ragged.is_ragged();
  const int64_t of_c = call.has_c ? D * B * H : 0;
  const Output<T> y(buffers.needed<T>(N * D * P), ragged, N * D * P);
  const Output<T> h_n(buffers.needed<T>(D * B * P), ragged, D * B * P);
  const Output<T> c_n(buffers.needed<T>(of_c), ragged, of_c);
  T* saved = buffers.output<T>(D * N * S * H);
  T* scales = buffers.output<T>(D * N * kScales);
  T* h_before = buffers.output<T>(D * N * P);
  T* operand_before = buffers.output<T>(D * N * P);
  T* c_before = buffers.output<T>(D * N * H);
  buffers.end();
  FlexibleForwardArrays<T> a{
      call.x, call.h_0, call.c_0, y.get(), h_n.get(), call.has_c ? c_n.get() : nullptr, {}};
  for (int64_t d = 0; d < D; d++) {
    a.masks[d] = call.masks[d];
    const auto part = [d, N](T* all, int64_t width) { return all ? all + d * N * width : nullptr; };
    if (save)
      a.keep[d] = {part(saved, S * H), part(scales, kScales), part(h_before, P),
                   part(operand_before, P), part(c_before, H)};
  }
  call.layer->forward(call.batch(), a, save);
  if (ragged) {
    call.pad(y.get(), D * P, y.to);
    call.ragged.unsort(h_n.get(), D, P, h_n.to);
    if (call.has_c) call.ragged.unsort(c_n.get(), D, H, c_n.to);
  }
}

template <class T>
void flexible_backward(Buffers& buffers, std::string_view cell, ffi::Span<const double> options,
                       int64_t directions) {
  FlexibleCall<T> call(buffers, cell, options, directions);
  const int64_t D = call.D, B = call.B, I = call.I, H = call.H, P = call.P, N = call.N;
  const int64_t S = call.S, of_c = call.has_c ? D * B * H : 0;
  const T* saved = buffers.input<T>(D * N * S * H);
  const T* scales = buffers.input<T>(D * N * kScales);
  const T* h_before = buffers.input<T>(D * N * P);
  const T* operand_before = buffers.input<T>(D * N * P);
  const T* c_before = buffers.input<T>(D * N * H);
  FlexibleBackwardArrays<T> a{};
  a.dy = call.pack_rows(buffers.input<T>(N * D * P), D * P);
  a.dh_n = call.sort_states(buffers.input<T>(D * B * P), P);
  a.dc_n = call.sort_states(buffers.input<T>(D * B * H), H);
  const bool ragged = call.ragged.is_ragged();
  const Output<T> dx(buffers.needed<T>(N * I), ragged, N * I);
  const Output<T> dh_0(buffers.needed<T>(D * B * P), ragged, D * B * P);
  const Output<T> dc_0(buffers.needed<T>(of_c), ragged, of_c);
  a.dx = dx.get();
  a.dh_0 = dh_0.get();
  a.dc_0 = call.has_c ? dc_0.get() : nullptr;
  if (N > 0 && (!saved || !scales || !h_before || (call.masks[0].recurrent && !operand_before) ||
                (call.has_c && !c_before)))
    throw std::invalid_argument("rnnfast: nothing was saved");

  FlexibleSaved<T> kept;
  const Batch batch = call.batch();
  count_rows(batch, kept.offset);
  kept.steps = batch.steps;
  kept.batch = batch.batch;
  kept.x = call.x;
  const auto lend = [N](const T* all, int64_t d, int64_t width) {
    return all ? Buffer<T>(const_cast<T*>(all) + d * N * width, N * width) : Buffer<T>();
  };
  for (int64_t d = 0; d < D; d++) {
    auto& own = kept.directions[d];
    own.saved = lend(saved, d, S * H);
    own.scales = lend(scales, d, kScales);
    own.h_before = lend(h_before, d, P);
    own.operand_before = lend(operand_before, d, P);
    own.c_before = lend(c_before, d, H);
    a.masks[d] = call.masks[d];
    const auto of = each_field(call.weights[d]);
    const auto to = each_field(a.dweights[d]);
    const auto sizes = weight_sizes(call.G, I, H, P);
    for (int k = 0; k < kWeightFields; k++)
      *to[k] = *of[k] ? buffers.needed<T>(sizes[k]) : buffers.output<T>(0);
  }
  buffers.end();
  call.layer->backward(kept, a);
  if (ragged) {
    call.pad(dx.get(), I, dx.to);
    call.ragged.unsort(dh_0.get(), D, P, dh_0.to);
    if (call.has_c) call.ragged.unsort(dc_0.get(), D, H, dc_0.to);
  }
}

ffi::Error run_flexible_forward(ffi::RemainingArgs from, ffi::RemainingRets to,
                                std::string_view cell, ffi::Span<const double> options,
                                int64_t directions, std::string_view save) {
  return guarded(from, to, [&](Buffers& buffers, auto zero) {
    flexible_forward<decltype(zero)>(buffers, cell, options, directions, !save.empty());
  });
}

ffi::Error run_flexible_backward(ffi::RemainingArgs from, ffi::RemainingRets to,
                                 std::string_view cell, ffi::Span<const double> options,
                                 int64_t directions, std::string_view) {
  return guarded(from, to, [&](Buffers& buffers, auto zero) {
    flexible_backward<decltype(zero)>(buffers, cell, options, directions);
  });
}

auto flexible_binding() {
  return ffi::Ffi::Bind()
      .RemainingArgs()
      .RemainingRets()
      .Attr<std::string_view>("cell")
      .Attr<ffi::Span<const double>>("options")
      .Attr<int64_t>("directions")
      .Attr<std::string_view>("save");
}

}  // namespace

int flexible_slots(const std::string& cell, bool norm) {
  const FlexibleKernels<float>& kernel = kernels<float>(active_set()).flexible[flexible_kind(cell)];
  return kernel.saved + (norm ? 2 * kernel.gates : 0);
}

void add_flexible_handlers(py::dict handlers) {
  XLA_FFI_DEFINE_HANDLER(on_forward, run_flexible_forward, flexible_binding());
  XLA_FFI_DEFINE_HANDLER(on_backward, run_flexible_backward, flexible_binding());
  handlers["rnnfast_flexible_forward"] = py::capsule(reinterpret_cast<void*>(on_forward));
  handlers["rnnfast_flexible_backward"] = py::capsule(reinterpret_cast<void*>(on_backward));
}

}  // namespace rnnfast
