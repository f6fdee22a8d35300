// Calls of other libraries' graphs, which hand flat lists of buffers: the buffers, and the inputs
// packed.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "buffer.hpp"
#include "flat_pass.hpp"
#include "ops.hpp"
#include "ragged.hpp"

namespace rnnfast {
namespace {

// Hands out the buffers of a call one by one. An empty buffer is null.
class Buffers {
 public:
  Buffers(std::vector<FlatBuffer> from, std::vector<FlatBuffer> to)
      : from_(std::move(from)), to_(std::move(to)) {}

  template <class T>
  const T* input(int64_t size) {
    const FlatBuffer& found = peek(0);
    at_++;
    return static_cast<const T*>(checked(found, kind<T>(), size));
  }
  template <class T>
  T* output(int64_t size) {
    if (made_ >= to_.size()) throw std::invalid_argument("rnnfast: too few outputs");
    return static_cast<T*>(checked(to_[made_++], kind<T>(), size));
  }
  template <class T>
  T* needed(int64_t size) {
    T* found = output<T>(size);
    if (!found && size > 0) throw std::invalid_argument("rnnfast: an output is missing");
    return found;
  }
  const FlatBuffer& peek(size_t ahead) const {
    if (at_ + ahead >= from_.size()) throw std::invalid_argument("rnnfast: too few inputs");
    return from_[at_ + ahead];
  }
  void skip(size_t inputs) { at_ += inputs; }
  void end() const {
    if (at_ != from_.size() || made_ != to_.size())
      throw std::invalid_argument("rnnfast: unexpected number of buffers");
  }

 private:
  template <class T>
  static NumberKind kind() {
    if constexpr (std::is_same_v<T, float>) return NumberKind::kF32;
    if constexpr (std::is_same_v<T, double>) return NumberKind::kF64;
    if constexpr (std::is_same_v<T, int32_t>) return NumberKind::kS32;
    return NumberKind::kS64;
  }
  static void* checked(const FlatBuffer& found, NumberKind kind, int64_t size) {
    const int64_t count = found.count();
    if (found.kind != kind || (count != 0 && count != size))
      throw std::invalid_argument("rnnfast: unexpected dtype or size of a buffer");
    return count > 0 ? found.data : nullptr;
  }

  std::vector<FlatBuffer> from_, to_;
  size_t at_ = 0, made_ = 0;
};

// The inputs of a call in the order of its batch, which `lengths` packs, and all that is made of
// them.
template <class T>
class PackedInputs {
 public:
  Ragged ragged;

  Batch batch() const { return ragged.batch(steps_, batch_); }
  const T* pack_rows(const T* padded, int64_t width) {
    if (!ragged.is_ragged() || !padded) return padded;
    T* packed = keep(Buffer<T>(ragged.rows() * width));
    ragged.pack(padded, width, packed);
    return packed;
  }
  void pad(const T* packed, int64_t width, T* padded) const {
    ragged.pad(packed, width, steps_, padded);
  }
  const T* sort(const T* states, int64_t count, int64_t width) {
    if (!ragged.is_ragged() || !states) return states;
    T* sorted = keep(Buffer<T>(count * batch_ * width));
    ragged.sort(states, count, width, sorted);
    return sorted;
  }

 protected:
  // The next input is lengths [batch], or empty.
  void read_lengths(Buffers& buffers, int64_t steps, int64_t batch) {
    steps_ = steps, batch_ = batch;
    const auto pack_by = [&](const auto* lengths) {
      const auto wrong = lengths ? ragged.read(lengths, steps, batch) : nullptr;
      if (wrong)
        throw std::invalid_argument("lengths: expected values from 0 to T = " +
                                    std::to_string(steps) + ", got " + std::to_string(*wrong));
    };
    if (buffers.peek(0).kind == NumberKind::kS32)
      pack_by(buffers.input<int32_t>(batch));
    else
      pack_by(buffers.input<int64_t>(batch));
  }
  T* keep(Buffer<T> array) {
    kept_.push_back(std::move(array));
    return kept_.back().get();
  }

 private:
  int64_t steps_ = 0, batch_ = 0;
  std::vector<Buffer<T>> kept_;
};

// An output: the caller's memory, or where rows are packed that of `own`, to be put in order.
template <class T>
struct Output {
  T* to;
  Buffer<T> own;
  Output(T* to, bool ragged, int64_t size) : to(to), own(ragged ? size : 0) {}
  T* get() const { return own.get() ? own.get() : to; }
};

}  // namespace
}  // namespace rnnfast
