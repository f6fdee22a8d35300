// Calls of other libraries' graphs, which hand flat lists of buffers: the buffers, and rows of
// different lengths packed.
#pragma once

#include <algorithm>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "buffer.hpp"
#include "flat_pass.hpp"
#include "ops.hpp"

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

// The inputs of a call in the order of its batch, which `lengths` packs, and all that is made of
// them.
template <class T>
class PackedInputs {
 public:
  std::optional<Ragged> ragged;

  Batch batch() const { return ragged ? ragged->batch() : Batch{steps_, batch_, nullptr}; }
  const T* pack_rows(const T* padded, int64_t width) {
    return ragged && padded ? keep(ragged->pack(padded, width)) : padded;
  }
  const T* sort(const T* states, int64_t count, int64_t width) {
    return ragged && states ? keep(ragged->sort(states, count, width)) : states;
  }

 protected:
  // The next input is lengths [batch], or empty.
  void read_lengths(Buffers& buffers, int64_t steps, int64_t batch) {
    steps_ = steps, batch_ = batch;
    const auto pack_by = [&](const auto* lengths) {
      if (lengths) ragged.emplace(lengths, steps, batch);
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
