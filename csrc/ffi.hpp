// The passes as handlers of XLA's foreign function interface, for rnnfast.jax.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnfast {

// Adds to the module `ffi_handlers`, capsules by name, `ffi_version`, of XLA's headers, and
// `ffi_saved_gates`, which gives S of a cell.
void register_ffi(pybind11::module_& m);

}  // namespace rnnfast
