// Which instruction sets were compiled in, which this processor has, and which is in use.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.hpp"

namespace rnnfast {

// Those that this processor has, from the plainest to the widest.
std::vector<const InstructionSet*> available_sets();

// The set in use: RNNFAST_ISA at the start, else the widest. Throws std::invalid_argument for a
// name that is unknown or that this processor lacks.
const InstructionSet& active_set();
void use_set(const std::string& name);

// The products of 16 and 8 bits of the set in use. Where AMX is refused at their first use, those
// of the next set below.
const LowKernels& low_kernels();
// Those of float32 in parts; null where the set in use has none.
const LowKernels* split_kernels();
// Whether they may be used. Asks the system at its first call.
bool may_split();

}  // namespace rnnfast
