// The Python module: arrays to pointers, the GIL released; nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "ops.hpp"
#include "threads.hpp"

namespace py = pybind11;

namespace rnnfast {
namespace {

// Releases the GIL. A daemon thread that wants it back while the interpreter is being finalized is
// ended by unwinding its stack (before Python 3.14), through destructors that touch Python objects.
// It sleeps here instead, as later versions of Python let it, until the process is gone.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  ~Released() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* state_;
};

// The API has checked every array. This is the last fence before pointers: dtype, layout, size.
template <class T>
T* pointer(const py::array& array, int64_t size, const char* name) {
  if (!py::isinstance<py::array_t<std::remove_const_t<T>, py::array::c_style>>(array) ||
      array.size() != size)
    throw std::invalid_argument(std::string(name) + ": unexpected dtype, layout or size");
  if constexpr (std::is_const_v<T>)
    return static_cast<T*>(array.data());
  else
    return static_cast<T*>(const_cast<py::array&>(array).mutable_data());
}

template <class T>
T* pointer(const std::optional<py::array>& array, int64_t size, const char* name) {
  return array ? pointer<T>(*array, size, name) : nullptr;
}

// A NumPy array itself, of this dtype, contiguous and aligned.
template <class T>
bool is_plain(const py::object& value) {
  return Py_TYPE(value.ptr()) == py::detail::npy_api::get().PyArray_Type_ &&
         py::isinstance<py::array_t<T, py::array::c_style>>(value) &&
         py::reinterpret_borrow<py::array>(value).flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_;
}

CellKind cell_kind(const std::string& name) {
  const char* names[] = {"lstm",     "gru_after",   "gru_before", "rnn_tanh",
                         "rnn_relu", "rnn_sigmoid", "gated"};
  for (int k = 0; k < kCellKinds; k++)
    if (name == names[k]) return CellKind(k);
  throw std::invalid_argument("unknown cell " + name);
}

using Direction =
    std::tuple<py::array, py::array, std::optional<py::array>, std::optional<py::array>>;

template <class T>
struct PySaved {
  std::unique_ptr<Saved<T>> saved;
  py::array x;  // kept alive for its pointer
};

template <class T>
class PyLayer {
 public:
  PyLayer(const std::string& cell, std::vector<Direction> directions, bool reuse,
          const std::string& precision)
      : arrays_(std::move(directions)), layer_(make(cell, arrays_, reuse, precision)) {}

  using Stack = std::vector<const PyLayer*>;

