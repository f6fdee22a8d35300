// The buffers of XLA's foreign function interface, as all flat passes take them.
#pragma once

#include <string_view>

#include "flat_buffers.hpp"
#include "xla/ffi/api/ffi.h"

namespace rnnfast {
namespace {

namespace ffi = xla::ffi;

inline FlatBuffer flat(const ffi::AnyBuffer& buffer) {
  const ffi::DataType type = buffer.element_type();
  const NumberKind kind = type == ffi::DataType::F32   ? NumberKind::kF32
                          : type == ffi::DataType::F64 ? NumberKind::kF64
                          : type == ffi::DataType::S32 ? NumberKind::kS32
                          : type == ffi::DataType::S64 ? NumberKind::kS64
                                                       : NumberKind::kOther;
  const auto dims = buffer.dimensions();
  return {buffer.untyped_data(), kind, dims.begin(), dims.size()};
}

std::vector<FlatBuffer> inputs_of(const ffi::RemainingArgs& from) {
  std::vector<FlatBuffer> found;
  for (size_t k = 0; k < from.size(); k++) {
    const auto buffer = from.get<ffi::AnyBuffer>(k);
    if (!buffer) throw std::invalid_argument(buffer.error().message());
    found.push_back(flat(*buffer));
  }
  return found;
}
std::vector<FlatBuffer> outputs_of(const ffi::RemainingRets& to) {
  std::vector<FlatBuffer> found;
  for (size_t k = 0; k < to.size(); k++) {
    auto buffer = to.get<ffi::AnyBuffer>(k);
    if (!buffer) throw std::invalid_argument(buffer.error().message());
    found.push_back(flat(**buffer));
  }
  return found;
}

// Runs body(buffers, zero), with a zero of x's dtype; exceptions become errors.
template <class Body>
ffi::Error guarded(const ffi::RemainingArgs& from, const ffi::RemainingRets& to, Body body) {
  try {
    Buffers buffers(inputs_of(from), outputs_of(to));
    if (buffers.peek(0).kind == NumberKind::kF64)
      body(buffers, double());
    else
      body(buffers, float());
    return ffi::Error::Success();
  } catch (const std::invalid_argument& error) {
    return ffi::Error::InvalidArgument(error.what());
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

}  // namespace
}  // namespace rnnfast
