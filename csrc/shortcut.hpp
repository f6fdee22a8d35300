// Calls that need no conversion, from the arguments of the API straight to the kernels.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <type_traits>
#include <utility>

#include "exchange.hpp"
#include "python_flexible.hpp"
#include "ragged.hpp"

namespace rnnfast {
namespace {

template <class T>
std::vector<std::unique_ptr<Saved<T>>> run_layers(const std::vector<const Layer<T>*>& layers,
                                                  const Batch& batch,
                                                  const std::vector<ForwardArrays<T>>& arrays,
                                                  Save save) {
  return forward(layers, batch, arrays, save);
}
template <class T>
std::vector<std::unique_ptr<Saved<T>>> run_layers(
    const std::vector<const FlexibleLayer<T>*>& layers, const Batch& batch,
    const std::vector<ForwardArrays<T>>& arrays, Save) {
  for (size_t k = 0; k < layers.size(); k++) {
    const ForwardArrays<T>& a = arrays[k];
    layers[k]->forward(batch, {a.x, a.h_0, a.c_0, a.y, a.h_n, a.c_n, {}}, false);
  }
  return {};
}

// False where the lengths have to be checked the long way.
bool read_lengths(const py::object& lengths, int64_t steps, int64_t batch, Ragged& to) {
  if (!is_plain<int64_t>(lengths)) return false;
  const auto array = py::reinterpret_borrow<py::array>(lengths);
  return array.ndim() == 1 && array.shape(0) == batch &&
         !to.read(static_cast<const int64_t*>(array.data()), steps, batch);
}

// States [count, B, width], which may be null, in the order of the rows.
template <class T>
const T* sort(const Ragged& ragged, const T* states, int64_t count, int64_t width, Buffer<T>& to) {
  if (!states) return nullptr;
  ragged.sort(states, count, width, to.grow(count * int64_t(ragged.order.size()) * width));
  return to.get();
}

template <class T, class Exchanged>
bool fits(const Exchanged& by, const py::object& value, const Shape& shape, View<T>& to) {
  return by.view(value, to) && to.has_shape(shape);
}
bool split(const py::object& pair, py::object& first, py::object& second) {
  if (!PyTuple_CheckExact(pair.ptr()) || PyTuple_GET_SIZE(pair.ptr()) != 2) return false;
  PyObject* items[] = {PyTuple_GET_ITEM(pair.ptr(), 0), PyTuple_GET_ITEM(pair.ptr(), 1)};
  first = py::reinterpret_borrow<py::object>(items[0]);
  second = py::reinterpret_borrow<py::object>(items[1]);
  return true;
}

// What a call of the short way leaves for its backward pass.
template <class T>
struct Kept {
  bool batched = true;
  int64_t steps = 0, batch = 0;
  Ragged ragged;
  std::vector<Buffer<T>> between;  // what layers hand on, which `saved` points to
  std::vector<std::unique_ptr<Saved<T>>> saved;
};

// Packed layers, called in one go where every argument already is as the kernels read it. The
// checks of the API cost more than the kernels of a small step; here they are a few comparisons,
// and what does not pass them takes the long way, where it is converted or named in an error.
template <class T, class AnyLayer = Layer<T>, class PyAnyLayer = PyLayer<T>>
class PyStack {
 public:
  explicit PyStack(std::vector<const AnyLayer*> layers) : layers_(std::move(layers)) {}
  explicit PyStack(const py::tuple& layers) : kept_(layers) {
    for (const py::handle layer : layers)
      layers_.push_back(&layer.cast<const PyAnyLayer&>().layer());
  }

  // (y, state_n) as the API returns them, or None where it has to be the long way. Saves what a
  // backward pass needs where it is told where. x and the state are NumPy's arrays, or tensors of
  // another library that tells where their memory is, and so are then the results.
  py::object forward(const py::object& x, const py::object& state, const py::object& out,
                     const py::object& lengths, Kept<T>* kept = nullptr) const {
    return like<T>(x, [&](const auto& by) { return forward(by, x, state, out, lengths, kept); });
  }

 private:
  // What a call reads and writes.
  struct Views {
    View<T> x, h_0, c_0, y, h_n, c_n;

    // Not where anything written meets anything else. A state may be updated in place.
    bool may_be_written() const {
      if (!y.writeable || !h_n.writeable || !c_n.writeable) return false;
      const T *begin[6], *end[6];
      int k = 0;
      for (const View<T>* view : {&x, &h_0, &c_0, &y, &h_n, &c_n}) {
        begin[k] = view->data;
        end[k++] = view->data ? view->data + view->size() : nullptr;
      }
      for (int w = 3; w < 6; w++)
        for (k = 0; k < 6; k++) {
          const bool in_place = k + 3 == w && k > 0 && begin[k] == begin[w];
          if (k != w && !in_place && begin[k] < end[w] && begin[w] < end[k]) return false;
        }
      return true;
    }
  };

