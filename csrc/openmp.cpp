#include "openmp.hpp"

#include <pthread.h>

#include <atomic>

namespace rnnfast {
namespace {

std::atomic<const OpenMp*> in_use{nullptr};
std::atomic<bool> busy{false};

// A child of fork has the runtime's memory and none of its threads, whichever library had used it.
std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] {
  forked.store(true);
  in_use.store(nullptr);
});

struct Call {
  const OpenMp& openmp;
  int n;
  void (*body)(void*, int);
  void* context;
  std::atomic<bool> ran{false};
};

void member(void* context) {
  Call& call = *static_cast<Call*>(context);
  if (call.openmp.num_threads() < call.n) return;  // all of them see that
  const int id = call.openmp.thread_num();
  if (id >= call.n) return;
  if (id == 0) call.ran.store(true, std::memory_order_relaxed);
  call.body(call.context, id);
}

}  // namespace

void use_openmp(const OpenMp& functions) {
  if (!forked.load()) in_use.store(new OpenMp(functions));  // for as long as the process lives
}

bool openmp_has(int n) {
  const OpenMp* openmp = in_use.load(std::memory_order_acquire);
  return openmp && openmp->max_threads() >= n && !openmp->in_parallel();
}

bool run_openmp(int n, void (*body)(void*, int), void* context) {
  const OpenMp* openmp = in_use.load(std::memory_order_acquire);
  if (!openmp || busy.exchange(true, std::memory_order_acquire)) return false;
  Call call{*openmp, n, body, context};
  openmp->parallel(&member, &call, unsigned(openmp->max_threads()), 0);
  const bool ran = call.ran.load(std::memory_order_relaxed);
  if (!ran) in_use.store(nullptr);  // a limit keeps it from having as many as it says
  busy.store(false, std::memory_order_release);
  return ran;
}

}  // namespace rnnfast
