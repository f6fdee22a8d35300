// The kernels of rnnfast/backends/cuda/steps.cu on the CPU, for tests: every thread of a block is a
// fiber; barriers and shuffles switch between them. This proves the kernels' logic, not that they
// run on a GPU. Built and called by tests/fake_cupy.py.
//
// Wrong code that would hang or be undefined on a GPU is an error here: a barrier that some threads
// of a block never reach, a shuffle without the whole warp, a barrier in a kernel launched as one
// without. Threads of a block and blocks of a grid run in an order that the caller chooses, so that
// results that depend on it show.
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace emulation {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};
Dim thread_index, block_index, block_dim, grid_dim;

enum class Wait { kNone, kBlock, kWarp, kDone };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  Wait wait = Wait::kNone;
};

std::vector<Fiber> fibers;
std::vector<std::uint64_t> exchanged;  // a number of each thread
ucontext_t scheduler;
int current = -1;  // the fiber that runs; -1 where threads run without barriers
const char* error = nullptr;
void (*body)(void**) = nullptr;
void** arguments = nullptr;

void stop(const char* what) {
  if (error == nullptr) error = what;
}

void wait_for(Wait what) {
  if (current < 0) {
    stop("a barrier in a kernel launched as one without barriers");
    return;
  }
  Fiber& self = fibers[current];
  self.wait = what;
  swapcontext(&self.context, &scheduler);
}

void run_fiber() {
  body(arguments);
  fibers[current].wait = Wait::kDone;
  swapcontext(&fibers[current].context, &scheduler);
}

// The place of the k-th thread or block in an order: 0 forwards, 1 backwards, else scattered.
unsigned place(unsigned k, unsigned count, int order) {
  if (order == 0) return k;
  if (order == 1) return count - 1 - k;
  unsigned step = unsigned(order) | 1u;
  while (true) {
    unsigned a = step, b = count;
    while (b != 0) {
      const unsigned r = a % b;
      a = b;
      b = r;
    }
    if (a == 1) break;
    step += 2;
    if (step > unsigned(order) + 4096) return k;
  }
  return unsigned((std::uint64_t(k) * step + 7) % count);
}

// Threads that wait for one another go on once all of them have come.
bool release(int first, int end, Wait what) {
  int waiting = 0, done = 0;
  for (int t = first; t < end; t++) {
    waiting += fibers[t].wait == what;
    done += fibers[t].wait == Wait::kDone;
  }
  if (waiting == 0) return false;
  if (done > 0) {
    stop(what == Wait::kBlock ? "a barrier that threads of the block never reached"
                              : "a shuffle that threads of the warp never reached");
    return false;
  }
  if (waiting < end - first) return false;
  for (int t = first; t < end; t++) fibers[t].wait = Wait::kNone;
  return true;
}

void run_block_with_barriers(int order) {
  const int count = int(block_dim.x);
  if (int(fibers.size()) < count) fibers.resize(count);
  exchanged.resize(count);
  for (int t = 0; t < count; t++) {
    Fiber& f = fibers[t];
    f.stack.resize(1 << 16);
    f.wait = Wait::kNone;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
  }
  while (error == nullptr) {
    bool ran = false, all_done = true;
    for (int k = 0; k < count && error == nullptr; k++) {
      const int t = int(place(unsigned(k), unsigned(count), order));
      if (fibers[t].wait == Wait::kDone) continue;
      all_done = false;
      if (fibers[t].wait != Wait::kNone) continue;
      ran = true;
      current = t;
      thread_index.x = unsigned(t);
      swapcontext(&scheduler, &fibers[t].context);
    }
    current = -1;
    if (all_done) return;
    bool released = release(0, count, Wait::kBlock);
    for (int w = 0; w < count; w += 32) released |= release(w, w + 32, Wait::kWarp);
    if (!ran && !released) stop("threads wait for one another for ever");
  }
}

template <class T>
T shuffle_xor(T value, int lanes) {
  std::memcpy(&exchanged[thread_index.x], &value, sizeof(T));
  const unsigned self = thread_index.x;
  wait_for(Wait::kWarp);
  std::memcpy(&value, &exchanged[self ^ unsigned(lanes)], sizeof(T));
  wait_for(Wait::kWarp);
  return value;
}

}  // namespace emulation

#define __device__
#define __global__
#define __shared__ static
#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_dim
#define gridDim emulation::grid_dim
#define __syncthreads() emulation::wait_for(emulation::Wait::kBlock)
#define __shfl_xor_sync(mask, value, lanes) emulation::shuffle_xor(value, lanes)