  template <class Exchanged>
  py::object forward(const Exchanged& by, const py::object& x, const py::object& state,
                     const py::object& out, const py::object& lengths, Kept<T>* kept) const {
    const AnyLayer& first = *layers_.front();
    const int64_t I = first.input(), H = first.hidden(), P = first.outputs();
    const int64_t D = first.directions(), L = int64_t(layers_.size());
    const bool has_c = first.has_c();
    Views v;
    if (!by.view(x, v.x)) return py::none();
    const bool batched = v.x.dims == 3;
    if ((!batched && v.x.dims != 2) || v.x.shape[batched ? 2 : 1] != I) return py::none();
    const int64_t steps = v.x.shape[0], batch = batched ? v.x.shape[1] : 1;
    if (steps < 1 || double(steps) * double(batch * 8 * H * D) * sizeof(T) > double(PTRDIFF_MAX))
      return py::none();
    Ragged ragged;
    if (!lengths.is_none() && (!batched || !read_lengths(lengths, steps, batch, ragged)))
      return py::none();
    if (ragged.is_ragged() && (ragged.sizes.empty() || !std::is_same_v<AnyLayer, Layer<T>>))
      return py::none();
    const Shape y_shape = batched ? Shape{steps, batch, D * P} : Shape{steps, D * P};
    const Shape h_shape = batched ? Shape{L * D, batch, P} : Shape{L * D, P};
    const Shape c_shape = batched ? Shape{L * D, batch, H} : Shape{L * D, H};

    py::object h_0 = state, c_0 = py::none();
    if (has_c && !state.is_none() && !split(state, h_0, c_0)) return py::none();
    if ((!h_0.is_none() && !fits(by, h_0, h_shape, v.h_0)) ||
        (!c_0.is_none() && !fits(by, c_0, c_shape, v.c_0)))
      return py::none();
    py::object y = out, state_n, h_n, c_n = py::none();
    if (PyTuple_CheckExact(out.ptr())) {
      if (!split(out, y, state_n)) return py::none();
      h_n = state_n;
      if (has_c && !split(state_n, h_n, c_n)) return py::none();
      if (!fits(by, h_n, h_shape, v.h_n) || (has_c && !fits(by, c_n, c_shape, v.c_n)))
        return py::none();
    } else {
      if (out.is_none()) y = by.make(y_shape, v.y);
      h_n = state_n = by.make(h_shape, v.h_n);
      if (has_c) {
        c_n = by.make(c_shape, v.c_n);
        state_n = py::make_tuple(h_n, c_n);
      }
    }
    if (!out.is_none() && (!fits(by, y, y_shape, v.y) || !v.may_be_written())) return py::none();
    Kept<T> unused;
    Kept<T>& to = kept ? *kept : unused;
    to.batched = batched;
    to.steps = steps;
    to.batch = batch;
    to.ragged = std::move(ragged);
    run(v, kept ? Save::kAll : Save::kNothing, to);
    return py::make_tuple(y, state_n);
  }

  void run(const Views& v, Save save, Kept<T>& kept) const {
    const AnyLayer& first = *layers_.front();
    const Ragged& ragged = kept.ragged;
    const int64_t steps = kept.steps, batch = kept.batch;
    const int64_t D = first.directions(), P = first.outputs(), H = first.hidden();
    const int64_t states = D * int64_t(layers_.size());  // rows of h and c, for each of the batch
    ForwardArrays<T> a{v.x.data, v.h_0.data, v.c_0.data, nullptr, v.h_n.data, v.c_n.data};
    const Released released;
    const Batch b = ragged.batch(steps, batch);
    Buffer<T> sorted[4];
    if (ragged.is_ragged()) {
      std::fill_n(v.y.data + b.steps * batch * D * P, (steps - b.steps) * batch * D * P, T(0));
      a.h_0 = sort(ragged, a.h_0, states, P, sorted[0]);
      a.c_0 = sort(ragged, a.c_0, states, H, sorted[1]);
      a.h_n = sorted[2].grow(states * batch * P);
      if (a.c_n) a.c_n = sorted[3].grow(states * batch * H);
    }
    std::vector<ForwardArrays<T>> arrays;
    for (size_t k = 0; k < layers_.size(); k++) {
      const bool top = k + 1 == layers_.size();
      if (!top) kept.between.emplace_back(steps * batch * D * P);
      a.y = top ? v.y.data : kept.between.back().get();
      a.x_order = k == 0 ? ragged.row_order() : nullptr;
      a.y_order = top ? ragged.row_order() : nullptr;
      arrays.push_back(a);
      next_layer(a, D * batch * P, D * batch * H);
    }
    kept.saved = run_layers(layers_, b, arrays, save);
    if (ragged.is_ragged()) {
      ragged.unsort(sorted[2].get(), states, P, v.h_n.data);
      if (sorted[3].get()) ragged.unsort(sorted[3].get(), states, H, v.c_n.data);
    }
  }

