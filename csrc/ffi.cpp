// The passes of plain layers for XLA: rnnfast_forward and rnnfast_backward, see flat_pass.hpp.
#include "ffi.hpp"

#include "ffi_buffers.hpp"

namespace py = pybind11;

namespace rnnfast {
namespace {

template <bool kBackward>
ffi::Error run_pass(ffi::RemainingArgs from, ffi::RemainingRets to, std::string_view cell,
                    int64_t layers, int64_t directions, bool transposed,
                    ffi::Span<const int64_t> places, std::string_view save) {
  try {
    const std::vector<FlatBuffer> inputs = inputs_of(from), outputs = outputs_of(to);
    const std::string of_cell(cell), to_save(save);
    const FlatPass pass{
        kBackward,      of_cell.c_str(),        layers,          directions,    transposed,
        places.begin(), int64_t(places.size()), to_save.c_str(), inputs.data(), inputs.size(),
        outputs.data(), outputs.size()};
    char message[256];
    if (!run_flat_pass(pass, message, sizeof message)) return ffi::Error::InvalidArgument(message);
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

auto binding() {
  return ffi::Ffi::Bind()
      .RemainingArgs()
      .RemainingRets()
      .Attr<std::string_view>("cell")
      .Attr<int64_t>("layers")
      .Attr<int64_t>("directions")
      .Attr<bool>("transposed")
      .Attr<ffi::Span<const int64_t>>("places")
      .Attr<std::string_view>("save");
}

}  // namespace

void register_ffi(py::module_& m) {
  XLA_FFI_DEFINE_HANDLER(on_forward, run_pass<false>, binding());
  XLA_FFI_DEFINE_HANDLER(on_backward, run_pass<true>, binding());
  py::dict handlers;
  handlers["rnnfast_forward"] = py::capsule(reinterpret_cast<void*>(on_forward));
  handlers["rnnfast_backward"] = py::capsule(reinterpret_cast<void*>(on_backward));
  add_flexible_handlers(handlers);
  add_dual_handlers(handlers);
  m.attr("ffi_handlers") = handlers;
  m.attr("ffi_version") = py::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  m.def("ffi_flexible_slots", &flexible_slots);
}

}  // namespace rnnfast
