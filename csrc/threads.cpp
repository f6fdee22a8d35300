#include "threads.hpp"

#include <pthread.h>
#include <sched.h>
#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "openmp.hpp"

namespace rnnfast {
namespace {

// Whether a call runs that has woken workers for the calls after it.
std::atomic<bool> calls_to_come{false};

int64_t nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

inline void relax() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

constexpr int kSpinsBeforeYield = 1000;
constexpr int kSpinsOfWorker = 64;  // between two looks at the clock
// Nanoseconds. A pause takes 10 to 50, depending on the processor.
constexpr int64_t kSpinFor = 100'000;           // a worker, before it sleeps
constexpr int64_t kSpinInCall = 2'000'000;      // a worker in a call that has woken it
constexpr int64_t kOpenMpSpinsFor = 1'000'000;  // at least: libgomp spins 300 thousand pauses
constexpr int64_t kMeasuredFor = 50'000'000;    // a measurement takes 3 to 30 thousand

// Spins, and yields the processor when it takes long.
template <class Condition>
void spin_while(Condition waiting) {
  for (int spins = 0; waiting(); spins++) {
    if (spins < kSpinsBeforeYield)
      relax();
    else
      sched_yield();
  }
}

int this_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// The processors that a thread may use. A worker on the caller's processor would take turns with
// it, a slice of the scheduler each, and one that is woken there waits until the caller gives way.
// A Linux that is a guest wakes it there: it takes an idle processor for one that the host took
// away.
class Affinity {
 public:
#if defined(__linux__)
  // Forbids one to a thread (0 is this one), unless that leaves none.
  bool forbid(int cpu, pid_t thread) {
    if (cpu < 0 || sched_getaffinity(thread, sizeof allowed_, &allowed_) != 0) return false;
    cpu_set_t others = allowed_;
    CPU_CLR(cpu, &others);
    return CPU_COUNT(&others) > 0 && sched_setaffinity(thread, sizeof others, &others) == 0;
  }
  // Allows this thread what was allowed before.
  void restore() const { sched_setaffinity(0, sizeof allowed_, &allowed_); }
  static pid_t this_thread() { return pid_t(syscall(SYS_gettid)); }

 private:
  cpu_set_t allowed_;
#else
  bool forbid(int, pid_t) { return false; }
  void restore() const {}
  static pid_t this_thread() { return 0; }
#endif
};

void leave_cpu(int cpu) {
  Affinity before;
  if (before.forbid(cpu, 0)) before.restore();
}

void flushed(void (*body)(void*, int), void* context, int id) {
  const FlushDenormals guard;
  body(context, id);
}

constexpr int kMostThreads = 1024;

// Workers that wait for regions. Never destroyed: at process exit the operating system ends the
// workers, and a destructor would have to wait for them.
class Pool {
 public:
  bool run(int n, void (*body)(void*, int), void* context) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    if (!start_workers(n - 1)) {
      busy_.store(false, std::memory_order_release);
      return false;
    }
    body_ = body;
    context_ = context;
    cpu_ = this_cpu();
    running_.store(n - 1, std::memory_order_relaxed);
    for (int k = 0; k < n - 1; k++) {
      workers_[k]->keep_from(cpu_);
      workers_[k]->regions.fetch_add(1);
      if (workers_[k]->asleep.load()) workers_[k]->wake();
    }
    flushed(body, context, 0);
    spin_while([&] { return running_.load(std::memory_order_acquire) > 0; });
    busy_.store(false, std::memory_order_release);
    return true;
  }

  // Whether n - 1 workers spin.
  bool awake(int n) const {
    const int started = started_.load(std::memory_order_acquire);
    for (int k = 0; k < n - 1; k++)
      if (k >= started || workers_[k]->asleep.load()) return false;
    return true;
  }

  // Makes n - 1 workers spin, without waiting for that.
  void nudge(int n) {
    if (busy_.exchange(true, std::memory_order_acquire)) return;
    start_workers(n - 1);
    for (int k = 0; k < std::min(n - 1, started_.load()); k++) {
      if (!workers_[k]->asleep.load()) continue;
      workers_[k]->keep_from(this_cpu());
      workers_[k]->nudges.fetch_add(1);
      workers_[k]->wake();
    }
    busy_.store(false, std::memory_order_release);
  }

