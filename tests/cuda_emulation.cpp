// The kernels of rnnfast/backends/cuda/ on the CPU, for tests: every thread of a block is a fiber;
// barriers and shuffles switch between them. This proves the kernels' logic, not that they run on a
// GPU. Built and called by tests/fake_cupy.py.
//
// The blocks of a cooperative launch are there all at once: one of them runs until all of its
// threads wait for other blocks, then the next, so that blocks get as far ahead of one another as
// barriers allow. Else blocks run one after the other.
//
// Wrong code that would hang or be undefined on a GPU is an error here: a barrier that some threads
// of a block never reach, a shuffle without the whole warp, a barrier in a kernel launched as one
// without, blocks that wait for one another for ever. Threads of a block and blocks of a grid run
// in an order that the caller chooses, so that results that depend on it show.
#undef _FORTIFY_SOURCE  // its longjmp takes another fiber's stack for a mistake
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace emulation {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};
Dim thread_index, block_index, block_dim, grid_dim;

enum class Wait { kNone, kBlock, kWarp, kPause, kDone };

constexpr std::size_t kStack = 1 << 16;
constexpr std::size_t kGuard = 64;  // numbers behind the memory of a block

struct Fiber {
  ucontext_t context;
  jmp_buf place;  // where it goes on
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started = false, turn = false;
  Wait wait = Wait::kNone;
};

// What a lane gives to a product of tiles.
struct Tiles {
  unsigned a[4], b[2];
};
std::vector<Tiles> tiles[2];  // of each fiber, in two places in turns, as `exchanged`

// What a thread has fetched, and is not there yet.
struct Fetched {
  float *to, value;
};

std::vector<Fiber> fibers;                // of all blocks that are there
std::vector<std::vector<std::vector<Fetched>>> lots;  // of each fiber
unsigned met = 0, all = 0;  // threads that have come to where all of them meet
bool moved = false;         // whether one has told others something that they may wait for
std::vector<std::uint64_t> exchanged[2];  // a number of each
std::vector<std::vector<double>> shared;  // memory of each block
jmp_buf scheduler;
int current = -1;  // the fiber that runs; -1 where threads run without barriers
int current_block = 0;
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
  if (_setjmp(self.place) == 0) _longjmp(scheduler, 1);
}

void run_fiber() {
  body(arguments);
  fibers[current].wait = Wait::kDone;
  _longjmp(scheduler, 1);
}

