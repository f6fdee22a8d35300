// A pass over one stack of plain layers on a flat list of buffers, as the operators of other
// libraries' graphs hand them. This header is all that a library of such operators needs.
//
// The buffers are row-major, and one that is not there is empty. D directions; the other letters as
// in params.hpp, but N = T*B, of which lengths may leave the last rows of what is saved unused.
//
//   forward     x [T, B, I], h_0 and c_0 [L*D, B, H], lengths [B], weights: w_ih, w_hh, b_ih and
//               b_hh of every direction of every layer in order
//            -> y [T, B, D*H], h_n and c_n [L*D, B, H], saved
//   backward    the arguments of the forward pass, saved, dy, dh_n, dc_n
//            -> dx, dh_0, dc_0, the gradients of the weights
//   transposed  w_ih is [I, G*H] and w_hh [H, G*H], and so are their gradients
//   places      [G] of the gates in weights and their gradients, or none for our order
//   dx, dh_0    empty where they are not wanted, and so are the gradients of w_ih and w_hh
//   saved       between [L-1, N, D*H]: the y of every layer but the last; gates [L*D, N, S, H], h
//               and c [L*D, N, H], as in Saved. Empty where the forward pass saves nothing, gates
//               also where it saves for "recompute".
#pragma once

#include <cstddef>
#include <cstdint>

namespace rnnfast {

enum class NumberKind { kF32, kF64, kS32, kS64, kOther };

struct FlatBuffer {
  void* data;
  NumberKind kind;
  const int64_t* dims;  // [rank]
  size_t rank;

  int64_t count() const {
    int64_t product = 1;
    for (size_t d = 0; d < rank; d++) product *= dims[d];
    return product;
  }
};

struct FlatPass {
  bool backward;
  const char* cell;
  int64_t layers, directions;
  bool transposed;
  const int64_t* places;  // [place_count]
  int64_t place_count;
  const char* save;  // "", "all" or "recompute"
  const FlatBuffer* inputs;
  size_t input_count;
  const FlatBuffer* outputs;
  size_t output_count;
};

// False where it fails, with why in `message`, of so many bytes.
using RunFlatPass = bool (*)(const FlatPass& pass, char* message, size_t bytes);
bool run_flat_pass(const FlatPass& pass, char* message, size_t bytes);

}  // namespace rnnfast