  // Layers one on top of the other; ys are their outputs. What each saved, or nothing.
  static std::vector<PySaved<T>> forward(const Stack& layers, const py::array& x, int64_t steps,
                                         int64_t batch, const std::optional<py::array>& sizes,
                                         const std::optional<py::array>& h_0,
                                         const std::optional<py::array>& c_0,
                                         const std::vector<py::array>& ys, const py::array& h_n,
                                         const std::optional<py::array>& c_n,
                                         const std::string& save) {
    const size_t count = layers.size();
    if (count == 0 || ys.size() != count) throw std::invalid_argument("ys: one for each layer");
    Batch b{steps, batch, pointer<const int64_t>(sizes, steps, "batch_sizes")};
    int64_t rows = steps * batch;
    if (b.sizes) {
      rows = 0;
      int64_t before = batch;
      for (int64_t t = 0; t < steps; t++) {
        if (b.sizes[t] < 1 || b.sizes[t] > before)
          throw std::invalid_argument("batch_sizes: must not grow");
        before = b.sizes[t];
        rows += before;
      }
    }
    const auto& first = layers[0]->layer_;
    const int64_t D = first.directions(), H = first.hidden(), state = D * batch * H;
    const int64_t states = state * int64_t(count);
    if (first.cell().has_c != c_n.has_value())
      throw std::invalid_argument("c_n: does not fit the cell");
    ForwardArrays<T> a{pointer<const T>(x, rows * first.input(), "x"),
                       pointer<const T>(h_0, states, "h_0"),
                       pointer<const T>(c_0, states, "c_0"),
                       nullptr,
                       pointer<T>(h_n, states, "h_n"),
                       pointer<T>(c_n, states, "c_n")};
    std::vector<ForwardArrays<T>> arrays;
    for (size_t k = 0; k < count; k++) {
      layers[k]->check_fits(k > 0 ? layers[k - 1] : nullptr);
      a.y = pointer<T>(ys[k], rows * D * H, "y");
      arrays.push_back(a);
      next_layer(a, state);
    }
    const Save how = save == "all"         ? Save::kAll
                     : save == "recompute" ? Save::kRecompute
                                           : Save::kNothing;
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

  // dx, the gradients of every direction of every layer in order, dh_0 and dc_0.
  static py::tuple backward(const Stack& layers, const std::vector<const PySaved<T>*>& kept,
                            const std::optional<py::array>& dy,
                            const std::optional<py::array>& dh_n,
                            const std::optional<py::array>& dc_n) {
    const size_t count = layers.size();
    if (count == 0 || kept.size() != count) throw std::invalid_argument("saved: one a layer");
    const auto& first = layers[0]->layer_;
    const Saved<T>& bottom = *kept[0]->saved;
    const int64_t D = first.directions(), H = first.hidden(), G = first.cell().gates;
    const int64_t B = bottom.batch, N = bottom.offset[bottom.steps], L = int64_t(count);
    const int64_t state = D * B * H;
    const auto make = [](std::vector<py::ssize_t> shape, T** pointer) {
      py::array_t<T> array(std::move(shape));
      *pointer = array.mutable_data();
      return array;
    };
    BackwardArrays<T> a{};
    const T* top = pointer<const T>(dy, N * D * H, "dy");
    a.dh_n = pointer<const T>(dh_n, L * state, "dh_n");
    a.dc_n = pointer<const T>(dc_n, L * state, "dc_n");
    py::array_t<T> dh_0 = make({L * D, B, H}, &a.dh_0);
    py::object dc_0 = py::none();
    if (first.cell().has_c) dc_0 = make({L * D, B, H}, &a.dc_0);
    py::array_t<T> dx = make({N, first.input()}, &a.dx);
    py::list dweights;
    std::vector<BackwardArrays<T>> arrays;
    std::vector<Buffer<T>> between;  // the gradients of what layers hand on
    std::vector<const Saved<T>*> saved;
    for (size_t k = 0; k < count; k++) {
      const Layer<T>& layer = layers[k]->layer_;
      saved.push_back(kept[k]->saved.get());
      if (k > 0) {
        between.emplace_back(N * D * H);
        a.dx = between.back().get();
        arrays.back().dy = a.dx;
      }
      a.dy = top;
      for (int d = 0; d < D; d++) {
        auto& w = a.dweights[d];
        w = {};
        py::object b_ih = py::none(), b_hh = py::none();
        py::array_t<T> w_ih = make({G * H, layer.input()}, &w.w_ih);
        py::array_t<T> w_hh = make({G * H, H}, &w.w_hh);
        if (layer.weights(d).b_ih) b_ih = make({G * H}, &w.b_ih);
        if (layer.weights(d).b_hh) b_hh = make({G * H}, &w.b_hh);
        dweights.append(py::make_tuple(w_ih, w_hh, b_ih, b_hh));
      }
      arrays.push_back(a);
      for (const T** array : {&a.dh_n, &a.dc_n})
        if (*array) *array += state;
      a.dh_0 += state;
      if (a.dc_0) a.dc_0 += state;
    }
    {
      const Released released;
      rnnfast::backward(plain(layers), saved, arrays);
    }
    return py::make_tuple(dx, dweights, dh_0, dc_0);
  }

  // From the arrays of one layer to those of the next.
  static void next_layer(ForwardArrays<T>& a, int64_t state) {
    a.x = a.y;
    for (const T** array : {&a.h_0, &a.c_0})
      if (*array) *array += state;
    a.h_n += state;
    if (a.c_n) a.c_n += state;
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
  static std::vector<const Layer<T>*> plain(const Stack& layers) {
    std::vector<const Layer<T>*> found;
    for (const PyLayer* layer : layers) found.push_back(&layer->layer_);
    return found;
  }

  static Layer<T> make(const std::string& cell, const std::vector<Direction>& directions,
                       bool reuse, const std::string& precision) {
    const CellKind kind = cell_kind(cell);
    const Precision p = precision == "bfloat16" ? Precision::kBfloat16
                        : precision == "int8"   ? Precision::kInt8
                                                : Precision::kFull;
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

// Packed layers, called in one go where every argument already is as the kernels read it. The
// checks of the API cost more than the kernels of a small step; here they are a few comparisons,
// and what does not pass them takes the long way, where it is converted or named in an error.
template <class T>
class PyStack {
 public:
  explicit PyStack(std::vector<const Layer<T>*> layers) : layers_(std::move(layers)) {}
  explicit PyStack(const py::tuple& layers) : kept_(layers) {
    for (const py::handle layer : layers)
      layers_.push_back(&layer.cast<const PyLayer<T>&>().layer());
  }

  // (y, state_n) as the API returns them, or None where it has to be the long way.
  py::object forward(const py::object& x, const py::object& state, const py::object& out) const {
    const Layer<T>& first = *layers_.front();
    const int64_t I = first.input(), H = first.hidden(), D = first.directions();
    const int64_t L = int64_t(layers_.size());
    const bool has_c = first.cell().has_c;
    if (!plain(x)) return py::none();
    const auto x_array = py::reinterpret_borrow<py::array>(x);
    const bool batched = x_array.ndim() == 3;
    if ((!batched && x_array.ndim() != 2) || x_array.shape(batched ? 2 : 1) != I) return py::none();
    const int64_t steps = x_array.shape(0), batch = batched ? x_array.shape(1) : 1;
    if (steps < 1 || double(steps) * double(batch * 8 * H * D) * sizeof(T) > double(PTRDIFF_MAX))
      return py::none();
    const Shape y_shape = batched ? Shape{steps, batch, D * H} : Shape{steps, D * H};
    const Shape state_shape = batched ? Shape{L * D, batch, H} : Shape{L * D, H};

    py::object h_0 = state, c_0 = py::none();
    if (has_c && !state.is_none() && !split(state, h_0, c_0)) return py::none();
    py::object y = out, state_n, h_n, c_n = py::none();
    if (PyTuple_CheckExact(out.ptr())) {
      if (!split(out, y, state_n)) return py::none();
      h_n = state_n;
      if (has_c && !split(state_n, h_n, c_n)) return py::none();
    } else {
      if (out.is_none()) y = py::array_t<T>(y_shape);
      h_n = state_n = py::array_t<T>(state_shape);
      if (has_c) {
        c_n = py::array_t<T>(state_shape);
        state_n = py::make_tuple(h_n, c_n);
      }
    }
    if ((!h_0.is_none() && !fits(h_0, state_shape)) || (!c_0.is_none() && !fits(c_0, state_shape)))
      return py::none();
    if (!out.is_none()) {
      if (!fits(y, y_shape, true) || !fits(h_n, state_shape, true) ||
          (has_c && !fits(c_n, state_shape, true)) || overlap({x, h_0, c_0}, {y, h_n, c_n}))
        return py::none();
    }
    run(x, h_0, c_0, y, h_n, c_n, steps, batch);
    return py::make_tuple(y, state_n);
  }

 private:
  using Shape = std::vector<py::ssize_t>;

  static bool plain(const py::object& value) { return is_plain<T>(value); }
  static bool fits(const py::object& value, const Shape& shape, bool writeable = false) {
    if (!plain(value)) return false;
    const auto array = py::reinterpret_borrow<py::array>(value);
    return array.ndim() == int(shape.size()) &&
           std::equal(shape.begin(), shape.end(), array.shape()) &&
           (!writeable || array.writeable());
  }
  static bool split(const py::object& pair, py::object& first, py::object& second) {
    if (!PyTuple_CheckExact(pair.ptr()) || PyTuple_GET_SIZE(pair.ptr()) != 2) return false;
    PyObject* items[] = {PyTuple_GET_ITEM(pair.ptr(), 0), PyTuple_GET_ITEM(pair.ptr(), 1)};
    first = py::reinterpret_borrow<py::object>(items[0]);
    second = py::reinterpret_borrow<py::object>(items[1]);
    return true;
  }
  static T* data(const py::object& array) {
    if (array.is_none()) return nullptr;
    return static_cast<T*>(const_cast<void*>(py::reinterpret_borrow<py::array>(array).data()));
  }

  // Whether anything written (y, h_n, c_n) meets anything else. A state may be updated in place.
  static bool overlap(std::array<py::object, 3> read, std::array<py::object, 3> written) {
    const T *begin[6], *end[6];
    for (int k = 0; k < 6; k++) {
      const py::object& array = k < 3 ? read[k] : written[k - 3];
      begin[k] = data(array);
      end[k] = begin[k] ? begin[k] + py::reinterpret_borrow<py::array>(array).size() : nullptr;
    }
    for (int w = 3; w < 6; w++)
      for (int k = 0; k < 6; k++) {
        const bool in_place = k + 3 == w && k > 0 && begin[k] == begin[w];
        if (k != w && !in_place && begin[k] < end[w] && begin[w] < end[k]) return true;
      }
    return false;
  }

  void run(const py::object& x, const py::object& h_0, const py::object& c_0, const py::object& y,
           const py::object& h_n, const py::object& c_n, int64_t steps, int64_t batch) const {
    const int64_t H = layers_.front()->hidden(), D = layers_.front()->directions();
    const int64_t state = D * batch * H;
    ForwardArrays<T> a{data(x), data(h_0), data(c_0), nullptr, data(h_n), data(c_n)};
    T* const last = data(y);
    const Released released;
    std::vector<Buffer<T>> between;
    std::vector<ForwardArrays<T>> arrays;
    for (size_t k = 0; k < layers_.size(); k++) {
      if (k + 1 < layers_.size()) between.emplace_back(steps * batch * D * H);
      a.y = k + 1 < layers_.size() ? between.back().get() : last;
      arrays.push_back(a);
      PyLayer<T>::next_layer(a, state);
    }
    rnnfast::forward(layers_, {steps, batch, nullptr}, arrays, Save::kNothing);
  }

  py::tuple kept_;
  std::vector<const Layer<T>*> layers_;
};

template <class T>
void register_dtype(py::module_& m, const char* layer, const char* saved, const char* stack) {
  py::class_<PySaved<T>>(m, saved);
  py::class_<PyLayer<T>>(m, layer)
      .def(py::init<const std::string&, std::vector<Direction>, bool, const std::string&>())
      .def_static("forward", &PyLayer<T>::forward)
      .def_static("backward", &PyLayer<T>::backward);
  py::class_<PyStack<T>>(m, stack)
      .def(py::init<const py::tuple&>())
      .def("forward", &PyStack<T>::forward);
}

template <class T>
py::array_t<T> evaluate(const std::string& function, const py::array_t<T, py::array::c_style>& x) {
  const int which = function == "exp" ? 0 : function == "sigmoid" ? 1 : function == "tanh" ? 2 : -1;
  if (which < 0) throw std::invalid_argument("function: expected exp, sigmoid or tanh");
  py::array_t<T> y(x.size());
  kernels<T>(active_set()).evaluate(which, x.data(), x.size(), y.mutable_data());
  return y;
}

// The same for weights that are not packed, one direction a layer. None where they have to be
// checked the long way.
template <class T>
py::object call(CellKind cell, const py::object& x, const py::object& weights,
                const py::object& state) {
  const int64_t G = kernels<T>(active_set()).cells[cell]->gates;
  const bool listed = PyList_CheckExact(weights.ptr());
  const py::ssize_t count = listed ? PyList_GET_SIZE(weights.ptr()) : 1;
  std::vector<std::unique_ptr<Layer<T>>> layers;
  std::vector<const Layer<T>*> stack;
  for (py::ssize_t k = 0; k < count; k++) {
    PyObject* entry = listed ? PyList_GET_ITEM(weights.ptr(), k) : weights.ptr();
    if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) < 4) return py::none();
    const auto item = [&](py::ssize_t i) {
      return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(entry, i));
    };
    for (py::ssize_t i = 4; i < PyTuple_GET_SIZE(entry); i++)
      if (!item(i).is_none()) return py::none();
    if (!is_plain<T>(item(0)) || !is_plain<T>(item(1))) return py::none();
    const auto w_ih = py::reinterpret_borrow<py::array>(item(0));
    const auto w_hh = py::reinterpret_borrow<py::array>(item(1));
    if (w_ih.ndim() != 2 || w_hh.ndim() != 2) return py::none();
    const int64_t rows = w_hh.shape(0), H = w_hh.shape(1), I = w_ih.shape(1);
    if (H < 1 || I < 1 || rows != G * H || w_ih.shape(0) != rows ||
        (k > 0 && (I != stack[0]->hidden() || H != I)))
      return py::none();
    const T* biases[2] = {};
    for (int i = 0; i < 2; i++) {
      const py::object bias = item(2 + i);
      if (bias.is_none()) continue;
      if (!is_plain<T>(bias)) return py::none();
      const auto array = py::reinterpret_borrow<py::array>(bias);
      if (array.ndim() != 1 || array.shape(0) != rows) return py::none();
      biases[i] = static_cast<const T*>(array.data());
    }
    const Weights<T> w{static_cast<const T*>(w_ih.data()), static_cast<const T*>(w_hh.data()),
                       biases[0], biases[1]};
    layers.emplace_back(new Layer<T>(cell, {w}, I, H, false));
    stack.push_back(layers.back().get());
  }
  if (stack.empty()) return py::none();
  return PyStack<T>(std::move(stack)).forward(x, state, py::none());
}

// a b, or a^T b, of two matrices, for benchmarks of the products under the kernels.
template <class T, bool kTransposed>
py::array_t<T> product(const py::array_t<T, py::array::c_style>& a,
                       const py::array_t<T, py::array::c_style>& b) {
  if (a.ndim() != 2 || b.ndim() != 2 || a.shape(kTransposed ? 0 : 1) != b.shape(0))
    throw std::invalid_argument("a, b: shapes do not fit");
  const int64_t m = a.shape(kTransposed ? 1 : 0), n = b.shape(1), k = b.shape(0);
  py::array_t<T> c({m, n});
  const T *of_a = a.data(), *of_b = b.data();
  T* to = c.mutable_data();
  const Released released;
  multiply(of_a, of_b, m, n, k, kTransposed, to);
  return c;
}

}  // namespace
}  // namespace rnnfast

