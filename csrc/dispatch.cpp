#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

#if defined(__linux__)
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

#if defined(__x86_64__) && defined(__linux__)
// Linux keeps the 8 KB of AMX's registers only for processes that have asked for it.
bool may_use_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
#else
bool may_use_amx() { return false; }
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
  if (!std::strcmp(name, "avx512amx"))
    return processor_has("avx512bf16") && __builtin_cpu_supports("amx-tile") &&
           __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-int8") &&
           may_use_amx();
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

}  // namespace rnnfast