// Runs a fiber until it waits. (Its own function: nothing of it is needed after the jump back.)
__attribute__((noinline)) void resume(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

constexpr int kAhead = -1;  // forwards, and each warp as far as it gets before the next one runs

// The place of the k-th thread or block in an order: 0 forwards, 1 backwards, else scattered.
unsigned place(unsigned k, unsigned count, int order) {
  if (order == 0 || order == kAhead) return k;
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

void begin(int count) {
  if (int(fibers.size()) < count) fibers.resize(count);
  for (auto& numbers : exchanged) numbers.resize(count);
  for (auto& given : tiles) given.resize(count);
  lots.assign(std::size_t(count), {});
  met = 0;
  all = unsigned(count);
  for (int t = 0; t < count; t++) {
    Fiber& f = fibers[t];
    f.wait = Wait::kNone;
    f.started = f.turn = false;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
  }
}

// Runs the fibers from `first` on, those of a block, until each is done or pauses; returns whether
// any of them did more than that.
bool run_block(int first, int order) {
  const int count = int(block_dim.x);
  bool progress = false;
  for (int t = first; t < first + count; t++)
    if (fibers[t].wait == Wait::kPause) fibers[t].wait = Wait::kNone;
  while (error == nullptr) {
    bool ran = false;
    for (int k = 0; k < count && error == nullptr; k++) {
      const int t = int(place(unsigned(k), unsigned(count), order));
      Fiber& fiber = fibers[first + t];
      if (fiber.wait == Wait::kNone) {
        current = first + t;
        thread_index.x = unsigned(t);
        resume(fiber);
        ran = true;
        progress |= fiber.wait != Wait::kPause;
      }
      const bool end = order == kAhead && k % 32 == 31;
      if (end && release(first + k - 31, first + k + 1, Wait::kWarp)) k -= 32;
    }
    current = -1;
    bool released = release(first, first + count, Wait::kBlock);
    for (int w = first; w < first + count; w += 32) released |= release(w, w + 32, Wait::kWarp);
    if (!ran && !released) return progress;
  }
  return progress;
}

bool all_done(int first, int end) {
  for (int t = first; t < end; t++)
    if (fibers[t].wait != Wait::kDone) return false;
  return true;
}

void place_block(unsigned b) {
  current_block = int(b);
  block_index = {b % grid_dim.x, b / grid_dim.x % grid_dim.y, b / grid_dim.x / grid_dim.y};
}

// All blocks, each with so many bytes of shared memory.
void run_together(unsigned blocks, std::size_t bytes, int order) {
  const int count = int(block_dim.x);
  begin(int(blocks) * count);
  shared.assign(blocks, std::vector<double>(bytes / sizeof(double) + kGuard));
  for (auto& memory : shared) std::memset(memory.data(), 0xff, memory.size() * sizeof(double));
  while (error == nullptr && !all_done(0, int(blocks) * count)) {
    bool progress = false;
    moved = false;
    for (unsigned k = 0; k < blocks && error == nullptr; k++) {
      const unsigned b = place(k, blocks, order);
      place_block(b);
      progress |= run_block(int(b) * count, order);
    }
    if (!progress && !moved) stop("threads wait for one another for ever");
  }
  for (const auto& memory : shared)
    for (std::size_t k = (bytes + sizeof(double) - 1) / sizeof(double); k < memory.size(); k++)
      for (const char byte : std::string(reinterpret_cast<const char*>(&memory[k]), sizeof(double)))
        if (byte != char(0xff)) stop("more shared memory than was asked for");
}

// Numbers are exchanged in two places in turns: who writes one has waited since it was last read.
template <class T>
T shuffle_xor(T value, int lanes) {
  const unsigned self = unsigned(current);  // blocks are of whole warps
  const bool turn = fibers[self].turn = !fibers[self].turn;
  std::memcpy(&exchanged[turn][self], &value, sizeof(T));
  wait_for(Wait::kWarp);
  std::memcpy(&value, &exchanged[turn][self ^ unsigned(lanes)], sizeof(T));
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


// Numbers of 16 bits, rounded to the nearest, ties to even, as a device does. Denormals too.
namespace rnnfast {
inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
// The upper bits of a number, rounded, without the lowest `count`.
inline std::uint32_t without(std::uint32_t bits, int count) {
  const std::uint32_t half = 1u << (count - 1), odd = bits >> count & 1;
  return (bits + half - 1 + odd) >> count;
}
inline unsigned short bfloat16_bits(float x) {
  return (unsigned short)(x != x ? 0x7fff : without(bits_of(x), 16));
}
inline float bfloat16_value(unsigned short bits) { return float_of(std::uint32_t(bits) << 16); }
inline unsigned short float16_bits(float x) {
  const std::uint32_t sign = bits_of(x) >> 16 & 0x8000, size = bits_of(x) & 0x7fffffff;
  if (x != x) return 0x7fff;
  if (size >= 0x477ff000) return (unsigned short)(sign | 0x7c00);  // 65520, and infinity
  if (size >= 0x38800000)                                          // 2^-14: no denormal
    return (unsigned short)(sign | without(size - 0x38000000, 13));
  // Adding 0.5 leaves the last bits of a denormal, rounded, at the end of the sum.
  return (unsigned short)(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000));
}
inline float float16_value(unsigned short bits) {
  const std::uint32_t sign = std::uint32_t(bits & 0x8000) << 16, size = bits & 0x7fff;
  if (size >= 0x7c00) return float_of(sign | 0x7f800000 | size << 13);
  // 2^112 sets the exponents right, those of denormals too.
  return float_of(sign | bits_of(float_of(size << 13) * 0x1p112f));
}
}  // namespace rnnfast

#include "../rnnfast/backends/cuda/numbers.cuh"

namespace rnnfast {

inline unsigned word_at(const void* p) {
  if (reinterpret_cast<std::uintptr_t>(p) % 4 != 0) emulation::stop("a load that is not aligned");
  unsigned word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// Half k % 2 of the words of a lane.
template <class S>
float number_of(unsigned word, int k) {
  S number;
  number.bits = (unsigned short)(k % 2 == 0 ? word : word >> 16);
  return number;
}

// As the PTX ISA has the fragments of mma.m16n8k16: a is in words (g, 2t) (g + 8, 2t) (g, 2t + 8)
// (g + 8, 2t + 8), b in words (2t, g) (2t + 8, g).
template <class S>
void add_product_of_tiles(float* sums, const unsigned* a, const unsigned* b) {
  using emulation::tiles;
  const int self = emulation::current, warp = self / 32 * 32, lane = self % 32;
  const bool turn = emulation::fibers[self].turn = !emulation::fibers[self].turn;
  std::memcpy(tiles[turn][self].a, a, sizeof tiles[turn][self].a);
  std::memcpy(tiles[turn][self].b, b, sizeof tiles[turn][self].b);
  emulation::wait_for(emulation::Wait::kWarp);
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; k++) {
      const auto& of_a = tiles[turn][warp + row % 8 * 4 + k % 8 / 2].a;
      const auto& of_b = tiles[turn][warp + column * 4 + k % 8 / 2].b;
      sums[i] += number_of<S>(of_a[row / 8 + k / 8 * 2], k) * number_of<S>(of_b[k / 8], k);
    }
  }
}

}  // namespace rnnfast

// --------------------------------------------------------------------- clusters of blocks

namespace emulation {

// A mailbox in its 8 bytes.
struct Box {
  std::int32_t awaited;  // bytes: those that were announced less those that have come
  std::uint16_t phase;   // those that have ended
  std::uint16_t open;    // whether the announcement is to come
};

Box read_box(const void* box) {
  Box found;
  std::memcpy(&found, box, sizeof found);
  return found;
}

void write_box(void* box, Box b) {
  moved = true;
  if (b.open == 0 && b.awaited == 0) b = {0, std::uint16_t(b.phase + 1), 1};
  std::memcpy(box, &b, sizeof b);
}

// The same place in the memory of another block of the cluster, which is all that differ in x.
char* in_block(unsigned block, const void* place) {
  auto& own = shared[std::size_t(current_block)];
  const std::ptrdiff_t offset =
      static_cast<const char*>(place) - reinterpret_cast<const char*>(own.data());
  if (offset < 0 || offset >= std::ptrdiff_t(own.size() * sizeof(double)) || block >= grid_dim.x)
    stop("a place outside of the cluster's memory");
  if (error != nullptr) return const_cast<char*>(static_cast<const char*>(place));
  const std::size_t other = std::size_t(current_block) - block_index.x + block;
  return reinterpret_cast<char*>(shared[other].data()) + offset;
}

}  // namespace emulation

#include "../rnnfast/backends/cuda/exchange.cuh"

namespace rnnfast {

inline void open_mailbox(Mailbox* box) {
  const emulation::Box b{0, 0, 1};
  std::memcpy(box, &b, sizeof b);
}

inline void meet_cluster() {
  using namespace emulation;
  const unsigned wanted = (met / all + 1) * all;
  met++;
  moved = true;
  while (met < wanted && error == nullptr) wait_for(Wait::kPause);
}

inline void expect_bytes(Mailbox* box, unsigned bytes) {
  emulation::Box b = emulation::read_box(box);
  if (b.open == 0) emulation::stop("bytes are announced twice in a phase");
  b.open = 0;
  b.awaited += std::int32_t(bytes);
  emulation::write_box(box, b);
}

inline void await_bytes(Mailbox* box, unsigned phase) {
#ifdef EMULATED_IMPATIENT  // a mistake that tests are to find
  return;
#endif
  while (emulation::read_box(box).phase % 2 == phase && emulation::error == nullptr)
    emulation::wait_for(emulation::Wait::kPause);
}

template <int kCount>
inline void send(unsigned block, float* to, Mailbox* box, const float (&x)[kCount]) {
  using namespace emulation;
  char *there = in_block(block, to), *counted = in_block(block, box);
  if (error != nullptr) return;
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof x != 0) stop("a store that is not aligned");
  const int first = (current_block - int(block_index.x) + int(block)) * int(block_dim.x);
  if (all_done(first, first + int(block_dim.x))) stop("numbers for a block that has ended");
  std::memcpy(there, x, sizeof x);
  Box b = read_box(counted);
  b.awaited -= std::int32_t(sizeof x);
  write_box(counted, b);
}

inline void fetch(float* to, const float* from) {
  auto& own = emulation::lots[std::size_t(emulation::current)];
  if (own.empty()) own.emplace_back();
  own.back().push_back({to, *from});
  *to = float_of(0x7fc00000);  // NaN until it is there
}

inline void end_of_lot() {
  auto& own = emulation::lots[std::size_t(emulation::current)];
  if (own.empty()) own.emplace_back();
  own.emplace_back();
}

template <int kLots>
inline void await_lots_but() {
  auto& own = emulation::lots[std::size_t(emulation::current)];
  while (own.size() > kLots + 1) {
    for (const auto& one : own.front()) *one.to = one.value;
    own.erase(own.begin());
  }
}

}  // namespace rnnfast

