// The Python module.
#include <cstdlib>
#include <numeric>

#include "ffi.hpp"
#include "flat_pass.hpp"
#include "openmp.hpp"
#include "python_flexible.hpp"
#include "threads.hpp"
#include "trainer.hpp"

namespace rnnfast {
namespace {

template <class T, class AnyLayer, class PyAnyLayer>
void register_stack(py::module_& m, const char* name) {
  using Stack = PyStack<T, AnyLayer, PyAnyLayer>;
  py::class_<Stack>(m, name)
      .def(py::init<const py::tuple&>())
      .def("forward", [](const Stack& stack, const py::object& x, const py::object& state,
                         const py::object& out, const py::object& lengths) {
        return stack.forward(x, state, out, lengths);
      });
}

template <class T>
void register_dtype(py::module_& m, const char* layer, const char* saved, const char* stack,
                    const char* tape) {
  py::class_<PySaved<T>>(m, saved);
  py::class_<PyLayer<T>>(m, layer)
      .def(py::init<const std::string&, std::vector<Direction>, bool, const std::string&>())
      .def_static("forward", &PyLayer<T>::forward)
      .def_static("backward", &PyLayer<T>::backward);
  register_stack<T, Layer<T>, PyLayer<T>>(m, stack);
  py::class_<PyTape<T>>(m, tape).def("backward", &PyTape<T>::backward);
}

template <class T>
void register_flexible(py::module_& m, const char* layer, const char* saved) {
  py::class_<PyFlexibleSaved<T>>(m, saved);
  py::class_<PyFlexible<T>>(m, layer)
      .def(py::init<const std::string&, const OptionTuple&, std::vector<Arrays>>())
      .def("forward", &PyFlexible<T>::forward)
      .def("backward", &PyFlexible<T>::backward);
}

template <class T>
py::array_t<T> evaluate(const std::string& function, const py::array_t<T, py::array::c_style>& x) {
  const int which = function == "exp" ? 0 : function == "sigmoid" ? 1 : function == "tanh" ? 2 : -1;
  if (which < 0) throw std::invalid_argument("function: expected exp, sigmoid or tanh");
  py::array_t<T> y(x.size());
  kernels<T>(active_set()).evaluate(which, x.data(), x.size(), y.mutable_data());
  return y;
}

// a b, or a^T b, of two matrices, for benchmarks of the products under the kernels; in the matrix
// unit if wanted.
template <class T, bool kTransposed>
py::array_t<T> product(const py::array_t<T, py::array::c_style>& a,
                       const py::array_t<T, py::array::c_style>& b, bool in_parts) {
  if (a.ndim() != 2 || b.ndim() != 2 || a.shape(kTransposed ? 0 : 1) != b.shape(0))
    throw std::invalid_argument("a, b: shapes do not fit");
  const int64_t m = a.shape(kTransposed ? 1 : 0), n = b.shape(1), k = b.shape(0);
  py::array_t<T> c({m, n});
  const T *of_a = a.data(), *of_b = b.data();
  T* to = c.mutable_data();
  {
    const Released released;
    if constexpr (std::is_same_v<T, float>)
      in_parts = in_parts && multiply_in_parts(of_a, of_b, m, n, k, kTransposed, to);
    else
      in_parts = false;
    if (!in_parts) multiply(of_a, of_b, m, n, k, kTransposed, to);
  }
  return c;
}

// The sum of all numbers, by all threads, for benchmarks: what reads as fast as it goes.
double total(const py::array_t<float, py::array::c_style>& x) {
  struct Reading {
    const float* x;  // [n]
    int64_t n;
    std::vector<double> totals;  // [members]
  } reading{x.data(), x.size(), std::vector<double>(size_t(thread_count()))};
  const auto read = [](void* context, int id) {
    Reading& r = *static_cast<Reading*>(context);
    const Team team{id, int(r.totals.size())};
    r.totals[size_t(id)] = kernels<float>(active_set()).total(r.x, r.n, team);
  };
  const Released released;
  if (!run_parallel(int(reading.totals.size()), read, &reading)) {
    reading.totals.resize(1);
    read(&reading, 0);
  }
  return std::accumulate(reading.totals.begin(), reading.totals.end(), 0.0);
}

// Nanoseconds in which all threads meet once, or 0 where others have them, for benchmarks: it takes
// several times as long while their cores share no cache.
double meeting_of_all_ns(int meetings) {
  const Released released;
  return measure_meeting_ns(thread_count(), meetings);
}

}  // namespace
}  // namespace rnnfast

