// Whether some tensors still are what they were: the same memory, with the same numbers in it.
#pragma once

#include <cstring>

#include "exchange.hpp"

namespace rnnfast {
namespace {

// Tensors of one type or its named subclasses that have a `_version`, as PyTorch's have, which
// counts their changes; and arrays of some of their numbers, for changes that it does not count.
class Watch {
 public:
  Watch(const py::list& tensors, const py::list& samples, const py::tuple& types) : types_(types) {
    for (const py::handle tensor : tensors) {
      Known known;
      if (!describe(py::reinterpret_borrow<py::object>(tensor), known))
        throw std::invalid_argument("tensors: expected some of a type with an exchange table");
      tensors_.push_back(std::move(known));
    }
    for (const py::handle sample : samples) {
      samples_.push_back(py::cast<py::array>(sample));
      if (samples_.back().ndim() != 1) throw std::invalid_argument("samples: expected one axis");
    }
    each_sample([this](const char* at, size_t bytes) { bytes_.append(at, bytes); });
  }

  bool same(const py::list& tensors) const {
    if (tensors.size() != tensors_.size()) return false;
    Known now;
    for (size_t k = 0; k < tensors_.size(); k++)
      if (!describe(tensors[k], now) || !(now == tensors_[k])) return false;
    const char* before = bytes_.data();
    bool equal = true;
    each_sample([&](const char* at, size_t bytes) {
      equal = equal && std::memcmp(at, before, bytes) == 0;
      before += bytes;
    });
    return equal;
  }

 private:
  struct Known {
    const void* data = nullptr;
    int64_t version = 0;
    int32_t dims = 0;
    int64_t shape[2] = {}, strides[2] = {};  // weights have no more axes

    bool operator==(const Known& other) const {
      return data == other.data && version == other.version && dims == other.dims &&
             std::equal(shape, shape + 2, other.shape) &&
             std::equal(strides, strides + 2, other.strides);
    }
  };

  bool describe(const py::object& tensor, Known& to) const {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
    if (std::none_of(types_.begin(), types_.end(), [&](py::handle t) { return t.ptr() == type; }))
      return false;
    const auto* first = reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(types_.ptr(), 0));
    const dl::Exchange* exchange = exchange_of(const_cast<PyTypeObject*>(first));
    dl::Tensor found;
    if (!exchange || !borrowed(*exchange, tensor, found) || found.ndim > 2) return false;
    static PyObject* const name = PyUnicode_InternFromString("_version");
    PyObject* const version = PyObject_GetAttr(tensor.ptr(), name);
    to.version = version ? PyLong_AsLongLong(version) : -1;
    Py_XDECREF(version);
    if (PyErr_Occurred()) PyErr_Clear();  // of a tensor whose changes are not counted
    if (to.version < 0) return false;
    to.shape[0] = to.shape[1] = to.strides[0] = to.strides[1] = 0;
    to.data = static_cast<const char*>(found.data) + found.byte_offset;
    to.dims = found.ndim;
    for (int d = 0; d < found.ndim; d++) {
      to.shape[d] = found.shape[d];
      to.strides[d] = found.strides[d];
    }
    return true;
  }

  // Every run of bytes of the samples that is in one piece.
  template <class Visit>
  void each_sample(const Visit& visit) const {
    for (const py::array& sample : samples_) {
      const auto* at = static_cast<const char*>(sample.data());
      const py::ssize_t count = sample.shape(0), stride = sample.strides(0);
      if (stride == sample.itemsize())
        visit(at, size_t(count * stride));
      else if (sample.itemsize() == 4)  // a length that the compiler knows
        for (py::ssize_t i = 0; i < count; i++) visit(at + i * stride, 4);
      else
        for (py::ssize_t i = 0; i < count; i++) visit(at + i * stride, size_t(sample.itemsize()));
    }
  }

  py::tuple types_;  // the first has the exchange table
  std::vector<Known> tensors_;
  std::vector<py::array> samples_;
  std::string bytes_;  // of the samples
};

}  // namespace
}  // namespace rnnfast
