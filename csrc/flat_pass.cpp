#include "flat_pass.hpp"

#include <cstdio>
#include <memory>

#include "dispatch.hpp"
#include "flat_buffers.hpp"
#include "python_layer.hpp"

namespace rnnfast {
namespace {

Save save_of(std::string_view name) {
  return Save(one_of(std::string(name), {"", "all", "recompute"}, "save"));
}

// What both passes begin with: sizes, layers, and the inputs of the forward pass, packed.
template <class T>
struct Call : PackedInputs<T> {
  int64_t T_, B, I, H, G, S, L, D, N, state;
  bool has_c;
  const T *x, *h_0, *c_0;
  std::vector<std::unique_ptr<Layer<T>>> owned;
  std::vector<const Layer<T>*> layers;

  // With `packed_weights` the weights are packed now, as a backward pass that computes gates needs.
  Call(Buffers& buffers, const FlatPass& pass, bool packed_weights)
      : L(pass.layers), D(pass.directions) {
    const bool transposed = pass.transposed;
    const CellKind which = cell_kind(pass.cell);
    const CellKernels<T>& kernel = *kernels<T>(active_set()).cells[which];
    const FlatBuffer &of_x = buffers.peek(0), &of_w = buffers.peek(5);
    if (of_x.rank != 3 || of_w.rank != 2 || L < 1 || D < 1 || D > 2)
      throw std::invalid_argument("rnnfast: unexpected rank of a buffer");
    T_ = of_x.dims[0], B = of_x.dims[1], I = of_x.dims[2], H = of_w.dims[transposed ? 0 : 1];
    G = kernel.gates, S = kernel.saved, has_c = kernel.has_c;
    N = T_ * B, state = B * H;
    const Layout layout = layout_of(transposed, pass.places, pass.place_count, G);
    x = buffers.input<T>(N * I);
    h_0 = buffers.input<T>(L * D * state);
    c_0 = buffers.input<T>(L * D * state);
    this->read_lengths(buffers, T_, B);
    x = this->pack_rows(x, I);
    h_0 = sort_states(h_0);
    c_0 = sort_states(c_0);
    for (int64_t k = 0; k < L; k++) {
      const int64_t features = k > 0 ? D * H : I;
      std::vector<Weights<T>> weights;
      for (int64_t d = 0; d < D; d++) {
        Weights<T> w{};
        w.w_ih = buffers.input<T>(G * H * features);
        w.w_hh = buffers.input<T>(G * H * H);
        w.b_ih = buffers.input<T>(G * H);
        w.b_hh = buffers.input<T>(G * H);
        w.layout = layout;
        if (!w.w_ih || !w.w_hh) throw std::invalid_argument("rnnfast: empty weights");
        weights.push_back(w);
      }
      owned.emplace_back(new Layer<T>(which, std::move(weights), features, H, packed_weights));
      layers.push_back(owned.back().get());
    }
  }

