// Arrays as Python sees them: what may be read and written of them, and new ones.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.hpp"

namespace py = pybind11;

namespace rnnfast {
namespace {

using Shape = std::vector<py::ssize_t>;

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
template <class T, int kOrder = py::array::c_style>
bool is_plain(const py::object& value) {
  return Py_TYPE(value.ptr()) == py::detail::npy_api::get().PyArray_Type_ &&
         py::isinstance<py::array_t<T, kOrder>>(value) &&
         py::reinterpret_borrow<py::array>(value).flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_;
}

// An array of its own memory. That of a large one comes from the freed blocks of `Buffer` and goes
// back there: fresh pages were 40 % of the time of training one step at H = 1024.
template <class T>
py::array_t<T> new_array(const Shape& shape, bool transposed = false) {
  constexpr size_t large = size_t(1) << 20;
  size_t bytes = sizeof(T);
  for (const py::ssize_t n : shape) bytes *= size_t(n);
  if (bytes < large && !transposed) return py::array_t<T>(shape);
  const Shape strides = transposed ? py::detail::f_strides(shape, sizeof(T))
                                   : py::detail::c_strides(shape, sizeof(T));
  if (bytes < large) return py::array_t<T>(shape, strides);
  auto memory = std::make_unique<Buffer<T>>(int64_t(bytes / sizeof(T)));
  T* data = memory->get();
  const py::capsule owner(memory.get(), [](void* p) { delete static_cast<Buffer<T>*>(p); });
  memory.release();
  return py::array_t<T>(shape, strides, data, owner);
}

// What is read or written of an array or a tensor.
template <class T>
struct View {
  static constexpr int kDims = 3;
  T* data = nullptr;  // null where there is none
  int dims = 0;
  int64_t shape[kDims] = {};
  bool writeable = true;

  int64_t size() const {
    int64_t count = 1;
    for (int d = 0; d < dims; d++) count *= shape[d];
    return count;
  }
  void set_shape(const Shape& to) {
    dims = int(to.size());
    std::copy(to.begin(), to.end(), shape);
  }
  bool has_shape(const Shape& wanted) const {
    return dims == int(wanted.size()) && std::equal(wanted.begin(), wanted.end(), shape);
  }
};

// Results and arguments that are NumPy's.
template <class T>
struct NumpyArrays {
  // Whether the kernels can read the array as it is, and where.
  bool view(const py::object& value, View<T>& to) const {
    if (!is_plain<T>(value)) return false;
    const auto array = py::reinterpret_borrow<py::array>(value);
    to.dims = int(array.ndim());
    if (to.dims > View<T>::kDims) return false;
    std::copy_n(array.shape(), to.dims, to.shape);
    to.data = static_cast<T*>(const_cast<void*>(array.data()));
    to.writeable = array.writeable();
    return true;
  }

  // One of these, uninitialised; with its first axis the fastest if `transposed`.
  py::object make(const Shape& shape, View<T>& to, bool transposed = false) const {
    py::array_t<T> array = new_array<T>(shape, transposed);
    to.set_shape(shape);
    to.data = array.mutable_data();
    return std::move(array);
  }
};

}  // namespace
}  // namespace rnnfast
