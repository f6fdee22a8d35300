// What an instruction set offers to the driver.
#pragma once

#include "../flexible_params.hpp"
#include "low.hpp"

namespace rnnfast {

enum CellKind { kLstm, kGruAfter, kGruBefore, kRnnTanh, kRnnRelu, kRnnSigmoid, kGated, kCellKinds };

template <class T>
struct CellKernels {
  int gates;    // G
  int saved;    // S
  int written;  // W
  int stages;   // products of a step that wait for one another: 1 or 2
  bool has_c;
  int apart;            // gate whose recurrent part gets its own bias, or -1
  int stage_first[2];   // first gate of a stage's rows of w_hh
  int stage_gates[2];   // and how many
  int unit_vectors[2];  // widest block of the forward panels
  void (*forward)(const Forward<T>&, Team);
  void (*backward)(const Backward<T>&, Team);
};

template <class T>
struct Kernels {
  int lanes;
  int widest;  // of plain panels
  const CellKernels<T>* cells[kCellKinds];
  void (*pack_panels)(const Panels<T>&, Team);
  void (*multiply_panels)(const Rows<const T>&, int64_t, const Panels<T>&, const T*, const Rows<T>&,
                          Team);
  void (*multiply_tn)(const Rows<const T>&, int64_t, const Rows<const T>&, int64_t, int64_t, T*,
                      int64_t, bool, T*, Team);
  void (*add)(const T*, const T*, int64_t, T*, Team);
  int64_t (*tn_scratch)(const T*, int64_t, int64_t, int);
  const FlexibleKernels<T>* flexible;            // [kFlexKinds]
  void (*evaluate)(int, const T*, int64_t, T*);  // null for dual numbers, as the cells are
  T (*total)(const T*, int64_t, Team);           // null but for float
};

struct InstructionSet {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  Kernels<Dual> dual;
  const LowKernels* low;
  // The fewest rows of a batch whose float32 products are split (see split.hpp): the batch alone
  // decides, so that a row has the same bits however many steps are taken at a time. 0 for never.
  int64_t split_batch = 0;
};

template <class T>
const Kernels<T>& kernels(const InstructionSet& isa);

}  // namespace rnnfast