  const T* sort_states(const T* states) { return this->sort(states, L * D, H); }
};

template <class T>
void forward(Buffers& buffers, const FlatPass& pass) {
  Call<T> call(buffers, pass, false);
  const int64_t L = call.L, D = call.D, H = call.H, N = call.N, state = call.state;
  const bool ragged = call.ragged.is_ragged();
  const Output<T> y(buffers.needed<T>(N * D * H), ragged, N * D * H);
  const Output<T> h_n(buffers.needed<T>(L * D * state), ragged, L * D * state);
  const Output<T> c_n(buffers.needed<T>(call.has_c ? L * D * state : 0), ragged && call.has_c,
                      L * D * state);
  T* between = buffers.output<T>((L - 1) * N * D * H);
  T* gates = buffers.output<T>(L * D * N * call.S * H);
  T* h = buffers.output<T>(L * D * N * H);
  T* c = buffers.output<T>(L * D * N * H);
  buffers.end();
  if (save_of(pass.save) == Save::kAll && h && call.S > 0 && !gates)
    throw std::invalid_argument("rnnfast: an output is missing");
  Buffer<T> scratch(between ? 0 : (L - 1) * N * D * H);
  if (!between) between = scratch.get();

  std::vector<ForwardArrays<T>> arrays;
  for (int64_t k = 0; k < L; k++) {
    const int64_t at = k * D * state;
    ForwardArrays<T> a{k > 0 ? arrays.back().y : call.x,
                       call.h_0 ? call.h_0 + at : nullptr,
                       call.c_0 ? call.c_0 + at : nullptr,
                       k + 1 < L ? between + k * N * D * H : y.get(),
                       h_n.get() + at,
                       call.has_c ? c_n.get() + at : nullptr};
    for (int64_t d = 0; d < D && h; d++) {
      const int64_t first = (k * D + d) * N * H;
      a.keep[d] = {gates ? gates + first * call.S : nullptr, h + first, c ? c + first : nullptr};
    }
    arrays.push_back(a);
  }
  rnnfast::forward(call.layers, call.batch(), arrays, save_of(pass.save));

  if (ragged) {
    call.pad(y.get(), D * H, y.to);
    call.ragged.unsort(h_n.get(), L * D, H, h_n.to);
    if (call.has_c) call.ragged.unsort(c_n.get(), L * D, H, c_n.to);
  }
}

template <class T>
void backward(Buffers& buffers, const FlatPass& pass) {
  Call<T> call(buffers, pass, save_of(pass.save) == Save::kRecompute);
  const int64_t L = call.L, D = call.D, H = call.H, N = call.N, state = call.state;
  const T* between = buffers.input<T>((L - 1) * N * D * H);
  const T* gates = buffers.input<T>(L * D * N * call.S * H);
  const T* h = buffers.input<T>(L * D * N * H);
  const T* c = buffers.input<T>(L * D * N * H);
  const T* dy = call.pack_rows(buffers.input<T>(N * D * H), D * H);
  const T* dh_n = call.sort_states(buffers.input<T>(L * D * state));
  const T* dc_n = call.sort_states(buffers.input<T>(L * D * state));
  const bool ragged = call.ragged.is_ragged();
  const auto wanted = [&](int64_t size) {
    T* to = buffers.output<T>(size);
    return Output<T>(to, to && ragged, size);
  };
  const Output<T> dx = wanted(N * call.I), dh_0 = wanted(L * D * state);
  const Output<T> dc_0(buffers.needed<T>(call.has_c ? L * D * state : 0), ragged && call.has_c,
                       L * D * state);

  const Batch batch = call.batch();
  const Buffer<T> zeros(state);
  std::fill_n(zeros.get(), state, T(0));
  const auto lend = [](const T* from, int64_t size) {
    return Buffer<T>(const_cast<T*>(from), from ? size : 0);
  };
  std::vector<Saved<T>> saved(L);
  std::vector<const Saved<T>*> every;
  std::vector<BackwardArrays<T>> arrays;
  std::vector<Buffer<T>> handed_down;
  for (int64_t k = 0; k < L; k++) {
    Saved<T>& s = saved[k];
    s.steps = batch.steps;
    s.batch = batch.batch;
    s.offset.push_back(0);
    for (int64_t t = 0; t < batch.steps; t++)
      s.offset.push_back(s.offset.back() + (batch.sizes ? batch.sizes[t] : batch.batch));
    s.x = k > 0 ? between + (k - 1) * N * D * H : call.x;
    s.zero_h = !call.h_0;
    for (int64_t d = 0; d < D; d++) {
      const int64_t at = k * D + d, first = at * N * H;
      s.directions[d].h_0 = lend(call.h_0 ? call.h_0 + at * state : zeros.get(), state);
      s.directions[d].c_0 = lend(call.c_0 ? call.c_0 + at * state : zeros.get(), state);
      if (gates) s.directions[d].gates = lend(gates + first * call.S, N * call.S * H);
      s.directions[d].h = lend(h ? h + first : nullptr, N * H);
      if (c) s.directions[d].c = lend(c + first, N * H);
    }
    every.push_back(&s);

    const int64_t at = k * D * state, features = call.layers[k]->input();
    BackwardArrays<T> a{};
    a.dy = dy;
    a.dh_n = dh_n ? dh_n + at : nullptr;
    a.dc_n = dc_n ? dc_n + at : nullptr;
    a.dx = dx.get();
    if (k > 0) {
      handed_down.emplace_back(N * D * H);
      a.dx = handed_down.back().get();
      arrays.back().dy = a.dx;
    }
    a.dh_0 = dh_0.get() ? dh_0.get() + at : nullptr;
    a.dc_0 = call.has_c ? dc_0.get() + at : nullptr;
    for (int64_t d = 0; d < D; d++) {
      auto& w = a.dweights[d];
      w.w_ih = buffers.output<T>(call.G * H * features);
      w.w_hh = buffers.output<T>(call.G * H * H);
      w.b_ih = buffers.output<T>(call.G * H);
      w.b_hh = buffers.output<T>(call.G * H);
    }
    arrays.push_back(a);
  }
  buffers.end();
  if (N > 0 && (!h || (call.has_c && !c) || (L > 1 && !between)))
    throw std::invalid_argument("rnnfast: nothing was saved");
  rnnfast::backward(call.layers, every, arrays);

  if (ragged) {
    if (dx.to) call.pad(dx.get(), call.I, dx.to);
    if (dh_0.to) call.ragged.unsort(dh_0.get(), L * D, H, dh_0.to);
    if (call.has_c) call.ragged.unsort(dc_0.get(), L * D, H, dc_0.to);
  }
}

template <class T>
void run(Buffers& buffers, const FlatPass& pass) {
  if (pass.backward)
    backward<T>(buffers, pass);
  else
    forward<T>(buffers, pass);
}

}  // namespace

bool run_flat_pass(const FlatPass& pass, char* message, size_t bytes) {
  try {
    Buffers buffers({pass.inputs, pass.inputs + pass.input_count},
                    {pass.outputs, pass.outputs + pass.output_count});
    if (buffers.peek(0).kind == NumberKind::kF64)
      run<double>(buffers, pass);
    else
      run<float>(buffers, pass);
    return true;
  } catch (const std::exception& error) {
    std::snprintf(message, bytes, "%s", error.what());
    return false;
  }
}

}  // namespace rnnfast
