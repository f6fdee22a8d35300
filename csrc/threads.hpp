// Threads: one parallel region at a time on a small pool of our own, and the barrier inside it.
// Beside a library that works on OpenMP's threads, on those (see openmp.hpp).
//
// Why not OpenMP: a process that has used libgomp hangs in a forked child that uses it again, each
// framework brings its own copy, and its workers keep spinning beside ours. It was also slower:
// with two threads on a Zen 4 server (GCC 12, 2026-11-23), a barrier took 79 to 162 ns here and 252
// to 457 ns in libgomp, an empty region 106 ns and 540 ns. Clean under ThreadSanitizer that day.
// Workers spin for a tenth of a millisecond after a region, so that a stream of calls finds them
// awake, then sleep. One that was woken for the calls to come spins until the call that did it has
// ended, for 2 ms at most.
#pragma once

#include <cstdint>

namespace rnnfast {

// The barrier of a team. Spins, and yields the processor when the others are late.
struct alignas(64) Barrier {
  int size;
  alignas(64) int arrived = 0;
  alignas(64) int epoch = 0;

  explicit Barrier(int members) : size(members) {}
  void wait();
};

// A count that one thread raises, once what it stands for has been written, and others wait for.
void wait_until(const int64_t* count, int64_t least);
void raise_to(int64_t* count, int64_t value);

int thread_count();
void set_thread_count(int n);

// The default: RNNFAST_NUM_THREADS, else the processors that this process may use. Throws
// std::invalid_argument when the variable is not a number from 1 to 1024.
int default_thread_count();

// Calls body(context, id) for id 0 to n - 1 at once, id 0 on the calling thread, and returns when
// all have. Denormals are flushed to zero inside on every thread, and the mode restored after.
// Where another thread of the process is inside a region, or no worker can be started, returns
// false and has done nothing.
bool run_parallel(int n, void (*body)(void* context, int id), void* context);

// Whether n threads could start at once. Where they could not and the last call has ended just now,
// wakes the workers, without waiting for them, for the calls to come.
bool threads_ready(int n);
// Tells that a call has ended.
void note_call();

// Nanoseconds in which n threads meet: some 40 where their cores share a cache, 300 and more where
// they do not. Measured from time to time, when they are awake. Where they are not, or a thread of
// the process is inside a region, what was measured last.
double meeting_ns(int n);
// Measured now, over so many meetings; 0 where the threads are not to be had.
double measure_meeting_ns(int n, int meetings);

// Flushes denormals to zero while it lives.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace rnnfast