 private:
  struct alignas(64) Worker {
    std::atomic<uint32_t> regions{0};  // that it was called to
    std::atomic<uint32_t> nudges{0};
    std::atomic<bool> asleep{true};  // or not yet running
    std::atomic<bool> kept{false};   // from a processor, until it restores `before`
    std::atomic<pid_t> thread{0};
    Affinity before;
    std::mutex mutex;
    std::condition_variable condition;

    // Before it is woken, by whoever has the pool.
    void keep_from(int caller) {
      const pid_t self = thread.load();  // 0 where it has not begun, which would mean the caller
      if (self && asleep.load() && !kept.load()) kept.store(before.forbid(caller, self));
    }

    // The worker says that it sleeps before it looks for work a last time, and others give work
    // before they look whether it sleeps. So one of them sees the other.
    void wake() {
      {
        std::lock_guard<std::mutex> lock(mutex);
      }
      condition.notify_one();
    }

    // Waits for the region after `seen`: spins, then sleeps, then spins again after a nudge. It
    // spins until the call that gave the nudge has ended and for a while: where that took longer
    // than a worker spins, each call would find it asleep, and nudge it again.
    void wait_after(uint32_t seen) {
      const auto called = [&] { return regions.load() != seen; };
      for (;;) {
        const int64_t start = nanoseconds();
        for (int64_t now = start, end = start + kSpinFor; now < end; now = nanoseconds()) {
          for (int spins = 0; spins < kSpinsOfWorker; spins++) {
            if (called()) return;
            relax();
          }
          if (calls_to_come.load(std::memory_order_relaxed))
            end = std::min(now + kSpinFor, start + kSpinInCall);
        }
        std::unique_lock<std::mutex> lock(mutex);
        const uint32_t nudged = nudges.load();
        asleep.store(true);
        condition.wait(lock, [&] { return called() || nudges.load() != nudged; });
        asleep.store(false);
        if (kept.exchange(false)) before.restore();
      }
    }
  };

  // While busy_ is held. False where the system gives no more threads.
  bool start_workers(int count) {
    if (count >= kMostThreads) return false;
    try {
      for (int k = started_.load(); k < count; k++) {
        if (!workers_[k]) workers_[k] = new Worker;
        std::thread([this, k] { work(*workers_[k], k + 1); }).detach();
        started_.store(k + 1, std::memory_order_release);
      }
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

  void work(Worker& own, int id) {
    own.thread.store(Affinity::this_thread());
    own.asleep.store(false);
    for (uint32_t seen = 0;; seen++) {
      own.wait_after(seen);
      if (cpu_ >= 0 && this_cpu() == cpu_) leave_cpu(cpu_);
      flushed(body_, context_, id);
      running_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  std::atomic<bool> busy_{false};
  Worker* workers_[kMostThreads] = {};
  std::atomic<int> started_{0};
  void (*body_)(void*, int) = nullptr;
  void* context_ = nullptr;
  int cpu_ = -1;  // where the caller runs, or -1
  std::atomic<int> running_{0};
};

std::atomic<Pool*> pool{nullptr};
std::atomic<int> threads{0};
std::atomic<int64_t> last_call{0};  // nanoseconds
std::atomic<int64_t> last_measured{0};
std::atomic<double> measured{40};  // nanoseconds of a meeting

Pool& the_pool() {
  Pool* found = pool.load(std::memory_order_acquire);
  if (found) return *found;
  static std::once_flag once;
  // Threads do not survive fork: the child starts with no pool and makes a new one when it needs
  // it.
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); }); });
  Pool* made = new Pool;
  if (pool.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

}  // namespace

void Barrier::wait() {
  const int now = __atomic_load_n(&epoch, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == size) {
    __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&epoch, now + 1, __ATOMIC_RELEASE);
    return;
  }
  spin_while([&] { return __atomic_load_n(&epoch, __ATOMIC_ACQUIRE) == now; });
}

void wait_until(const int64_t* count, int64_t least) {
  spin_while([&] { return __atomic_load_n(count, __ATOMIC_ACQUIRE) < least; });
}
void raise_to(int64_t* count, int64_t value) { __atomic_store_n(count, value, __ATOMIC_RELEASE); }

