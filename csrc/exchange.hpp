// Tensors of other libraries, by the C functions that DLPack 1.3 lets a Python type of tensors name
// in its attribute __dlpack_c_exchange_api__. Structures and their order are those of
// https://github.com/dmlc/dlpack/blob/v1.3/include/dlpack/dlpack.h.
#pragma once

#include <limits>
#include <new>

#include "python_arrays.hpp"

namespace rnnfast {
namespace {

namespace dl {

constexpr uint32_t kMajor = 1, kMinor = 3;  // of the version below; a major one is another ABI
constexpr int32_t kCpu = 1;
constexpr uint8_t kUnsigned = 1, kFloat = 2;

struct Version {
  uint32_t major, minor;
};
struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;  // [ndim], strides in numbers
  uint64_t byte_offset;
};
struct Managed {
  Version version;
  void* manager;
  void (*deleter)(Managed*);
  uint64_t flags;
  Tensor tensor;
};
struct Exchange {
  Version version;
  Exchange* previous;  // for older consumers
  int (*allocate)(Tensor*, Managed**, void*, void (*)(void*, const char*, const char*));
  int (*own)(void* object, Managed** to);
  int (*to_object)(Managed*, void** object);  // takes the tensor over
  int (*borrow)(void* object, Tensor* to);    // may be null
  int (*stream)(int32_t device_type, int32_t device_id, void** to);
};

}  // namespace dl

// The functions of a type that names them itself (a subclass may mean something else by its
// memory), or null. Asked for again and again for the same type, which is kept alive.
const dl::Exchange* exchange_of(PyTypeObject* type) {
  static PyTypeObject* last = nullptr;
  static const dl::Exchange* of_last = nullptr;
  if (type == py::detail::npy_api::get().PyArray_Type_) return nullptr;  // as soon as possible
  if (type == last) return of_last;
  static PyObject* const name = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  PyObject* const capsule = type->tp_dict ? PyDict_GetItem(type->tp_dict, name) : nullptr;
  if (!capsule || !PyCapsule_IsValid(capsule, "dlpack_exchange_api")) return nullptr;
  const auto* found =
      static_cast<const dl::Exchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  if (found->version.major != dl::kMajor || found->version.minor < dl::kMinor || !found->borrow)
    return nullptr;
  Py_INCREF(type);
  last = type;
  return of_last = found;
}

// The tensor of an object, with no error where there is none that DLPack knows.
bool borrowed(const dl::Exchange& exchange, const py::object& value, dl::Tensor& to) {
  if (!exchange.borrow(value.ptr(), &to)) return true;
  PyErr_Clear();
  return false;
}

// An array on the memory of a tensor in float32 or float64 on the CPU, or None. It keeps the
// tensor, which must not be given other memory. `type` is the tensor's or a base of it that means
// the same by its memory. Unlike its own way to NumPy, PyTorch's exchange lets that memory be
// resized later, as FSDP does.
py::object array_of(const py::type& type, const py::object& tensor) {
  const dl::Exchange* exchange = exchange_of(reinterpret_cast<PyTypeObject*>(type.ptr()));
  dl::Managed* managed = nullptr;
  if (!exchange) return py::none();
  if (exchange->own(tensor.ptr(), &managed)) {
    PyErr_Clear();
    return py::none();
  }
  const py::capsule owner(managed, [](void* p) {
    auto* const held = static_cast<dl::Managed*>(p);
    held->deleter(held);
  });
  const dl::Tensor& t = managed->tensor;
  if (t.device_type != dl::kCpu || t.code != dl::kFloat || t.lanes != 1 || !t.data ||
      (t.bits != 32 && t.bits != 64))
    return py::none();
  const Shape shape(t.shape, t.shape + t.ndim);
  Shape strides(t.strides, t.strides + t.ndim);
  for (py::ssize_t& stride : strides) stride *= t.bits / 8;
  const void* data = static_cast<const char*>(t.data) + t.byte_offset;
  if (t.bits == 32)
    return py::array_t<float>(shape, strides, static_cast<const float*>(data), owner);
  return py::array_t<double>(shape, strides, static_cast<const double*>(data), owner);
}

// Results and arguments that are tensors of one type.
template <class T>
class OtherTensors {
 public:
  OtherTensors(PyTypeObject* type, const dl::Exchange& exchange)
      : type_(type), exchange_(exchange) {}

  bool view(const py::object& value, View<T>& to) const {
    dl::Tensor tensor;
    if (Py_TYPE(value.ptr()) != type_ || !borrowed(exchange_, value, tensor)) return false;
    if (tensor.device_type != dl::kCpu || tensor.code != dl::kFloat ||
        tensor.bits != 8 * sizeof(T) || tensor.lanes != 1 || tensor.ndim > View<T>::kDims)
      return false;
    int64_t stride = 1;
    for (int d = tensor.ndim - 1; d >= 0; d--) {
      if (tensor.shape[d] != 1 && tensor.strides[d] != stride) return false;
      stride *= tensor.shape[d];
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset;
    if (!address || address % alignof(T)) return false;
    to.data = reinterpret_cast<T*>(address);
    to.dims = tensor.ndim;
    std::copy_n(tensor.shape, tensor.ndim, to.shape);
    return true;
  }

  py::object make(const Shape& shape, View<T>& to, bool transposed = false) const {
    to.set_shape(shape);
    Owned* const owned = Owned::make(to.size());
    to.data = reinterpret_cast<T*>(owned + 1);
    std::copy_n(to.shape, to.dims, owned->shape);
    owned->managed.tensor.ndim = to.dims;
    int64_t stride = 1;
    for (int k = 0; k < to.dims; k++) {
      const int d = transposed ? k : to.dims - 1 - k;
      owned->strides[d] = stride;
      stride *= to.shape[d];
    }
    void* object = nullptr;
    if (exchange_.to_object(&owned->managed, &object)) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
  }

 private:
  // What describes a tensor; its numbers follow.
  struct alignas(64) Owned {
    dl::Managed managed;
    int64_t shape[View<T>::kDims], strides[View<T>::kDims];
    MemoryBlock block;

    static Owned* make(int64_t count) {
      const size_t bytes = size_t(count) * sizeof(T);  // of a shape that fits, see `forward`
      const MemoryBlock block = acquire_block(bytes + sizeof(Owned));
      Owned* const owned = new (block.data) Owned();
      owned->block = block;
      owned->managed.version = {dl::kMajor, dl::kMinor};
      owned->managed.deleter = [](dl::Managed* managed) {
        release_block(reinterpret_cast<Owned*>(managed)->block);  // its first member
      };
      owned->managed.tensor = {owned + 1,    dl::kCpu,       0, 0, dl::kFloat, 8 * sizeof(T), 1,
                               owned->shape, owned->strides, 0};
      return owned;
    }
  };

  PyTypeObject* type_;
  const dl::Exchange& exchange_;
};

// Calls body with what reads and makes values of the kind that this one is.
template <class T, class Body>
auto like(const py::object& value, const Body& body) {
  PyTypeObject* const type = Py_TYPE(value.ptr());
  if (const dl::Exchange* exchange = exchange_of(type))
    return body(OtherTensors<T>(type, *exchange));
  return body(NumpyArrays<T>());
}

}  // namespace
}  // namespace rnnfast
