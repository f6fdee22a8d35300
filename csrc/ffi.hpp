// The passes as handlers of XLA's foreign function interface, for rnnfast.jax.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace rnnfast {

// Adds to the module `ffi_handlers`, capsules by name, `ffi_version`, of XLA's headers, and
// `ffi_flexible_slots`, which gives S of a cell with options.
void register_ffi(pybind11::module_& m);

// In ffi_flexible.cpp and ffi_dual.cpp.
void add_flexible_handlers(pybind11::dict handlers);
void add_dual_handlers(pybind11::dict handlers);
int flexible_slots(const std::string& cell, bool norm);

}  // namespace rnnfast
