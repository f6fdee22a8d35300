#include "buffer.hpp"

#include <unistd.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnnfast {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kSmallestKept = size_t(64) << 10;
constexpr size_t kMostKept = size_t(512) << 20;

// At most 1/32 of the machine's memory is kept.
size_t most_kept() {
  static const size_t most = [] {
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    const size_t share = pages > 0 && size > 0 ? size_t(pages) / 32 * size_t(size) : kMostKept;
    return share < kMostKept ? share : kMostKept;
  }();
  return most;
}

// Freed blocks, oldest first. Never destroyed: an array may be freed after the last destructor.
struct Kept {
  std::mutex mutex;
  std::vector<MemoryBlock> blocks;
  size_t bytes = 0;
};
Kept& kept() {
  static Kept& instance = *new Kept;
  return instance;
}

}  // namespace

MemoryBlock acquire_block(size_t bytes) {
  if (bytes > SIZE_MAX - kHugePage) throw std::bad_alloc();
  if (bytes >= kSmallestKept) {
    // try_lock: a forked child may find the mutex held by a thread that it does not have.
    std::unique_lock<std::mutex> lock(kept().mutex, std::try_to_lock);
    if (lock) {
      std::vector<MemoryBlock>& blocks = kept().blocks;
      auto best = blocks.end();
      for (auto it = blocks.begin(); it != blocks.end(); ++it)
        if (it->bytes >= bytes && it->bytes / 2 <= bytes &&
            (best == blocks.end() || it->bytes <= best->bytes))
          best = it;
      if (best != blocks.end()) {
        const MemoryBlock found = *best;
        blocks.erase(best);
        kept().bytes -= found.bytes;
        return found;
      }
    }
  }
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, rounded);
  if (!data) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (alignment == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
#endif
  return {data, rounded};
}

void release_block(MemoryBlock block) {
  if (block.bytes >= kSmallestKept && block.bytes <= most_kept() / 2) {
    std::unique_lock<std::mutex> lock(kept().mutex, std::try_to_lock);
    if (lock) {
      kept().blocks.push_back(block);
      kept().bytes += block.bytes;
      while (kept().bytes > most_kept()) {
        const MemoryBlock oldest = kept().blocks.front();
        kept().blocks.erase(kept().blocks.begin());
        kept().bytes -= oldest.bytes;
        std::free(oldest.data);
      }
      return;
    }
  }
  std::free(block.data);
}

}  // namespace rnnfast