  py::tuple kept_;
  std::vector<const AnyLayer*> layers_;
};

// Layers of weights that are not packed, one direction each; none where they have to be checked the
// long way. The arrays must outlive the layers. w_ih and w_hh may both be transposes of contiguous
// arrays. `places` are those of the gates, or none for our order.
template <class T>
std::vector<std::unique_ptr<Layer<T>>> layers_of(CellKind cell, const py::object& weights,
                                                 const std::vector<int>& places) {
  const int64_t G = kernels<T>(active_set()).cells[cell]->gates;
  const bool listed = PyList_CheckExact(weights.ptr());
  const py::ssize_t count = listed ? PyList_GET_SIZE(weights.ptr()) : 1;
  std::vector<std::unique_ptr<Layer<T>>> layers;
  for (py::ssize_t k = 0; k < count; k++) {
    PyObject* entry = listed ? PyList_GET_ITEM(weights.ptr(), k) : weights.ptr();
    if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) < 4) return {};
    if (PyTuple_CheckExact(entry) && PyTuple_GET_SIZE(entry) > 4) return {};  // may be too long
    const auto item = [&](py::ssize_t i) {
      return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(entry, i));
    };
    for (py::ssize_t i = 4; i < PyTuple_GET_SIZE(entry); i++)
      if (!item(i).is_none()) return {};
    const bool in_rows = is_plain<T>(item(0)) && is_plain<T>(item(1));
    if (!in_rows &&
        !(is_plain<T, py::array::f_style>(item(0)) && is_plain<T, py::array::f_style>(item(1))))
      return {};
    const auto w_ih = py::reinterpret_borrow<py::array>(item(0));
    const auto w_hh = py::reinterpret_borrow<py::array>(item(1));
    if (w_ih.ndim() != 2 || w_hh.ndim() != 2) return {};
    const int64_t rows = w_hh.shape(0), H = w_hh.shape(1), I = w_ih.shape(1);
    if (H < 1 || I < 1 || rows != G * H || w_ih.shape(0) != rows ||
        (k > 0 && (I != layers[0]->hidden() || H != I)))
      return {};
    const T* biases[2] = {};
    for (int i = 0; i < 2; i++) {
      const py::object bias = item(2 + i);
      if (bias.is_none()) continue;
      View<T> view;
      if (!fits(NumpyArrays<T>(), bias, {rows}, view)) return {};
      biases[i] = view.data;
    }
    const Weights<T> w{static_cast<const T*>(w_ih.data()), static_cast<const T*>(w_hh.data()),
                       biases[0], biases[1],
                       layout_of(!in_rows, places.data(), int64_t(places.size()), G)};
    layers.emplace_back(new Layer<T>(cell, {w}, I, H, false));
  }
  return layers;
}

template <class T>
std::vector<const Layer<T>*> borrowed(const std::vector<std::unique_ptr<Layer<T>>>& layers) {
  std::vector<const Layer<T>*> stack;
  for (const auto& layer : layers) stack.push_back(layer.get());
  return stack;
}

// Where x is, if it is an array or a tensor of this dtype that may be read as it is, or null.
template <class T>
const T* address(const py::object& x) {
  View<T> view;
  return like<T>(x, [&](const auto& by) { return by.view(x, view); }) ? view.data : nullptr;
}

// As PyStack::forward, for such weights.
template <class T>
py::object call(CellKind cell, const py::object& x, const py::object& weights,
                const py::object& state, const py::object& lengths,
                const std::vector<int>& places) {
  const auto layers = layers_of<T>(cell, weights, places);
  if (layers.empty()) return py::none();
  return PyStack<T>(borrowed(layers)).forward(x, state, py::none(), lengths);
}

