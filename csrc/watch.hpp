// Whether some tensors still are where they were, and whether they still are what they were.
#pragma once

#include <cstring>

#include "exchange.hpp"

namespace rnnfast {
namespace {

// Where some tensors are: of one type, the first, whose exchange table there is, or its named
// subclasses.
class Places {
 public:
  Places(const py::list& tensors, const py::tuple& types) : types_(types) {
    for (const py::handle tensor : tensors) {
      Place place;
      if (!describe(py::reinterpret_borrow<py::object>(tensor), place))
        throw std::invalid_argument("tensors: expected some of a type with an exchange table");
      places_.push_back(place);
    }
  }

  bool same(const py::list& tensors) const {
    if (tensors.size() != places_.size()) return false;
    Place now;
    for (size_t k = 0; k < places_.size(); k++)
      if (!describe(tensors[k], now) || !(now == places_[k])) return false;
    return true;
  }

 private:
  struct Place {
    const void* data = nullptr;
    int32_t dims = 0;
    int64_t shape[2] = {}, strides[2] = {};  // weights have no more axes

    bool operator==(const Place& other) const {
      return data == other.data && dims == other.dims &&
             std::equal(shape, shape + 2, other.shape) &&
             std::equal(strides, strides + 2, other.strides);
    }
  };

  bool describe(const py::object& tensor, Place& to) const {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
    if (std::none_of(types_.begin(), types_.end(), [&](py::handle t) { return t.ptr() == type; }))
      return false;
    const auto* first = reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(types_.ptr(), 0));
    const dl::Exchange* exchange = exchange_of(const_cast<PyTypeObject*>(first));
    dl::Tensor found;
    if (!exchange || !borrowed(*exchange, tensor, found) || found.ndim > 2) return false;
    to = {};
    to.data = static_cast<const char*>(found.data) + found.byte_offset;
    to.dims = found.ndim;
    for (int d = 0; d < found.ndim; d++) {
      to.shape[d] = found.shape[d];
      to.strides[d] = found.strides[d];
    }
    return true;
  }

  py::tuple types_;
  std::vector<Place> places_;
};

// Tensors that have a `_version`, as PyTorch's have, which counts their changes; and arrays of some
// of their numbers, for changes that it does not count.
class Watch {
 public:
  Watch(const py::list& tensors, const py::list& samples, const py::tuple& types)
      : places_(tensors, types) {
    for (const py::handle tensor : tensors) {
      versions_.push_back(version(tensor));
      if (versions_.back() < 0) throw std::invalid_argument("tensors: expected a _version");
    }
    for (const py::handle sample : samples) {
      samples_.push_back(py::cast<py::array>(sample));
      if (samples_.back().ndim() != 1) throw std::invalid_argument("samples: expected one axis");
    }
    each_sample([this](const char* at, size_t bytes) { bytes_.append(at, bytes); });
  }

  bool same(const py::list& tensors) const {
    if (!places_.same(tensors)) return false;
    for (size_t k = 0; k < versions_.size(); k++)
      if (version(tensors[k]) != versions_[k]) return false;
    const char* before = bytes_.data();
    bool equal = true;
    each_sample([&](const char* at, size_t bytes) {
      equal = equal && std::memcmp(at, before, bytes) == 0;
      before += bytes;
    });
    return equal;
  }

 private:
  // -1 for a tensor whose changes are not counted.
  static int64_t version(py::handle tensor) {
    static PyObject* const name = PyUnicode_InternFromString("_version");
    PyObject* const found = PyObject_GetAttr(tensor.ptr(), name);
    const int64_t count = found ? PyLong_AsLongLong(found) : -1;
    Py_XDECREF(found);
    if (PyErr_Occurred()) PyErr_Clear();
    return count;
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

  Places places_;
  std::vector<int64_t> versions_;
  std::vector<py::array> samples_;
  std::string bytes_;  // of the samples
};

}  // namespace
}  // namespace rnnfast
