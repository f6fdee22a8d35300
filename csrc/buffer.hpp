// Uninitialised memory for numbers, aligned for vectors, and on huge pages where it is large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace rnnfast {

// A block of at least `bytes`. Freed blocks are kept for the next request, up to 512 MB: clearing
// the pages of fresh ones took 12 % of a training step at (50, 64, 1024, 1024), and 20 % of a
// forward pass at (100, 1, 256, 256). Throws std::bad_alloc.
struct MemoryBlock {
  void* data = nullptr;
  size_t bytes = 0;
};
MemoryBlock acquire_block(size_t bytes);
void release_block(MemoryBlock block);

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count)
      : block_(count > 0 ? acquire_block(byte_count(count)) : MemoryBlock{}) {}
  // Memory of someone else, which outlives the buffer.
  Buffer(T* data, int64_t count) : block_{data, byte_count(count)}, borrowed_(true) {}
  Buffer(Buffer&& other) noexcept
      : block_(std::exchange(other.block_, MemoryBlock{})), borrowed_(other.borrowed_) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(borrowed_, other.borrowed_);
    return *this;
  }
  ~Buffer() {
    if (block_.data && !borrowed_) release_block(block_);
  }

  T* get() const { return static_cast<T*>(block_.data); }

  // At least `count` numbers; what was there is lost when it has to grow.
  T* grow(int64_t count) {
    if (block_.bytes < byte_count(count)) {
      *this = Buffer();
      *this = Buffer(count);
    }
    return get();
  }

 private:
  static size_t byte_count(int64_t count) {
    size_t bytes;
    return __builtin_mul_overflow(uint64_t(count), sizeof(T), &bytes) ? SIZE_MAX : bytes;
  }
  MemoryBlock block_;
  bool borrowed_ = false;
};

}  // namespace rnnfast
