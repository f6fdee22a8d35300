// Regions on the threads of an OpenMP runtime that another library has brought into the process.
//
// Such threads spin for milliseconds after each region of that library, on the cores that workers
// of our own would need: on two cores, a training step with torch's layers around ours took up to
// 1.3 times as long with two threads as with one (Linux 6.18, libgomp, 2026-11-30). Regions of both
// on the same threads do not meet.
#pragma once

namespace rnnfast {

struct OpenMp {
  void (*parallel)(void (*body)(void*), void* context, unsigned threads, unsigned flags);
  int (*thread_num)();
  int (*num_threads)();
  int (*max_threads)();
  int (*in_parallel)();
};

// Of GOMP_parallel, which libgomp and LLVM's libomp have, and omp_get_thread_num and so on, all of
// one library. Not in children of fork, where libgomp would wait for threads that are gone.
void use_openmp(const OpenMp& functions);

// Whether it is in use, and has n threads for this one: as many as that library takes, because a
// team of another size would end threads and start them again.
bool openmp_has(int n);

// As `run_parallel`, where it has n.
bool run_openmp(int n, void (*body)(void* context, int id), void* context);

}  // namespace rnnfast