// The number of threads that the environment asks for, 0 where it does not.
static int asked_for() {
  const char* text = std::getenv("RNNFAST_NUM_THREADS");
  if (!text || !*text) return 0;
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  if (end == text || *end || n < 1 || n > kMostThreads)
    throw std::invalid_argument(
        std::string("RNNFAST_NUM_THREADS: expected a number from 1 to 1024, got '") + text + "'");
  return int(n);
}

int default_thread_count() {
  const int asked = asked_for();
  if (asked) return asked;
  int processors = int(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) processors = CPU_COUNT(&allowed);
#endif
  // torchrun tells each of the processes that it starts on this machine how many there are. The
  // variable is not ours, so that what makes no sense there is no error.
  const char* given = std::getenv("LOCAL_WORLD_SIZE");
  const long processes = given ? std::strtol(given, nullptr, 10) : 1;
  return int(std::max(1L, processors / std::max(1L, processes)));
}

int thread_count() { return threads.load(std::memory_order_relaxed); }
void set_thread_count(int n) { threads.store(n, std::memory_order_relaxed); }

bool run_parallel(int n, void (*body)(void*, int), void* context) {
  if (n < 2) {
    flushed(body, context, 0);
    return true;
  }
  if (!openmp_has(n)) return the_pool().run(n, body, context);
  struct Flushed {
    void (*body)(void*, int);
    void* context;
  } inner{body, context};
  const auto member = [](void* of, int id) {
    const Flushed& f = *static_cast<Flushed*>(of);
    flushed(f.body, f.context, id);
  };
  return run_openmp(n, member, &inner);
}

// Whether n - 1 others spin, as far as is known.
static bool others_awake(int n) {
  if (openmp_has(n))
    return nanoseconds() - last_call.load(std::memory_order_relaxed) < kOpenMpSpinsFor;
  const Pool* found = pool.load(std::memory_order_acquire);
  return found && found->awake(n);
}

bool threads_ready(int n) {
  if (n < 2) return false;
  if (others_awake(n)) return true;
  if (!openmp_has(n) && nanoseconds() - last_call.load(std::memory_order_relaxed) < kSpinFor) {
    calls_to_come.store(true, std::memory_order_relaxed);
    the_pool().nudge(n);
  }
  return false;
}
void note_call() {
  last_call.store(nanoseconds(), std::memory_order_relaxed);
  if (calls_to_come.load(std::memory_order_relaxed))
    calls_to_come.store(false, std::memory_order_relaxed);
}

double measure_meeting_ns(int n, int meetings) {
  struct Trial {
    Barrier barrier;
    int meetings;
    int64_t spent;
  } trial{Barrier(n), meetings, 0};
  const auto meet = [](void* context, int id) {
    Trial& t = *static_cast<Trial*>(context);
    t.barrier.wait();  // all are there
    const int64_t start = nanoseconds();
    for (int k = 0; k < t.meetings; k++) t.barrier.wait();
    if (id == 0) t.spent = nanoseconds() - start;
  };
  if (n < 2 || !run_parallel(n, meet, &trial)) return 0;
  return double(trial.spent) / meetings;
}

double meeting_ns(int n) {
  const int64_t call = last_call.load(std::memory_order_relaxed);
  const int64_t before = last_measured.load(std::memory_order_relaxed);
  if (n > 1 && call - before > kMeasuredFor && others_awake(n)) {
    double best = std::numeric_limits<double>::infinity();
    for (int k = 0; k < 5; k++)  // some are interrupted
      best = std::min(best, measure_meeting_ns(n, 16));
    if (best > 0) {
      measured.store(best, std::memory_order_relaxed);
      last_measured.store(call, std::memory_order_relaxed);
    }
  }
  return measured.load(std::memory_order_relaxed);
}

#if defined(__SSE2__)
FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(uint32_t(saved_) | 0x8040); }
FlushDenormals::~FlushDenormals() { _mm_setcsr(uint32_t(saved_)); }
#elif defined(__aarch64__)
FlushDenormals::FlushDenormals() {
  asm volatile("mrs %0, fpcr" : "=r"(saved_));
  asm volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));
}
FlushDenormals::~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
#else
FlushDenormals::FlushDenormals() : saved_(0) {}
FlushDenormals::~FlushDenormals() { (void)saved_; }
#endif

}  // namespace rnnfast
