#include "dispatch.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

#if defined(RNNFAST_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "instruction_sets.inc"  // RNNFAST_SETS(X), RNNFAST_LOW_SETS(X): X(name) for each

namespace rnnfast {

#define RNNFAST_DECLARE(name)                  \
  namespace name {                             \
  extern const InstructionSet instruction_set; \
  }
RNNFAST_SETS(RNNFAST_DECLARE)
#undef RNNFAST_DECLARE

#define RNNFAST_DECLARE(name)          \
  namespace name {                     \
  extern const LowKernels low_kernels; \
  }
RNNFAST_LOW_SETS(RNNFAST_DECLARE)
#undef RNNFAST_DECLARE

namespace {

#if defined(RNNFAST_HAS_AMX)
// Of Linux' arch_prctl.
constexpr int kSupported = 0x1021, kRequestPermission = 0x1023, kTileData = 18;

bool has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned bfloat16 = 1u << 22, tiles = 1u << 24, int8 = 1u << 25,
                     all = bfloat16 | tiles | int8;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & all) != all) return false;
  uint64_t supported = 0;
  return syscall(SYS_arch_prctl, kSupported, &supported) == 0 && supported >> kTileData & 1;
}

// Linux gives the 8 KB of AMX's registers only to processes that have asked for them, and from then
// on refuses them stacks for signals that are too small for that. So only who needs them asks.
bool may_use_amx() {
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
#endif

bool processor_has(const char* name) {
#if defined(__x86_64__)
  if (!std::strcmp(name, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512vnni"))
    return processor_has("avx512") && __builtin_cpu_supports("avx512vnni");
  if (!std::strcmp(name, "avx512bf16"))
    return processor_has("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#if defined(RNNFAST_HAS_AMX)
  if (!std::strcmp(name, "avx512amx")) return processor_has("avx512bf16") && has_amx();
#endif
#endif
  return !std::strcmp(name, "baseline") || !std::strcmp(name, "neon");
}

const InstructionSet* find(const std::string& name) {
  std::string known;
  for (const InstructionSet* set : available_sets()) {
    if (name == set->name) return set;
    known += known.empty() ? set->name : std::string(", ") + set->name;
  }
  throw std::invalid_argument("RNNFAST_ISA: expected one of " + known +
                              " on this processor, got '" + name + "'");
}

std::atomic<const InstructionSet*> active{nullptr};

#if defined(RNNFAST_HAS_AMX)
// With fewer rows the matrix unit waits for the panels, which are half as long again.
constexpr int64_t kSplitBatch = 16;
#endif

}  // namespace

std::vector<const InstructionSet*> available_sets() {
  std::vector<const InstructionSet*> sets;
#define RNNFAST_ADD(name) \
  if (processor_has(#name)) sets.push_back(&name::instruction_set);
  RNNFAST_SETS(RNNFAST_ADD)
#undef RNNFAST_ADD
#define RNNFAST_ADD(name)                                                                   \
  static const InstructionSet name##_set{#name, avx512::instruction_set.f32,                \
                                         avx512::instruction_set.f64,                       \
                                         avx512::instruction_set.dual, &name::low_kernels}; \
  if (processor_has(#name)) sets.push_back(&name##_set);
  RNNFAST_LOW_SETS(RNNFAST_ADD)
#undef RNNFAST_ADD
#if defined(RNNFAST_HAS_AMX)
  const auto splitting = [&](const char* name, int64_t batch) {
    InstructionSet set = avx512amx_set;
    set.name = name;
    set.split_batch = batch;
    return set;
  };
  static const InstructionSet every = splitting("avx512amx_every", 1);
  static const InstructionSet usual = splitting("avx512amx", kSplitBatch);
  if (processor_has(usual.name)) {
    sets.back() = &every;
    sets.push_back(&usual);
  }
#endif
#if defined(__x86_64__)
  // A product of bfloat16 takes Intel's vectors four cycles, so that to widen weights is faster.
  if (__builtin_cpu_is("intel"))
    for (size_t k = 1; k < sets.size(); k++)
      if (!std::strcmp(sets[k]->name, "avx512bf16")) std::swap(sets[k], sets[k - 1]);
#endif
  return sets;
}

const InstructionSet& active_set() {
  if (!active.load()) {
    const char* wanted = std::getenv("RNNFAST_ISA");
    active.store(wanted && *wanted ? find(wanted) : available_sets().back());
  }
  return *active.load();
}

void use_set(const std::string& name) { active.store(find(name)); }

const LowKernels& low_kernels() {
#if defined(RNNFAST_HAS_AMX)
  const InstructionSet& set = active_set();
  if (set.split_batch > 0 && !may_use_amx()) {
    const auto sets = available_sets();
    return *(*std::find_if(sets.rbegin(), sets.rend(), [](auto s) {
              return !s->split_batch;
            }))->low;
  }
#endif
  return *active_set().low;
}

const LowKernels* split_kernels() {
  return active_set().split_batch > 0 ? active_set().low : nullptr;
}

bool may_split() {
#if defined(RNNFAST_HAS_AMX)
  return may_use_amx();
#else
  return false;
#endif
}

}  // namespace rnnfast
