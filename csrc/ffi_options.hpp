// The attributes of the handlers of cells with options.
#pragma once

#include "ffi_buffers.hpp"
#include "flexible.hpp"
#include "python_layer.hpp"

namespace rnnfast {
namespace {

constexpr size_t kNumbers = 13;  // of the attribute `options`, in the order of OptionTuple

FlexibleKind flexible_kind(std::string_view cell) {
  return FlexibleKind(
      one_of(std::string(cell), {"lstm", "gru_after", "gru_before", "rnn", "gated"}, "cell"));
}

CellOptions options_of(ffi::Span<const double> numbers) {
  if (numbers.size() != kNumbers) throw std::invalid_argument("rnnfast: unexpected options");
  const auto function = [&](size_t k) {
    const double which = numbers[3 * k];
    if (!(which >= 0 && which <= double(Function::kSoftplus)))
      throw std::invalid_argument("rnnfast: unexpected function");
    return Activation{Function(int(which)), numbers[3 * k + 1], numbers[3 * k + 2]};
  };
  return {function(0), function(1),        function(2),         numbers[9],
          numbers[10], numbers[11] != 0.0, int64_t(numbers[12])};
}

}  // namespace
}  // namespace rnnfast