#define RNNFAST_PAUSE() emulation::wait_for(emulation::Wait::kPause)
#include "../rnnfast/backends/cuda/sequences.cuh"

namespace rnnfast {
inline void arrive(Count* counter) {
  emulation::moved = true;
  ++*counter;
}
inline Count seen(const Count* counter) { return *counter; }
}  // namespace rnnfast

#ifdef EMULATED_DIVISION
#include "../rnnfast/backends/cuda/cluster.cu"
#else
#include "../rnnfast/backends/cuda/grid.cu"
#include "../rnnfast/backends/cuda/steps.cu"
#endif

namespace {

using namespace rnnfast;

template <class X>
X& at(void** a, int k) {
  return *static_cast<X*>(a[k]);
}

double* own_memory() { return emulation::shared[emulation::current_block].data(); }

enum class Kind { kFree, kBarriers, kTogether };

struct Entry {
  const char* cell;
  const char* stored;  // the type, as launch.py names it
  int variant;  // whether there is a norm; how products are made
  const char* kernel;
  Kind kind;
  void (*body)(void**);
};

#ifdef EMULATED_DIVISION

const std::vector<Entry>& table() {
  using Cell = EMULATED_CELL;
  using T = EMULATED_REAL;
  using S = EMULATED_STORED;
#if EMULATED_BACKWARD
  static const std::vector<Entry> entries{{nullptr, nullptr, 1, "backward_steps", Kind::kTogether, [](void** a) {
    backward_cluster<Cell, T, S, EMULATED_DIVISION>(
        at<Directions<BackwardSequence<T, S>>>(a, 0).of[blockIdx.z], own_memory());
  }}};
#else
  static const std::vector<Entry> entries{{nullptr, nullptr, 0, "forward_steps", Kind::kTogether, [](void** a) {
    forward_cluster<Cell, T, S, EMULATED_DIVISION>(
        at<Directions<ForwardSequence<T, S>>>(a, 0).of[blockIdx.z], own_memory());
  }}};
#endif
  return entries;
}

#else

template <class Cell, class T, class S, bool kNorm>
void add(std::vector<Entry>& table, const char* cell, const char* stored) {
  const auto entry = [&](const char* kernel, bool barriers, void (*body)(void**)) {
    const Kind kind = barriers ? Kind::kBarriers : Kind::kFree;
    table.push_back({cell, stored, kNorm, kernel, kind, body});
  };
  using F = ForwardStep<T, S>;
  using B = BackwardStep<T, S>;
  entry("inputs", true,
        [](void** a) { inputs_kernel<Cell>(at<T*>(a, 0), at<T*>(a, 1), at<Index>(a, 2)); });
  entry("inputs_back", true, [](void** a) {
    inputs_back_kernel<Cell>(at<const T*>(a, 0), at<const S*>(a, 1), at<const T*>(a, 2),
                             at<const T*>(a, 3), at<S*>(a, 4), at<Index>(a, 5));
  });
  entry("forward", kNorm, [](void** a) { forward_kernel<Cell, T, S, kNorm>(at<F>(a, 0)); });
  entry("forward_second", kNorm && Cell::kSecondProduct,
        [](void** a) { forward_second_kernel<Cell, T, S, kNorm>(at<F>(a, 0)); });
  entry("gather", false, [](void** a) { gather_kernel(at<B>(a, 0)); });
  entry("backward", kNorm, [](void** a) { backward_kernel<Cell, T, S, kNorm>(at<B>(a, 0)); });
  entry("backward_second", kNorm && Cell::kSecondProduct,
        [](void** a) { backward_second_kernel<Cell, T, S, kNorm>(at<B>(a, 0)); });
  entry("pass", false, [](void** a) { pass_kernel(at<B>(a, 0)); });
}

template <class Cell, class T, class S, class Products>
void add_sequences(std::vector<Entry>& table, const char* cell, const char* stored, int products) {
  using F = Directions<ForwardSequence<T, S>>;
  using B = Directions<BackwardSequence<T, S>>;
  const auto entry = [&](const char* kernel, void (*body)(void**)) {
    table.push_back({cell, stored, products, kernel, Kind::kTogether, body});
  };
  entry("forward_steps", [](void** a) {
    forward_sequence<Cell, T, S, Products>(at<F>(a, 0).of[blockIdx.z], own_memory());
  });
  entry("backward_steps", [](void** a) {
    backward_sequence<Cell, T, S, Products>(at<B>(a, 0).of[blockIdx.z], own_memory());
  });
}

template <class Cell, class T, class S>
void add_type(std::vector<Entry>& table, const char* cell, const char* stored) {
  add<Cell, T, S, false>(table, cell, stored);
  add<Cell, T, S, true>(table, cell, stored);
  add_sequences<Cell, T, S, Lanes<1>>(table, cell, stored, 0);
  add_sequences<Cell, T, S, Lanes<8>>(table, cell, stored, 1);
  if constexpr (kNarrow<T, S>) add_sequences<Cell, T, S, TensorCores>(table, cell, stored, 2);
}

template <class Cell>
void add_all(std::vector<Entry>& table, const char* cell) {
  add_type<Cell, float, float>(table, cell, "float");
  add_type<Cell, double, double>(table, cell, "double");
  add_type<Cell, float, Float16>(table, cell, "rnnfast::Float16");
  add_type<Cell, float, BFloat16>(table, cell, "rnnfast::BFloat16");
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

#endif

}  // namespace

extern "C" {

// Runs a kernel to its end; returns null or what is wrong with it. `shared` is a number of bytes,
// or -1 where the launch is not a cooperative one.
const char* emulate(const char* cell, const char* stored, int variant, const char* kernel,
                    const unsigned* grid, unsigned block, int shared, int order, void** arguments) {
  using namespace emulation;
  const Entry* found = nullptr;
  for (const Entry& e : table())
    if ((e.cell == nullptr || (!std::strcmp(e.cell, cell) && !std::strcmp(e.stored, stored))) &&
        e.variant == variant && !std::strcmp(e.kernel, kernel))
      found = &e;
  if (found == nullptr) return "no such kernel";
  if (block == 0 || block > 1024 || block % 32 != 0 || grid[1] > 65535 || grid[2] > 65535)
    return "a block or grid of a size that is not supported";
  if ((found->kind == Kind::kTogether) != (shared >= 0))
    return "launched together, or not, against what it needs";
  error = nullptr;
  body = found->body;
  emulation::arguments = arguments;
  block_dim = {block, 1, 1};
  grid_dim = {grid[0], grid[1], grid[2]};
  const unsigned blocks = grid[0] * grid[1] * grid[2];
  if (found->kind == Kind::kTogether) {
    run_together(blocks, std::size_t(shared), order);
    return error;
  }
  for (unsigned k = 0; k < blocks && error == nullptr; k++) {
    place_block(place(k, blocks, order));
    if (found->kind == Kind::kBarriers) {
      begin(int(block));
      run_block(0, order);
      if (error == nullptr && !all_done(0, int(block)))
        stop("threads wait for one another for ever");
      continue;
    }
    for (unsigned j = 0; j < block && error == nullptr; j++) {
      thread_index.x = place(j, block, order);
      body(arguments);
    }
  }
  return error;
}

// Rounds numbers to 16 bits, and turns any 16 bits into numbers.
void round_to(const char* stored, const float* from, unsigned short* to, long long count) {
  const bool brain = !std::strcmp(stored, "rnnfast::BFloat16");
  for (long long k = 0; k < count; k++)
    to[k] = brain ? BFloat16(from[k]).bits : Float16(from[k]).bits;
}
void values_of(const char* stored, const unsigned short* from, float* to, long long count) {
  const bool brain = !std::strcmp(stored, "rnnfast::BFloat16");
  for (long long k = 0; k < count; k++)
    to[k] = brain ? bfloat16_value(from[k]) : float16_value(from[k]);
}

unsigned long long size_of(const char* what) {
  if (!std::strcmp(what, "ForwardStep")) return sizeof(ForwardStep<float, Float16>);
  if (!std::strcmp(what, "BackwardStep")) return sizeof(BackwardStep<double, double>);
  if (!std::strcmp(what, "ForwardSequences")) return sizeof(Directions<ForwardSequence<float, Float16>>);
  if (!std::strcmp(what, "BackwardSequences")) return sizeof(Directions<BackwardSequence<double, double>>);
#ifndef EMULATED_DIVISION
  if (!std::strcmp(what, "TensorCores")) return TensorCores::kBytes;
#endif
  return 0;
}
}
