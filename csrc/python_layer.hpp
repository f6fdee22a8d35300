// A layer as Python sees it: arrays to pointers, the GIL released; nothing else.
#pragma once

#include <pybind11/stl.h>

#include <initializer_list>

#include "dispatch.hpp"
#include "ops.hpp"
#include "python_arrays.hpp"

namespace rnnfast {
namespace {

// The index of a word among those that are allowed.
int one_of(const std::string& word, std::initializer_list<const char*> allowed, const char* name) {
  const auto found = std::find(allowed.begin(), allowed.end(), word);
  if (found == allowed.end())
    throw std::invalid_argument(std::string(name) + ": unexpected '" + word + "'");
  return int(found - allowed.begin());
}

// All rows of a batch.
int64_t count_checked(const Batch& b) {
  if (!b.sizes) return b.steps * b.batch;
  int64_t rows = 0, before = b.batch;
  for (int64_t t = 0; t < b.steps; t++) {
    if (b.sizes[t] < 1 || b.sizes[t] > before)
      throw std::invalid_argument("batch_sizes: must not grow");
    before = b.sizes[t];
    rows += before;
  }
  return rows;
}

CellKind cell_kind(const std::string& name) {
  return CellKind(one_of(
      name, {"lstm", "gru_after", "gru_before", "rnn_tanh", "rnn_relu", "rnn_sigmoid", "gated"},
      "cell"));
}

using Direction =
    std::tuple<py::array, py::array, std::optional<py::array>, std::optional<py::array>>;

// From the arrays of one layer to those of the next; h and c: numbers of a layer's state.
template <class T>
void next_layer(ForwardArrays<T>& a, int64_t h, int64_t c) {
  a.x = a.y;
  if (a.h_0) a.h_0 += h;
  if (a.c_0) a.c_0 += c;
  a.h_n += h;
  if (a.c_n) a.c_n += c;
}

template <class T>
struct PySaved {
  std::unique_ptr<Saved<T>> saved;
  py::array x;  // kept alive for its pointer
};

// Clears the steps of a padded array that no row reaches.
template <class T>
void clear_rest(T* array, int64_t rows, int64_t all, int64_t width) {
  std::fill_n(array + rows * width, (all - rows) * width, T(0));
}

// dx, the gradients of every direction of every layer in order, dh_0 and dc_0, made `by`
// NumpyArrays or others. x_shape is that of dx, (rows, I) or with more axes, where the rows are
// those of x and dy, packed or padded as `saved` has it; state_shape that of both states. dy, dh_n
// and dc_n may be null. dx and dh_0 are None where they are not wanted.
template <class T, class Exchanged>
py::tuple back_through(const Exchanged& by, const std::vector<const Layer<T>*>& layers,
                       const std::vector<const Saved<T>*>& saved, const Shape& x_shape,
                       const Shape& state_shape, const T* dy, const T* dh_n, const T* dc_n,
                       bool wants_dx = true, bool wants_dh = true) {
  const Layer<T>& first = *layers[0];
  const Saved<T>& bottom = *saved[0];
  const int64_t D = first.directions(), H = first.hidden(), G = first.cell().gates;
  const int64_t B = bottom.batch, N = bottom.offset[bottom.steps];
  const int64_t state = D * B * H;
  const auto make = [&by](const Shape& shape, T** pointer, bool transposed = false) {
    View<T> view;
    py::object made = by.make(shape, view, transposed);
    *pointer = view.data;
    return made;
  };
  BackwardArrays<T> a{};
  a.dh_n = dh_n;
  a.dc_n = dc_n;
  py::object dh_0 = py::none(), dc_0 = py::none(), dx = py::none();
  if (wants_dh) dh_0 = make(state_shape, &a.dh_0);
  if (first.cell().has_c) dc_0 = make(state_shape, &a.dc_0);
  if (wants_dx) dx = make(x_shape, &a.dx);
  if (wants_dx && !bottom.x_order.empty()) {
    int64_t rows = 1;
    for (size_t d = 0; d + 1 < x_shape.size(); d++) rows *= x_shape[d];
    clear_rest(a.dx, bottom.steps * B, rows, first.input());
  }
  py::list dweights;
  std::vector<BackwardArrays<T>> arrays;
  std::vector<Buffer<T>> between;  // the gradients of what layers hand on
  for (size_t k = 0; k < layers.size(); k++) {
    if (k > 0) {
      between.emplace_back(N * D * H);
      a.dx = between.back().get();
      arrays.back().dy = a.dx;
    }
    a.dy = dy;
    for (int d = 0; d < D; d++) {
      auto& w = a.dweights[d];
      w = {};
      py::object b_ih = py::none(), b_hh = py::none();
      const Weights<T>& given = layers[k]->weights(d);
      py::object w_ih = make({G * H, layers[k]->input()}, &w.w_ih, given.layout.transposed);
      py::object w_hh = make({G * H, H}, &w.w_hh, given.layout.transposed);
      if (given.b_ih) b_ih = make({G * H}, &w.b_ih);
      if (given.b_hh) b_hh = make({G * H}, &w.b_hh);
      dweights.append(py::make_tuple(w_ih, w_hh, b_ih, b_hh));
    }
    arrays.push_back(a);
    for (const T** array : {&a.dh_n, &a.dc_n})
      if (*array) *array += state;
    if (a.dh_0) a.dh_0 += state;
    if (a.dc_0) a.dc_0 += state;
  }
  {
    const Released released;
    rnnfast::backward(layers, saved, arrays);
  }
  return py::make_tuple(dx, dweights, dh_0, dc_0);
}

template <class T>
class PyLayer {
 public:
  PyLayer(const std::string& cell, std::vector<Direction> directions, bool reuse,
          const std::string& precision)
      : arrays_(std::move(directions)), layer_(make(cell, arrays_, reuse, precision)) {}

