// What the machine can do at most, for bench/limits.py: limits THREADS MEGABYTES SECONDS
//
// Prints one JSON object: float32 multiply-adds from registers (fma_gflops), those that a matrix
// unit for bfloat16 can make of its own, which takes six products of parts for one, from the
// second-level cache (matrix_gflops, 0 without such a unit), reading of buffers of growing size, in
// all (read: [[bytes, GB/s], ...]), and one barrier of spinning threads (barrier_ns). Each thread
// reads a buffer of its own, of bytes / THREADS. SECONDS is the length of one trial; the best of
// the trials counts, because limits are asked for, not averages.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__linux__) && defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kAccumulators = 24;
#elif defined(__AVX__)
constexpr int kBytes = 32, kAccumulators = 12;
#elif defined(__aarch64__)
constexpr int kBytes = 16, kAccumulators = 24;
#else
constexpr int kBytes = 16, kAccumulators = 12;
#endif
typedef float Vec __attribute__((vector_size(kBytes)));
constexpr long kLanes = kBytes / sizeof(float);
constexpr int kTrials = 12;

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const int generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
    } else {
      while (generation_.load(std::memory_order_acquire) == generation) {
      }
    }
  }

 private:
  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

// The shortest time, of several trials, in which every thread has run work(thread).
template <class Work>
double shortest(int threads, const Work& work) {
  Barrier barrier(threads);
  double best = 1e30;
  auto body = [&](int thread) {
    work(thread);
    for (int trial = 0; trial < kTrials; ++trial) {
      barrier.wait();
      const double start = now();
      work(thread);
      barrier.wait();
      if (thread == 0) best = std::min(best, now() - start);
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(body, thread);
  body(0);
  for (std::thread& other : others) other.join();
  return best;
}

// Repeats of work(repeats, thread) that one thread does in this many seconds.
template <class Work>
long calibrate(double seconds, const Work& work) {
  for (long repeats = 1;; repeats *= 2) {
    const double start = now();
    work(repeats, 0);
    const double spent = now() - start;
    if (spent > seconds / 4) return std::max(1L, static_cast<long>(repeats * seconds / spent));
  }
}

volatile float sink;

double fma_gflops(int threads, double seconds) {
  auto work = [](long repeats, int) {
    const volatile float factor = 0.999f;
    const Vec m = Vec{} + factor;
    Vec sums[kAccumulators];
    for (int k = 0; k < kAccumulators; ++k) sums[k] = Vec{} + factor * k;
    for (long r = 0; r < repeats; ++r) {
#pragma GCC unroll 24
      for (int k = 0; k < kAccumulators; ++k) sums[k] = sums[k] * m + m;
    }
    for (int k = 1; k < kAccumulators; ++k) sums[0] += sums[k];
    sink = sums[0][0];
  };
  const long repeats = calibrate(seconds, work);
  const double time = shortest(threads, [&](int thread) { work(repeats, thread); });
  return 2.0 * kLanes * kAccumulators * repeats * threads / time / 1e9;
}

#if defined(__linux__) && defined(__AMX_BF16__)
struct alignas(64) Tiles {
  unsigned char palette = 1, start = 0, reserved[14] = {};
  unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Three parts of the numbers of 32 rows and 32 columns, a block of 32 k after the other, from the
// second-level cache: eight tiles cannot hold what a product reads. Real numbers: of zeros it makes
// a fifth more, as it needs less power.
double matrix_gflops(int threads, double seconds) {
  constexpr long kRequest = 0x1023, kTileData = 18;               // of arch_prctl
  constexpr int kBlocks = 32, kOfBlock = 12, kNumbers = 16 * 32;  // of a tile
  if (syscall(SYS_arch_prctl, kRequest, kTileData) != 0) return 0;
  std::vector<std::vector<unsigned short>> operands(threads);
  for (auto& operand : operands) {
    operand.resize(kBlocks * kOfBlock * kNumbers + 32);
    unsigned random = 1;
    for (unsigned short& number : operand) {
      random = random * 1664525 + 1013904223;
      number = static_cast<unsigned short>(0x3f00 | (random >> 16 & 0x80ff));
    }
  }
  auto work = [&](long repeats, int thread) {
    Tiles tiles;
    asm volatile("" : "+m"(tiles) : : "memory");
    _tile_loadconfig(&tiles);
    const auto address = reinterpret_cast<size_t>(operands[thread].data());
    const auto* first = reinterpret_cast<const unsigned short*>((address + 63) / 64 * 64);
#define RNNFAST_ROWS(part)                       \
  _tile_loadd(4, block + (part) * kNumbers, 64); \
  _tile_loadd(5, block + (3 + (part)) * kNumbers, 64)
#define RNNFAST_COLUMNS(part)                          \
  _tile_loadd(6, block + (6 + (part)) * kNumbers, 64); \
  _tile_loadd(7, block + (9 + (part)) * kNumbers, 64)
#define RNNFAST_PRODUCTS() \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 5, 6); \
  _tile_dpbf16ps(2, 4, 7); \
  _tile_dpbf16ps(3, 5, 7)
    for (long r = 0; r < repeats; ++r)
      for (int b = 0; b < kBlocks; ++b) {
        const unsigned short* block = first + b * kOfBlock * kNumbers;
        RNNFAST_ROWS(2);
        RNNFAST_COLUMNS(0);
        RNNFAST_PRODUCTS();
        RNNFAST_ROWS(1);
        RNNFAST_PRODUCTS();
        RNNFAST_COLUMNS(1);
        RNNFAST_PRODUCTS();
        RNNFAST_ROWS(0);
        RNNFAST_PRODUCTS();
        RNNFAST_COLUMNS(2);
        RNNFAST_PRODUCTS();
        RNNFAST_COLUMNS(0);
        RNNFAST_PRODUCTS();
      }
#undef RNNFAST_ROWS
#undef RNNFAST_COLUMNS
#undef RNNFAST_PRODUCTS
    _tile_release();
  };
  const long repeats = calibrate(seconds, work);
  const double time = shortest(threads, [&](int thread) { work(repeats, thread); });
  return 2.0 * 32 * 32 * 32 * kBlocks * repeats * threads / time / 1e9;
}
#else
double matrix_gflops(int, double) { return 0; }
#endif

float read(const Vec* data, long vectors) {
  Vec sums[8] = {};
  for (long k = 0; k + 8 <= vectors; k += 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j] += data[k + j];
  }
  for (int j = 1; j < 8; ++j) sums[0] += sums[j];
  return sums[0][0];
}

double read_gbs(const std::vector<Vec*>& buffers, long vectors, double seconds) {
  auto work = [&](long repeats, int thread) {
    float sum = 0;
    for (long r = 0; r < repeats; ++r) {
      sum += read(buffers[thread], vectors);
      asm volatile("" : : "r"(buffers[thread]) : "memory");  // the next repeat reads again
    }
    sink = sum;
  };
  const int threads = static_cast<int>(buffers.size());
  const long repeats = calibrate(seconds, work);
  const double time = shortest(threads, [&](int thread) { work(repeats, thread); });
  return static_cast<double>(vectors) * kBytes * repeats * threads / time / 1e9;
}

double barrier_ns(int threads) {
  constexpr int kMeetings = 20000;
  Barrier barrier(threads);
  return shortest(threads,
                  [&](int) {
                    for (int k = 0; k < kMeetings; ++k) barrier.wait();
                  }) /
         kMeetings * 1e9;
}

Vec* buffer(long bytes) {
  constexpr long kPage = 2L << 20;
  const long rounded = (bytes + kPage - 1) / kPage * kPage;
  void* data = std::aligned_alloc(kPage, rounded);
  if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(data, rounded, MADV_HUGEPAGE);
#endif
  std::fill_n(static_cast<float*>(data), rounded / sizeof(float), 1e-3f);
  return static_cast<Vec*>(data);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const int threads = std::atoi(argv[1]);
  const long most = std::atol(argv[2]) << 20;
  const double seconds = std::atof(argv[3]);
  std::printf("{\"fma_gflops\": %.1f, \"matrix_gflops\": %.1f, \"read\": [",
              fma_gflops(threads, seconds), matrix_gflops(threads, seconds));
  std::vector<Vec*> buffers;
  for (int k = 0; k < threads; ++k) buffers.push_back(buffer(most / threads));
  const char* comma = "";
  for (long size = 16 << 10; size <= most; size *= 2) {
    for (long bytes : {size, size / 2 * 3}) {
      const long step = 8L * kBytes * threads;
      const long each = bytes / step * 8;  // vectors
      if (bytes > most) break;
      const double rate = read_gbs(buffers, each, seconds);
      std::printf("%s[%ld, %.1f]", comma, each * kBytes * threads, rate);
      comma = ", ";
    }
  }
  std::printf("], \"barrier_ns\": %.0f}\n", threads > 1 ? barrier_ns(threads) : 0.0);
}
