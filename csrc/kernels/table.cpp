// The table of one instruction set.
#include "table.hpp"

#include "gemm.hpp"

#define RNNFAST_TEXT_(x) #x
#define RNNFAST_TEXT(x) RNNFAST_TEXT_(x)

namespace rnnfast::RNNFAST_ISA {

#define RNNFAST_CELL(name)                  \
  extern const CellKernels<float> name##32; \
  extern const CellKernels<double> name##64;
RNNFAST_CELL(lstm)
RNNFAST_CELL(gru_after)
RNNFAST_CELL(gru_before)
RNNFAST_CELL(rnn_tanh)
RNNFAST_CELL(rnn_relu)
RNNFAST_CELL(rnn_sigmoid)
RNNFAST_CELL(gated)
#undef RNNFAST_CELL

extern const FlexibleKernels<float> flexible32[kFlexKinds];
extern const FlexibleKernels<double> flexible64[kFlexKinds];
extern const FlexibleKernels<Dual> flexible_dual[kFlexKinds];
extern const LowKernels low_kernels;
extern const InstructionSet instruction_set;
const InstructionSet instruction_set = {
    RNNFAST_TEXT(RNNFAST_ISA),
    {kLanes<float>,
     kWidest,
     {&lstm32, &gru_after32, &gru_before32, &rnn_tanh32, &rnn_relu32, &rnn_sigmoid32, &gated32},
     pack_panels,
     multiply_panels,
     multiply_tn,
     add,
     tn_scratch,
     flexible32,
     evaluate,
     total},
    {kLanes<double>,
     kWidest,
     {&lstm64, &gru_after64, &gru_before64, &rnn_tanh64, &rnn_relu64, &rnn_sigmoid64, &gated64},
     pack_panels,
     multiply_panels,
     multiply_tn,
     add,
     tn_scratch,
     flexible64,
     evaluate,
     nullptr},
    {kLanes<double>,
     kWidest,
     {},
     pack_panels,
     multiply_panels,
     multiply_tn,
     add,
     tn_scratch,
     flexible_dual,
     nullptr,
     nullptr},
    &low_kernels};

}  // namespace rnnfast::RNNFAST_ISA