  using Stack = std::vector<const PyLayer*>;

  // Layers one on top of the other; ys are their outputs. What each saved, or nothing. With an
  // order [B], x and the last y are padded, see ForwardArrays.
  static std::vector<PySaved<T>> forward(const Stack& layers, const py::array& x, int64_t steps,
                                         int64_t batch, const std::optional<py::array>& sizes,
                                         const std::optional<py::array>& order,
                                         const std::optional<py::array>& h_0,
                                         const std::optional<py::array>& c_0,
                                         const std::vector<py::array>& ys, const py::array& h_n,
                                         const std::optional<py::array>& c_n,
                                         const std::string& save) {
    const size_t count = layers.size();
    if (count == 0 || ys.size() != count) throw std::invalid_argument("ys: one for each layer");
    const Batch b{steps, batch, pointer<const int64_t>(sizes, steps, "batch_sizes")};
    const int64_t rows = count_checked(b);
    const auto& first = layers[0]->layer_;
    const int64_t D = first.directions(), H = first.hidden(), state = D * batch * H;
    const int64_t states = state * int64_t(count);
    const int64_t* x_order = order_checked(order, batch);
    const int64_t padded = order ? x.shape(0) : rows;  // rows of x and of the last y
    if (padded < (order ? steps * batch : rows)) throw std::invalid_argument("x: too few rows");
    if (first.cell().has_c != c_n.has_value())
      throw std::invalid_argument("c_n: does not fit the cell");
    ForwardArrays<T> a{pointer<const T>(x, padded * first.input(), "x"),
                       pointer<const T>(h_0, states, "h_0"),
                       pointer<const T>(c_0, states, "c_0"),
                       nullptr,
                       pointer<T>(h_n, states, "h_n"),
                       pointer<T>(c_n, states, "c_n")};
    std::vector<ForwardArrays<T>> arrays;
    for (size_t k = 0; k < count; k++) {
      layers[k]->check_fits(k > 0 ? layers[k - 1] : nullptr);
      const bool top = k + 1 == count;
      a.y = pointer<T>(ys[k], (top ? padded : rows) * D * H, "y");
      a.x_order = k == 0 ? x_order : nullptr;
      a.y_order = top ? x_order : nullptr;
      if (a.y_order) clear_rest(a.y, steps * batch, padded, D * H);
      arrays.push_back(a);
      next_layer(a, state, state);
    }
    const Save how = Save(one_of(save, {"", "all", "recompute"}, "save"));
    std::vector<std::unique_ptr<Saved<T>>> saved;
    {
      const Released released;
      saved = rnnfast::forward(plain(layers), b, arrays, how);
    }
    std::vector<PySaved<T>> kept;
    if (how != Save::kNothing)
      for (size_t k = 0; k < count; k++)
        kept.push_back({std::move(saved[k]), k > 0 ? ys[k - 1] : x});
    return kept;
  }

