// Calls with a tape, of tensors whose weights stay where they are.
#pragma once

#include "shortcut.hpp"
#include "token.hpp"
#include "watch.hpp"

namespace rnnfast {
namespace {

class Trainer {
 public:
  // `tensors` are those that `weights` are arrays of.
  Trainer(const std::string& cell, const py::list& weights, const py::list& tensors,
          const py::tuple& types)
      : cell_(cell_kind(cell)), weights_(weights), tensors_(tensors, types), type_(types[0]) {}

  // (y, state_n, a tensor that owns the tape), or None where the tensors are others by now, or
  // where x or the state has to be made readable first.
  py::object call(const py::list& tensors, const py::object& x, const py::object& state) const {
    if (!tensors_.same(tensors)) return py::none();
    const py::object done = address<float>(x)    ? of<float>(x, state)
                            : address<double>(x) ? of<double>(x, state)
                                                 : py::none();
    if (done.is_none()) return done;
    const auto found = py::reinterpret_borrow<py::tuple>(done);
    return py::make_tuple(found[0], found[1], make_token(type_, found[2]));
  }

 private:
  template <class T>
  py::object of(const py::object& x, const py::object& state) const {
    return PyTape<T>::call(cell_, x, weights_, state, py::none(), {});
  }

  CellKind cell_;
  py::object weights_;
  Places tensors_;
  py::type type_;
};

}  // namespace
}  // namespace rnnfast
