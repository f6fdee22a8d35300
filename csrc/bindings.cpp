// The Python module: arrays to pointers, the GIL released; nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

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
  PyLayer(const std::string& cell, std::vector<Direction> directions, bool reuse)
      : arrays_(std::move(directions)), layer_(make(cell, arrays_, reuse)) {}

  std::optional<PySaved<T>> forward(const py::array& x, int64_t steps, int64_t batch,
                                    const std::optional<py::array>& sizes,
                                    const std::optional<py::array>& h_0,
                                    const std::optional<py::array>& c_0, const py::array& y,
                                    const py::array& h_n, const std::optional<py::array>& c_n,
                                    bool save) const {
    const int64_t D = layer_.directions(), H = layer_.hidden();
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
    const int64_t state = D * batch * H;
    if (layer_.cell().has_c != c_n.has_value())
      throw std::invalid_argument("c_n: does not fit the cell");
    const ForwardArrays<T> a{pointer<const T>(x, rows * layer_.input(), "x"),
                             pointer<const T>(h_0, state, "h_0"),
                             pointer<const T>(c_0, state, "c_0"),
                             pointer<T>(y, rows * D * H, "y"),
                             pointer<T>(h_n, state, "h_n"),
                             pointer<T>(c_n, state, "c_n")};
    std::unique_ptr<Saved<T>> saved;
    {
      const Released released;
      saved = layer_.forward(b, a, save);
    }
    if (!save) return std::nullopt;
    return PySaved<T>{std::move(saved), x};
  }

  py::tuple backward(const PySaved<T>& kept, const std::optional<py::array>& dy,
                     const std::optional<py::array>& dh_n,
                     const std::optional<py::array>& dc_n) const {
    const Saved<T>& saved = *kept.saved;
    const int64_t D = layer_.directions(), I = layer_.input(), H = layer_.hidden();
    const int64_t G = layer_.cell().gates, B = saved.batch, N = saved.offset[saved.steps];
    const int64_t state = D * B * H;
    BackwardArrays<T> a{};
    a.dy = pointer<const T>(dy, N * D * H, "dy");
    a.dh_n = pointer<const T>(dh_n, state, "dh_n");
    a.dc_n = pointer<const T>(dc_n, state, "dc_n");
    const auto make = [](std::vector<py::ssize_t> shape, T** pointer) {
      py::array_t<T> array(std::move(shape));
      *pointer = array.mutable_data();
      return array;
    };
    py::array_t<T> dx = make({N, I}, &a.dx);
    py::list dweights;
    for (int d = 0; d < D; d++) {
      auto& w = a.dweights[d];
      py::object b_ih = py::none(), b_hh = py::none();
      py::array_t<T> w_ih = make({G * H, I}, &w.w_ih), w_hh = make({G * H, H}, &w.w_hh);
      if (layer_.weights(d).b_ih) b_ih = make({G * H}, &w.b_ih);
      if (layer_.weights(d).b_hh) b_hh = make({G * H}, &w.b_hh);
      dweights.append(py::make_tuple(w_ih, w_hh, b_ih, b_hh));
    }
    py::array_t<T> dh_0 = make({D, B, H}, &a.dh_0);
    py::object dc_0 = py::none();
    if (layer_.cell().has_c) dc_0 = make({D, B, H}, &a.dc_0);
    {
      const Released released;
      layer_.backward(saved, a);
    }
    return py::make_tuple(dx, dweights, dh_0, dc_0);
  }

  int directions() const { return layer_.directions(); }

 private:
  static Layer<T> make(const std::string& cell, const std::vector<Direction>& directions,
                       bool reuse) {
    const CellKind kind = cell_kind(cell);
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
    return Layer<T>(kind, std::move(weights), I, H, reuse);
  }

  std::vector<Direction> arrays_;  // kept alive for their pointers
  Layer<T> layer_;
};

template <class T>
void register_dtype(py::module_& m, const char* layer, const char* saved) {
  py::class_<PySaved<T>>(m, saved);
  py::class_<PyLayer<T>>(m, layer)
      .def(py::init<const std::string&, std::vector<Direction>, bool>())
      .def("forward", &PyLayer<T>::forward)
      .def("backward", &PyLayer<T>::backward)
      .def_property_readonly("directions", &PyLayer<T>::directions);
}

template <class T>
py::array_t<T> evaluate(const std::string& function, const py::array_t<T, py::array::c_style>& x) {
  const int which = function == "exp" ? 0 : function == "sigmoid" ? 1 : function == "tanh" ? 2 : -1;
  if (which < 0) throw std::invalid_argument("function: expected exp, sigmoid or tanh");
  py::array_t<T> y(x.size());
  kernels<T>(active_set()).evaluate(which, x.data(), x.size(), y.mutable_data());
  return y;
}

}  // namespace
}  // namespace rnnfast

PYBIND11_MODULE(_native, m) {
  using namespace rnnfast;
  m.attr("version") = RNNFAST_VERSION;
  active_set();
  set_thread_count(default_thread_count());
  register_dtype<float>(m, "LayerF32", "SavedF32");
  register_dtype<double>(m, "LayerF64", "SavedF64");
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
}
