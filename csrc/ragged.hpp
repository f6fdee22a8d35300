// A batch of rows of different lengths, packed: sorted by falling length, step after step.
#pragma once

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "region.hpp"

namespace rnnfast {

struct Ragged {
  std::vector<int64_t> order;  // [B] rows of the caller's batch; empty where all have all steps
  std::vector<int64_t> sizes;  // [longest] rows of each step

  // Null, or where a length is that is not from 0 to T; nothing has changed then.
  template <class Int>
  const Int* read(const Int* lengths, int64_t steps, int64_t batch) {  // [B]
    int64_t longest = 0, shortest = steps;
    for (int64_t b = 0; b < batch; b++) {
      const int64_t length = lengths[b];
      if (length < 0 || length > steps) return lengths + b;
      longest = std::max(longest, length);
      shortest = std::min(shortest, length);
    }
    if (shortest == steps) return nullptr;
    sizes.assign(size_t(longest) + 1, 0);
    for (int64_t b = 0; b < batch; b++) sizes[size_t(lengths[b])]++;
    // From how many rows have a length to how many are longer, which is where they begin.
    int64_t longer = 0;
    for (int64_t length = longest; length >= 0; length--)
      longer += std::exchange(sizes[size_t(length)], longer);
    std::vector<int64_t> next(sizes);
    order.resize(size_t(batch));
    for (int64_t b = 0; b < batch; b++) order[size_t(next[size_t(lengths[b])]++)] = b;
    sizes.resize(size_t(longest));
    return nullptr;
  }

  bool is_ragged() const { return !order.empty(); }
  const int64_t* row_order() const { return is_ragged() ? order.data() : nullptr; }
  // Of T steps and B rows where they are not ragged.
  Batch batch(int64_t steps, int64_t rows) const {
    if (!is_ragged()) return {steps, rows, nullptr};
    return {int64_t(sizes.size()), rows, sizes.data()};
  }
  int64_t rows() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t(0)); }

  // States [count, B, width] in this order, and back.
  template <class T>
  void sort(const T* states, int64_t count, int64_t width, T* sorted) const {
    const int64_t batch = int64_t(order.size());
    for (int64_t k = 0; k < count; k++)
      for (const int64_t b : order)
        sorted = std::copy_n(states + (k * batch + b) * width, width, sorted);
  }
  template <class T>
  void unsort(const T* sorted, int64_t count, int64_t width, T* states) const {
    const int64_t batch = int64_t(order.size());
    for (int64_t k = 0; k < count; k++)
      for (const int64_t b : order) {
        std::copy_n(sorted, width, states + (k * batch + b) * width);
        sorted += width;
      }
  }

  // [T, B, width] to [rows(), width], and back, with zeros after the last step of each row.
  template <class T>
  void pack(const T* padded, int64_t width, T* packed) const {
    each_row([&](int64_t row) { packed = std::copy_n(padded + row * width, width, packed); });
  }
  template <class T>
  void pad(const T* packed, int64_t width, int64_t steps, T* padded) const {
    std::fill_n(padded, steps * int64_t(order.size()) * width, T(0));
    each_row([&](int64_t row) {
      std::copy_n(packed, width, padded + row * width);
      packed += width;
    });
  }

 private:
  template <class Visit>
  void each_row(Visit visit) const {
    for (size_t t = 0; t < sizes.size(); t++)
      for (int64_t b = 0; b < sizes[t]; b++)
        visit(int64_t(t) * int64_t(order.size()) + order[size_t(b)]);
  }
};

}  // namespace rnnfast