#include "../rnnfast/backends/cuda/steps.cu"

namespace {

using namespace rnnfast;

template <class X>
X& at(void** a, int k) {
  return *static_cast<X*>(a[k]);
}

struct Entry {
  const char* cell;
  int size;  // of the dtype in bytes
  int norm;
  const char* kernel;
  bool barriers;
  void (*body)(void**);
};

template <class Cell, class T, bool kNorm>
void add(std::vector<Entry>& table, const char* cell) {
  const auto entry = [&](const char* kernel, bool barriers, void (*body)(void**)) {
    table.push_back({cell, int(sizeof(T)), kNorm, kernel, barriers, body});
  };
  using F = ForwardStep<T>;
  using B = BackwardStep<T>;
  entry("inputs", true, [](void** a) {
    inputs_kernel<Cell>(at<T*>(a, 0), at<T*>(a, 1), at<Index>(a, 2));
  });
  entry("inputs_back", true, [](void** a) {
    inputs_back_kernel<Cell>(at<const T*>(a, 0), at<const T*>(a, 1), at<const T*>(a, 2),
                             at<const T*>(a, 3), at<T*>(a, 4), at<Index>(a, 5));
  });
  entry("forward", kNorm, [](void** a) { forward_kernel<Cell, T, kNorm>(at<F>(a, 0)); });
  entry("forward_second", kNorm && Cell::kSecondProduct,
        [](void** a) { forward_second_kernel<Cell, T, kNorm>(at<F>(a, 0)); });
  entry("gather", false, [](void** a) { gather_kernel(at<B>(a, 0)); });
  entry("backward", kNorm, [](void** a) { backward_kernel<Cell, T, kNorm>(at<B>(a, 0)); });
  entry("backward_second", kNorm && Cell::kSecondProduct,
        [](void** a) { backward_second_kernel<Cell, T, kNorm>(at<B>(a, 0)); });
  entry("pass", false, [](void** a) { pass_kernel(at<B>(a, 0)); });
}

template <class Cell>
void add_all(std::vector<Entry>& table, const char* cell) {
  add<Cell, float, false>(table, cell);
  add<Cell, float, true>(table, cell);
  add<Cell, double, false>(table, cell);
  add<Cell, double, true>(table, cell);
}

const std::vector<Entry>& table() {
  static const std::vector<Entry> entries = [] {
    std::vector<Entry> made;
    add_all<Lstm>(made, "Lstm");
    add_all<GruAfter>(made, "GruAfter");
    add_all<GruBefore>(made, "GruBefore");
    add_all<Rnn>(made, "Rnn");
    add_all<Gated>(made, "Gated");
    return made;
  }();
  return entries;
}

}  // namespace

extern "C" {

// Runs a kernel to its end; returns null or what is wrong with it.
const char* emulate(const char* cell, int size, int norm, const char* kernel, unsigned grid_x,
                    unsigned grid_y, unsigned block, int order, void** arguments) {
  using namespace emulation;
  const Entry* found = nullptr;
  for (const Entry& e : table())
    if (!std::strcmp(e.cell, cell) && e.size == size && e.norm == norm &&
        !std::strcmp(e.kernel, kernel))
      found = &e;
  if (found == nullptr) return "no such kernel";
  if (block == 0 || block > 1024 || block % 32 != 0 || grid_y > 65535)
    return "a block or grid of a size that is not supported";
  error = nullptr;
  body = found->body;
  emulation::arguments = arguments;
  block_dim = {block, 1, 1};
  grid_dim = {grid_x, grid_y, 1};
  const unsigned blocks = grid_x * grid_y;
  for (unsigned k = 0; k < blocks && error == nullptr; k++) {
    const unsigned b = place(k, blocks, order);
    block_index = {b % grid_x, b / grid_x, 0};
    if (found->barriers) {
      run_block_with_barriers(order);
      continue;
    }
    for (unsigned j = 0; j < block && error == nullptr; j++) {
      thread_index.x = place(j, block, order);
      body(arguments);
    }
  }
  return error;
}

unsigned long long size_of(const char* what) {
  if (!std::strcmp(what, "ForwardStep")) return sizeof(ForwardStep<float>);
  if (!std::strcmp(what, "BackwardStep")) return sizeof(BackwardStep<double>);
  return 0;
}
}
