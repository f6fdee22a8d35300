// What the handlers of XLA's foreign function interface share: its buffers, and rows of different
// lengths packed.
#pragma once

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "buffer.hpp"
#include "ops.hpp"
#include "xla/ffi/api/ffi.h"

namespace rnnfast {
namespace {

namespace ffi = xla::ffi;

// Hands out the buffers of a call one by one. An empty buffer is null.
class Buffers {
 public:
  Buffers(const ffi::RemainingArgs& from, const ffi::RemainingRets& to) : from_(from), to_(to) {}

  template <class T>
  const T* input(int64_t size) {
    return static_cast<const T*>(next(from_.get<ffi::AnyBuffer>(at_++), kind<T>(), size));
  }
  template <class T>
  T* output(int64_t size) {
    auto result = to_.get<ffi::AnyBuffer>(made_++);
    if (!result) throw std::invalid_argument(result.error().message());
    return static_cast<T*>(next(ffi::ErrorOr<ffi::AnyBuffer>(**result), kind<T>(), size));
  }
  template <class T>
  T* needed(int64_t size) {
    T* found = output<T>(size);
    if (!found && size > 0) throw std::invalid_argument("rnnfast: an output is missing");
    return found;
  }
  ffi::AnyBuffer peek(size_t ahead) const {
    const auto found = from_.get<ffi::AnyBuffer>(at_ + ahead);
    if (!found) throw std::invalid_argument(found.error().message());
    return *found;
  }
  void skip(size_t inputs) { at_ += inputs; }
  void end() const {
    if (at_ != from_.size() || made_ != to_.size())
      throw std::invalid_argument("rnnfast: unexpected number of buffers");
  }

 private:
  template <class T>
  static ffi::DataType kind() {
    if constexpr (std::is_same_v<T, float>) return ffi::DataType::F32;
    if constexpr (std::is_same_v<T, double>) return ffi::DataType::F64;
    if constexpr (std::is_same_v<T, int32_t>) return ffi::DataType::S32;
    return ffi::DataType::S64;
  }
  void* next(const ffi::ErrorOr<ffi::AnyBuffer>& found, ffi::DataType kind, int64_t size) const {
    if (!found) throw std::invalid_argument(found.error().message());
    const int64_t count = int64_t(found->element_count());
    if (found->element_type() != kind || (count != 0 && count != size))
      throw std::invalid_argument("rnnfast: unexpected dtype or size of a buffer");
    return count > 0 ? found->untyped_data() : nullptr;
  }

  ffi::RemainingArgs from_;
  ffi::RemainingRets to_;
  size_t at_ = 0, made_ = 0;
};

// How the rows of a padded batch are packed: sorted by falling length, step after step.
class Ragged {
 public:
  template <class Int>
  Ragged(const Int* lengths, int64_t steps, int64_t batch) : steps_(steps), order_(batch) {
    for (int64_t b = 0; b < batch; b++)
      if (lengths[b] < 0 || lengths[b] > steps)
        throw std::invalid_argument("lengths: expected values from 0 to T = " +
                                    std::to_string(steps) + ", got " + std::to_string(lengths[b]));
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    sizes_.resize(batch > 0 ? lengths[order_[0]] : 0);
    for (int64_t b = 0; b < batch; b++)
      for (int64_t t = 0; t < lengths[b]; t++) sizes_[t]++;
  }

  int64_t rows() const { return std::accumulate(sizes_.begin(), sizes_.end(), int64_t(0)); }
  Batch batch() const { return {int64_t(sizes_.size()), int64_t(order_.size()), sizes_.data()}; }

  template <class T>
  Buffer<T> pack(const T* padded, int64_t width) const {
    Buffer<T> packed(rows() * width);
    T* to = packed.get();
    each_row([&](int64_t row) { to = std::copy_n(padded + row * width, width, to); });
    return packed;
  }
  template <class T>
  void pad(const T* packed, int64_t width, T* padded) const {
    std::fill_n(padded, steps_ * int64_t(order_.size()) * width, T(0));
    each_row([&](int64_t row) {
      std::copy_n(packed, width, padded + row * width);
      packed += width;
    });
  }
  template <class T>
  Buffer<T> sort(const T* states, int64_t count, int64_t width) const {  // [count, B, width]
    const int64_t batch = int64_t(order_.size());
    Buffer<T> sorted(count * batch * width);
    T* to = sorted.get();
    for (int64_t k = 0; k < count; k++)
      for (int64_t b : order_) to = std::copy_n(states + (k * batch + b) * width, width, to);
    return sorted;
  }
  template <class T>
  void unsort(const T* sorted, int64_t count, int64_t width, T* states) const {
    const int64_t batch = int64_t(order_.size());
    for (int64_t k = 0; k < count; k++)
      for (int64_t b : order_) {
        std::copy_n(sorted, width, states + (k * batch + b) * width);
        sorted += width;
      }
  }

 private:
  template <class Visit>
  void each_row(Visit visit) const {
    for (size_t t = 0; t < sizes_.size(); t++)
      for (int64_t b = 0; b < sizes_[t]; b++)
        visit(int64_t(t) * int64_t(order_.size()) + order_[b]);
  }

  int64_t steps_;
  std::vector<int64_t> order_, sizes_;
};

// An output: the caller's memory, or where rows are packed that of `own`, until `finish`.
template <class T>
struct Output {
  T* to;
  Buffer<T> own;
  Output(T* to, bool ragged, int64_t size) : to(to), own(ragged ? size : 0) {}
  T* get() const { return own.get() ? own.get() : to; }
};

// Runs body(zero), with a zero of x's dtype; exceptions become errors.
template <class Body>
ffi::Error guarded(const Buffers& buffers, Body body) {
  try {
    if (buffers.peek(0).element_type() == ffi::DataType::F64)
      body(double());
    else
      body(float());
    return ffi::Error::Success();
  } catch (const std::invalid_argument& error) {
    return ffi::Error::InvalidArgument(error.what());
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

}  // namespace
}  // namespace rnnfast