  // As `back_through`.
  static py::tuple backward(const Stack& layers, const std::vector<const PySaved<T>*>& kept,
                            const std::optional<py::array>& dy,
                            const std::optional<py::array>& dh_n,
                            const std::optional<py::array>& dc_n) {
    const size_t count = layers.size();
    if (count == 0 || kept.size() != count) throw std::invalid_argument("saved: one a layer");
    std::vector<const Saved<T>*> saved;
    for (const PySaved<T>* one : kept) saved.push_back(one->saved.get());
    const Saved<T>& bottom = *saved[0];
    const bool in_order = !bottom.x_order.empty();
    const int64_t rows = in_order ? kept[0]->x.shape(0) : bottom.offset[bottom.steps];
    const Layer<T>& first = layers[0]->layer_;
    const int64_t width = first.directions() * first.hidden();
    const int64_t states = int64_t(count) * bottom.batch * width;
    const Shape x_shape{rows, first.input()};
    const Shape state_shape{int64_t(count) * first.directions(), bottom.batch, first.hidden()};
    return back_through<T>(NumpyArrays<T>(), plain(layers), saved, x_shape, state_shape,
                           pointer<const T>(dy, rows * width, "dy"),
                           pointer<const T>(dh_n, states, "dh_n"),
                           pointer<const T>(dc_n, states, "dc_n"));
  }

  const Layer<T>& layer() const { return layer_; }

 private:
  void check_fits(const PyLayer* below) const {
    if (below && (layer_.input() != below->layer_.directions() * below->layer_.hidden() ||
                  layer_.hidden() != below->layer_.hidden() ||
                  layer_.directions() != below->layer_.directions() ||
                  &layer_.cell() != &below->layer_.cell()))
      throw std::invalid_argument("layers: do not fit");
  }
  static const int64_t* order_checked(const std::optional<py::array>& order, int64_t batch) {
    const int64_t* rows = pointer<const int64_t>(order, batch, "order");
    for (int64_t b = 0; rows && b < batch; b++)
      if (rows[b] < 0 || rows[b] >= batch) throw std::invalid_argument("order: unexpected row");
    return rows;
  }
  static std::vector<const Layer<T>*> plain(const Stack& layers) {
    std::vector<const Layer<T>*> found;
    for (const PyLayer* layer : layers) found.push_back(&layer->layer_);
    return found;
  }

  static Layer<T> make(const std::string& cell, const std::vector<Direction>& directions,
                       bool reuse, const std::string& precision) {
    const CellKind kind = cell_kind(cell);
    const Precision p = Precision(one_of(precision, {"", "bfloat16", "int8"}, "precision"));
    if (p != Precision::kFull && (sizeof(T) != sizeof(float) || !reuse))
      throw std::invalid_argument("precision: " + precision + " is for reuse and float32");
    const CellKernels<T>& k = *kernels<T>(active_set()).cells[kind];
    if (directions.empty() || directions.size() > 2)
      throw std::invalid_argument("directions: expected one or two");
    const py::array& first = std::get<1>(directions[0]);
    const int64_t rows = first.shape(0), H = first.shape(1),
                  I = std::get<0>(directions[0]).shape(1);
    if (rows != k.gates * H) throw std::invalid_argument("w_hh: does not fit the cell");
    std::vector<Weights<T>> weights;
    for (const auto& [w_ih, w_hh, b_ih, b_hh] : directions)
      weights.push_back(
          {pointer<const T>(w_ih, rows * I, "w_ih"), pointer<const T>(w_hh, rows * H, "w_hh"),
           pointer<const T>(b_ih, rows, "b_ih"), pointer<const T>(b_hh, rows, "b_hh")});
    const Released released;
    return Layer<T>(kind, std::move(weights), I, H, reuse, p);
  }

  std::vector<Direction> arrays_;  // kept alive for their pointers
  Layer<T> layer_;
};

}  // namespace
}  // namespace rnnfast