PYBIND11_MODULE(_native, m) {
  using namespace rnnfast;
  m.attr("version") = RNNFAST_VERSION;
  active_set();
  set_thread_count(default_thread_count());
  register_dtype<float>(m, "LayerF32", "SavedF32", "StackF32");
  register_dtype<double>(m, "LayerF64", "SavedF64", "StackF64");
  m.def("call", [](const std::string& cell, const py::object& x, const py::object& weights,
                   const py::object& state) {
    const CellKind kind = cell_kind(cell);
    if (is_plain<float>(x)) return call<float>(kind, x, weights, state);
    if (is_plain<double>(x)) return call<double>(kind, x, weights, state);
    return py::object(py::none());
  });
  m.def("set_num_threads", &set_thread_count);
  m.def("get_num_threads", &thread_count);
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const InstructionSet* set : available_sets()) names.emplace_back(set->name);
    return names;
  });
  m.def("get_isa", [] { return std::string(active_set().name); });
  m.def("set_isa", &use_set);
  m.def("evaluate", &evaluate<float>, py::arg().noconvert(), py::arg().noconvert());
  m.def("evaluate", &evaluate<double>, py::arg().noconvert(), py::arg().noconvert());
  m.def("multiply_nn", &product<float, false>, py::arg().noconvert(), py::arg().noconvert());
  m.def("multiply_nn", &product<double, false>, py::arg().noconvert(), py::arg().noconvert());
  m.def("multiply_tn", &product<float, true>, py::arg().noconvert(), py::arg().noconvert());
  m.def("multiply_tn", &product<double, true>, py::arg().noconvert(), py::arg().noconvert());
}
