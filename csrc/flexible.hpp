// A layer of a cell with options, and its forward and backward pass over plain pointers.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "buffer.hpp"
#include "kernels/table.hpp"
#include "region.hpp"

namespace rnnfast {

template <class T>
struct FlexibleSaved {
  int64_t steps, batch;
  std::vector<int64_t> offset;  // [T + 1]
  const T* x;                   // [N, I], the caller's
  struct Direction {
    Buffer<T> saved, scales, h_before, operand_before, c_before;  // see FlexibleForward
  } directions[2];
};

template <class T>
struct FlexibleForwardArrays {
  const T* x;    // [N, I]
  const T* h_0;  // [D, B, P] or null for zeros
  const T* c_0;  // [D, B, H] or null for zeros
  T* y;          // [N, D*P]
  T* h_n;        // [D, B, P], may be h_0
  T* c_n;        // [D, B, H], may be c_0; null for a cell without c
  StateMasks<T> masks[2];
  struct {
    T *saved, *scales, *h_before, *operand_before, *c_before;
  } keep[2] = {};  // where to save, as in FlexibleSaved; null for memory of its own
};

constexpr int kWeightFields = 10;

// Pointers to the fields, in the order in which Python and XLA list them.
template <class Fields>
auto each_field(Fields& w) {
  return std::array{&w.w_ih,   &w.w_hh,  &w.b_ih,  &w.b_hh, &w.w_hr,
                    &w.w_peep, &w.ln_ih, &w.ln_hh, &w.ln_c, &w.ln_c_shift};
}
constexpr const char* kWeightNames[kWeightFields] = {
    "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "w_peep", "ln_ih", "ln_hh", "ln_c", "ln_c_shift"};
inline std::array<int64_t, kWeightFields> weight_sizes(int64_t G, int64_t I, int64_t H, int64_t P) {
  return {G * H * I, G * H * P, G * H, G * H, P * H, 3 * H, G * H, G * H, H, H};
}

// Whether those that must be there are.
template <class T>
bool complete(const FlexibleWeights<T>& w, int64_t H, int64_t P) {
  return w.w_ih && w.w_hh && (w.w_hr || P == H) && !w.ln_ih == !w.ln_hh;
}

template <class T>
struct FlexibleBackwardArrays {
  const T* dy;    // [N, D*P] or null for zeros
  const T* dh_n;  // [D, B, P] or null
  const T* dc_n;  // [D, B, H] or null
  T* dx;          // [N, I]
  FlexibleGradients<T> dweights[2];
  T* dh_0;  // [D, B, P]
  T* dc_0;  // [D, B, H] or null
  StateMasks<T> masks[2];
};

template <class T>
class FlexibleLayer {
 public:
  // The arrays behind `weights` must outlive the layer: its backward pass packs them again.
  FlexibleLayer(FlexibleKind cell, const CellOptions& options,
                std::vector<FlexibleWeights<T>> weights, int64_t input, int64_t hidden,
                int64_t outputs);

  std::unique_ptr<FlexibleSaved<T>> forward(const Batch& batch,
                                            const FlexibleForwardArrays<T>& arrays,
                                            bool save) const;
  void backward(const FlexibleSaved<T>& saved, const FlexibleBackwardArrays<T>& arrays) const;

  bool has_c() const { return cell_->has_c; }
  int64_t input() const { return input_; }
  int64_t hidden() const { return hidden_; }
  int64_t outputs() const { return outputs_; }
  int directions() const { return int(weights_.size()); }

 private:
  struct Packed {
    Buffer<T> x_data, h_data[2];
    Panels<T> x, h[2];
  };
  Panels<T> panels(Buffer<T>& data, int64_t k, int64_t n, const T* weights, int64_t row,
                   int64_t column) const;
  int saved_slots() const;
  Written written() const;
  Workload work(const std::vector<int64_t>& offset, int64_t batch) const;

  const Kernels<T>* kernels_;
  const FlexibleKernels<T>* cell_;
  CellOptions options_;
  std::vector<FlexibleWeights<T>> weights_;
  int64_t input_, hidden_, outputs_;
  bool norm_;
  Packed packed_[2];
};

}  // namespace rnnfast
