// Uninitialised memory for numbers, aligned for vectors, and on huge pages where it is large.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnnfast {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) {
    if (count <= 0) return;
    constexpr size_t huge = size_t(2) << 20;
    if (uint64_t(count) > (std::numeric_limits<size_t>::max() - huge) / sizeof(T))
      throw std::bad_alloc();
    const size_t bytes = size_t(count) * sizeof(T);
    const size_t alignment = bytes >= 2 * huge ? huge : 64;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    data_ = static_cast<T*>(std::aligned_alloc(alignment, rounded));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == huge) madvise(data_, rounded, MADV_HUGEPAGE);
#endif
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

}  // namespace rnnfast