PYBIND11_MODULE(_native, m) {
  using namespace rnnfast;
  m.attr("version") = RNNFAST_VERSION;
  active_set();
  set_thread_count(default_thread_count());
  register_dtype<float>(m, "LayerF32", "SavedF32", "StackF32", "TapeF32");
  register_dtype<double>(m, "LayerF64", "SavedF64", "StackF64", "TapeF64");
  register_flexible<float>(m, "FlexibleF32", "FlexibleSavedF32");
  register_flexible<double>(m, "FlexibleF64", "FlexibleSavedF64");
  register_stack<float, FlexibleLayer<float>, PyFlexible<float>>(m, "FlexibleStackF32");
  register_stack<double, FlexibleLayer<double>, PyFlexible<double>>(m, "FlexibleStackF64");
  register_flexible<Dual>(m, "FlexibleDual", "FlexibleSavedDual");
  m.def("default_backend", [] {
    const char* const name = std::getenv("RNNFAST_BACKEND");
    return name && *name ? name : "auto";
  });
  m.def("exchanges", [](const py::type& type) {
    return exchange_of(reinterpret_cast<PyTypeObject*>(type.ptr())) != nullptr;
  });
  py::class_<Watch>(m, "Watch")
      .def(py::init<const py::list&, const py::list&, const py::tuple&>())
      .def("same", &Watch::same);
  py::class_<Trainer>(m, "Trainer")
      .def(py::init<const std::string&, const py::list&, const py::list&, const py::tuple&>())
      .def("call", &Trainer::call);
  m.def("array_of", &array_of);
  m.def("make_token", &make_token);
  m.def("owned_by", &owned_by);
  m.def("tokens", [] { return owned_by_tokens().size(); });
  const auto define = [&m](const char* name, auto run_float, auto run_double) {
    m.def(name,
          [=](const std::string& cell, const py::object& x, const py::object& weights,
              const py::object& state, const py::object& lengths, const std::vector<int>& places) {
            const CellKind kind = cell_kind(cell);
            if (address<float>(x)) return run_float(kind, x, weights, state, lengths, places);
            if (address<double>(x)) return run_double(kind, x, weights, state, lengths, places);
            return py::object(py::none());
          });
  };
  define("call", &call<float>, &call<double>);
  define("call_vjp", &PyTape<float>::call, &PyTape<double>::call);
  m.def("set_num_threads", &set_thread_count);
  m.def("get_num_threads", &thread_count);
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const InstructionSet* set : available_sets()) names.emplace_back(set->name);
    return names;
  });
  m.def("get_isa", [] { return std::string(active_set().name); });
  m.def("set_isa", &use_set);
  m.def("flat_pass", [] { return reinterpret_cast<uintptr_t>(&run_flat_pass); });
  m.def("saved_gates", [](const std::string& cell) {
    return kernels<float>(active_set()).cells[cell_kind(cell)]->saved;
  });
  m.def("use_openmp", [](uintptr_t parallel, uintptr_t thread_num, uintptr_t num_threads,
                         uintptr_t max_threads, uintptr_t in_parallel) {
    const auto number = [](uintptr_t at) { return reinterpret_cast<int (*)()>(at); };
    use_openmp({reinterpret_cast<decltype(OpenMp::parallel)>(parallel), number(thread_num),
                number(num_threads), number(max_threads), number(in_parallel)});
  });
  m.def("openmp_has", &openmp_has);
  m.def("meeting_ns", &meeting_of_all_ns);
  m.def("total", &total, py::arg().noconvert());
  m.def("evaluate", &evaluate<float>, py::arg().noconvert(), py::arg().noconvert());
  m.def("evaluate", &evaluate<double>, py::arg().noconvert(), py::arg().noconvert());
  m.def("multiply_nn", &product<float, false>, py::arg().noconvert(), py::arg().noconvert(),
        py::arg("in_parts") = false);
  m.def("multiply_nn", &product<double, false>, py::arg().noconvert(), py::arg().noconvert(),
        py::arg("in_parts") = false);
  m.def("multiply_tn", &product<float, true>, py::arg().noconvert(), py::arg().noconvert(),
        py::arg("in_parts") = false);
  m.def("multiply_tn", &product<double, true>, py::arg().noconvert(), py::arg().noconvert(),
        py::arg("in_parts") = false);
#if defined(RNNFAST_HAS_FFI)
  register_ffi(m);
#endif
}
