#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "instruction_sets.inc"  // RNNFAST_SETS(X): X(name) for each, written by CMake

namespace rnnfast {

#define RNNFAST_DECLARE(name)                  \
  namespace name {                             \
  extern const InstructionSet instruction_set; \
  }
RNNFAST_SETS(RNNFAST_DECLARE)
#undef RNNFAST_DECLARE

#if defined(RNNFAST_HAS_AVX512BF16)
namespace avx512bf16 {
extern const LowKernels low_kernels;
}
#endif

namespace {

bool processor_has(const char* name) {
#if defined(__x86_64__)
  if (!std::strcmp(name, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512bf16"))
    return processor_has("avx512") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vnni");
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
#if defined(RNNFAST_HAS_AVX512BF16)
  // AVX-512 with other products of 16 and 8 bits.
  static const InstructionSet with_bf16{"avx512bf16", avx512::instruction_set.f32,
                                        avx512::instruction_set.f64, avx512::instruction_set.dual,
                                        &avx512bf16::low_kernels};
  if (processor_has("avx512bf16")) sets.push_back(&with_bf16);
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