// A forward pass of the short way, and the way back through it.
template <class T>
class PyTape {
 public:
  // (y, state_n, tape), or None where it has to be the long way.
  static py::object call(CellKind cell, const py::object& x, const py::object& weights,
                         const py::object& state, const py::object& lengths,
                         const std::vector<int>& places) {
    std::unique_ptr<PyTape> tape(new PyTape);
    tape->layers_ = layers_of<T>(cell, weights, places);
    if (tape->layers_.empty()) return py::none();
    tape->x_ = x;
    tape->x_at_ = address<T>(x);
    // The arrays, not the list, which the caller may change.
    tape->weights_ = PyList_CheckExact(weights.ptr()) ? py::tuple(weights) : weights;
    const py::object done =
        PyStack<T>(borrowed(tape->layers_)).forward(x, state, py::none(), lengths, &tape->kept_);
    if (done.is_none()) return done;
    const auto results = py::reinterpret_borrow<py::tuple>(done);
    return py::make_tuple(results[0], results[1], std::move(tape));
  }

  // (dx, [the gradients of each layer], dstate_0) as the API returns them. `checked` tells that dy
  // and dstate_n have been, and are batched. None where that has to be done first. dx and dh_0 are
  // None where they are not wanted. All are tensors where x was one.
  py::object backward(const py::object& dy, const py::object& dstate_n, bool checked, bool wants_dx,
                      bool wants_dh) const {
    // A tensor can be given other memory, and its own be gone.
    View<T> now;
    const bool read = like<T>(x_, [&](const auto& by) { return by.view(x_, now); });
    if (!read || now.data != x_at_ || now.size() != kept_.steps * kept_.batch * layers_[0]->input())
      return py::none();
    return like<T>(
        x_, [&](const auto& by) { return back(by, dy, dstate_n, checked, wants_dx, wants_dh); });
  }

 private:
  template <class Exchanged>
  py::object back(const Exchanged& by, const py::object& dy, const py::object& dstate_n,
                  bool checked, bool wants_dx, bool wants_dh) const {
    const Layer<T>& first = *layers_[0];
    const int64_t I = first.input(), H = first.hidden(), L = int64_t(layers_.size());
    const int64_t T_ = kept_.steps, B = kept_.batch;
    const bool batched = kept_.batched, has_c = first.has_c();
    const bool as_batch = batched || checked;
    const Shape y_shape = as_batch ? Shape{T_, B, H} : Shape{T_, H};
    const Shape h_shape = as_batch ? Shape{L, B, H} : Shape{L, H};
    const Shape x_shape = batched ? Shape{T_, B, I} : Shape{T_, I};
    const Shape state_shape = batched ? Shape{L, B, H} : Shape{L, H};
    py::object dh_n = dstate_n, dc_n = py::none();
    if (has_c && !dstate_n.is_none() && !split(dstate_n, dh_n, dc_n)) return py::none();
    View<T> of_y, of_h, of_c;
    if ((!dy.is_none() && !fits(by, dy, y_shape, of_y)) ||
        (!dh_n.is_none() && !fits(by, dh_n, h_shape, of_h)) ||
        (!dc_n.is_none() && !fits(by, dc_n, h_shape, of_c)))
      return py::none();

    const Ragged& ragged = kept_.ragged;
    const T *dh = of_h.data, *dc = of_c.data;
    Buffer<T> sorted[2];
    if (ragged.is_ragged()) {
      dh = sort(ragged, dh, L, H, sorted[0]);
      dc = sort(ragged, dc, L, H, sorted[1]);
    }
    std::vector<const Saved<T>*> saved;
    for (const auto& one : kept_.saved) saved.push_back(one.get());
    const py::tuple found = back_through<T>(by, borrowed(layers_), saved, x_shape, state_shape,
                                            of_y.data, dh, dc, wants_dx, wants_dh);
    const auto state_out = [&](const py::object& state) {
      if (!ragged.is_ragged()) return state;
      View<T> from, to;
      by.view(state, from);
      py::object unsorted = by.make(state_shape, to);
      ragged.unsort(from.data, L, H, to.data);
      return unsorted;
    };
    py::object dh_0 = found[2];
    if (wants_dh) dh_0 = state_out(dh_0);
    if (!has_c) return py::make_tuple(found[0], found[1], dh_0);
    return py::make_tuple(found[0], found[1], py::make_tuple(dh_0, state_out(found[3])));
  }

  std::vector<std::unique_ptr<Layer<T>>> layers_;
  py::object x_, weights_;  // kept alive for their pointers
  const T* x_at_ = nullptr;
  Kept<T> kept_;
};

}  // namespace
}  // namespace rnnfast
