// Tensors of one byte that each own a Python object, which is let go with the tensor's memory.
#pragma once

#include <unordered_map>

#include "exchange.hpp"

namespace rnnfast {
namespace {

// By the addresses of the bytes. Of the interpreter, guarded by the GIL.
std::unordered_map<const void*, PyObject*>& owned_by_tokens() {
  static std::unordered_map<const void*, PyObject*> owned;
  return owned;
}

struct Token {
  dl::Managed managed;
  int64_t shape = 1, stride = 1;
  uint8_t byte = 0;

  static void drop(dl::Managed* managed) {
    std::unique_ptr<Token> token(reinterpret_cast<Token*>(managed));  // its first member
    if (!Py_IsInitialized()) return;  // with the process, all objects go
    const py::gil_scoped_acquire acquired;
    const auto found = owned_by_tokens().find(&token->byte);
    PyObject* const object = found->second;
    owned_by_tokens().erase(found);
    Py_DECREF(object);
  }
};

// A tensor of this type, whose exchange table there is, that owns `object`.
py::object make_token(const py::type& type, const py::object& object) {
  const dl::Exchange* exchange = exchange_of(reinterpret_cast<PyTypeObject*>(type.ptr()));
  if (!exchange) throw std::invalid_argument("type: expected one with an exchange table");
  auto token = std::make_unique<Token>();
  token->managed.version = {dl::kMajor, dl::kMinor};
  token->managed.deleter = &Token::drop;
  token->managed.tensor = {&token->byte,  dl::kCpu,       0, 1, dl::kUnsigned, 8, 1,
                           &token->shape, &token->stride, 0};
  owned_by_tokens().emplace(&token->byte, object.inc_ref().ptr());
  void* tensor = nullptr;
  if (exchange->to_object(&token.release()->managed, &tensor)) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(tensor));
}

// What a token owns, or None for any other tensor and for a copy of a token.
py::object owned_by(const py::object& tensor) {
  const dl::Exchange* exchange = exchange_of(Py_TYPE(tensor.ptr()));
  dl::Tensor found;
  if (!exchange || !borrowed(*exchange, tensor, found)) return py::none();
  const auto at = owned_by_tokens().find(static_cast<const char*>(found.data) + found.byte_offset);
  if (at == owned_by_tokens().end()) return py::none();
  return py::reinterpret_borrow<py::object>(at->second);
}

}  // namespace
}  // namespace rnnfast
