// A layer with its prepared weights, and its forward and backward pass over plain pointers.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "buffer.hpp"
#include "kernels/table.hpp"
#include "region.hpp"

namespace rnnfast {

enum class Save { kNothing, kAll, kRecompute };

// What a forward pass keeps for its backward pass: h (and c), and with kAll the S gates.
template <class T>
struct Saved {
  int64_t steps, batch;
  std::vector<int64_t> offset;            // [T + 1]
  const T* x;                             // [N, I], the caller's
  std::vector<int64_t> x_order, y_order;  // [B] where x or y were padded, see ForwardArrays
  bool zero_h;                            // whether h_0 is zero
  struct Direction {
    Buffer<T> h_0, c_0;  // [B, H]
    Buffer<T> gates;     // [N, S, H] or none
    Buffer<T> h, c;      // [N, H]
  } directions[2];
};

// Throws where `places` are neither none nor those of so many gates.
template <class Int>
Layout layout_of(bool transposed, const Int* places, int64_t count, int64_t gates) {
  Layout layout;
  layout.transposed = transposed;
  if (count == 0) return layout;
  bool right = count == gates;
  for (int64_t g = 0; right && g < gates; g++) {
    right = std::count(places, places + gates, Int(g)) == 1;
    layout.place[g] = int(places[g]);
  }
  if (!right) throw std::invalid_argument("places: expected one of each gate");
  return layout;
}

template <class T>
struct ForwardArrays {
  const T* x;    // [N, I]
  const T* h_0;  // [D, B, H] or null for zeros
  const T* c_0;  // [D, B, H] or null for zeros
  T* y;          // [N, D*H]
  T* h_n;        // [D, B, H]
  T* c_n;        // [D, B, H] or null for a cell without c
  struct {
    T *gates, *h, *c;
  } keep[2] = {};  // where to save, as in Saved; null for memory of its own
  // Where x or y are padded, [T, B, ...]: the row of a step where each packed row lies, [B]; null
  // where they are packed. Then dx or dy is padded too. Padding of y and dx becomes zero.
  const int64_t* x_order = nullptr;
  const int64_t* y_order = nullptr;
};

template <class T>
struct BackwardArrays {
  const T* dy;    // [N, D*H] or null for zeros
  const T* dh_n;  // [D, B, H] or null
  const T* dc_n;  // [D, B, H] or null
  T* dx;          // [N, I], or null where the first layer needs none
  struct Direction {
    T* w_ih;  // [G*H, I], laid out as the weights are
    T* w_hh;  // [G*H, H]
    T* b_ih;  // [G*H] or null
    T* b_hh;  // [G*H] or null
  } dweights[2];
  T* dh_0;  // [D, B, H] or null
  T* dc_0;  // [D, B, H] or null
};

// Memory for panels.
struct LowBuffers {
  Buffer<float> scale;
  Buffer<int32_t> correction;
  LowColumns columns() const { return {scale.get(), correction.get()}; }
};
template <class T>
struct PanelBuffers {
  Buffer<T> x, h[2];
  LowBuffers x_low, h_low[2];  // where they hold words
};

// Converted rows, see LowForward.
struct LowSpace {
  Buffer<uint32_t> x_operand, h_operand;
  Buffer<float> x_scale, h_scale;
};

// Scratch of a forward pass. A layer for reuse keeps it, so that its next call allocates nothing.
template <class T>
struct Workspace {
  std::vector<int64_t> offset;  // [T + 1]
  Buffer<T> zeros;              // [B, H]
  LowForward low[2];
  struct Direction {
    PanelBuffers<T> panels;     // of a pass that packs its weights itself
    Buffer<T> gx, h, c, gates;  // see Forward
    Buffer<const T*> x_rows;
    Buffer<T> h_0, c_0;  // [B, H] where the caller's are overwritten
    LowSpace low;
  } directions[2];
};

// A pass that has been set up: what its threads share.
template <class T>
struct ForwardCall {
  std::unique_ptr<Saved<T>> saved;
  std::unique_ptr<Workspace<T>> space;
  Forward<T> p[2];
  Workload work;
};
template <class T>
struct BackwardCall {
  struct Direction {
    PanelBuffers<T> panels, again_panels;
    Buffer<T> dgates[2], direct, dc, partial, scratch, gx, gates;
    Buffer<const T*> before, x_rows;
    Buffer<T*> dx_rows;
    Buffer<uint32_t> x_operand, h_operand;  // see LowBackward
    Buffer<float> x_special, h_special, row;
    LowBackward low;
    LowForward low_again;
    LowSpace again_space;
    Forward<T> again;
    Backward<T> p;
  } directions[2];
  Buffer<T> dx_reverse;
  Workload work;

  BackwardCall() = default;
  BackwardCall(const BackwardCall&) = delete;  // p points to again
  BackwardCall& operator=(const BackwardCall&) = delete;
};

template <class T>
class Layer {
 public:
  // The arrays behind `weights` must outlive the layer: the backward pass packs them again. Where
  // the layer is for `reuse`, its weights are packed now; else by each pass, in its own parallel
  // region. Weights of another precision than kFull are for reuse and float alone, and have no
  // backward pass.
  Layer(CellKind cell, std::vector<Weights<T>> weights, int64_t input, int64_t hidden, bool reuse,
        Precision precision = Precision::kFull);
  ~Layer() { delete spare_.load(); }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  // What the threads of a pass divide.
  Workload work(const std::vector<int64_t>& offset, int64_t batch, int threads) const;
  // A pass is set up, run by the members of teams, one direction at a time, and ended.
  // h_n and c_n may be h_0 and c_0.
  void begin(ForwardCall<T>& call, const Batch& batch, const ForwardArrays<T>& a, Save save,
             int threads) const;
  void pass(const Forward<T>& p, Team team) const;
  std::unique_ptr<Saved<T>> end(ForwardCall<T>& call) const;
  void begin(BackwardCall<T>& call, const Saved<T>& saved, const BackwardArrays<T>& a,
             int threads) const;
  void pass(const Backward<T>& p, Team team) const;
  // Lets a pass work where another direction's pass did, which has ended: its scratch and panels
  // are in the caches.
  void follow(Forward<T>& p, const Forward<T>& ended) const;
  void follow(Backward<T>& p, const Backward<T>& ended) const;

  // sum = a + b over n numbers.
  void add(const T* a, const T* b, int64_t n, T* sum, Team team) const {
    kernels_->add(a, b, n, sum, team);
  }

  const CellKernels<T>& cell() const { return *cell_; }
  int64_t input() const { return input_; }
  int64_t hidden() const { return hidden_; }
  int64_t outputs() const { return hidden_; }
  bool has_c() const { return cell_->has_c; }
  int directions() const { return int(weights_.size()); }
  const Weights<T>& weights(int d) const { return weights_[d]; }

 private:
  struct Packed {
    PanelBuffers<T> data;
    Buffer<T> bias, bias_h;
    Panels<T> x, h[2];
  };
  // Panels in parts of a layer for reuse, from its first batch on that is large enough.
  struct Parts {
    std::once_flag x, h;
    PanelBuffers<T> data[2];
  };
  void pack(int direction, Team team) const;
  void fill_weights(Forward<T>& f, int direction, PanelBuffers<T>& own, LowForward* low,
                    int64_t batch) const;
  template <class Pack>
  void divided(Pack pack) const;
  void prepare(Panels<T>& p, int64_t times, Team team) const;
  void prepare(Forward<T>& p, int64_t x_times, int64_t h_times, Team team) const;
  void place(Panels<T>& p, Buffer<T>& data) const;
  void place_words(Panels<T>& p, Precision precision, Buffer<T>& data, LowBuffers& low) const;
  const PanelBuffers<T>& parts_of(int direction, bool of_x) const;
  bool splits(int64_t batch) const;
  bool splits_x() const;
  bool splits_h(int64_t batch) const;
  void fill_low(LowForward& low, LowSpace& space, int64_t rows, int64_t batch, int threads,
                bool h_too) const;
  void split(const Panels<T>& numbers, const Panels<T>& words, const LowColumns& columns,
             Team team) const;
  void split(const Panels<T>& words, int64_t k, const LowColumns& columns, Team team) const;

  const Kernels<T>* kernels_;
  const CellKernels<T>* cell_;
  std::vector<Weights<T>> weights_;
  int64_t input_, hidden_;
  bool reuse_;
  Precision precision_;
  const LowKernels* low_;  // of weights of fewer bits, or of parts; or null
  int64_t split_batch_;    // as in InstructionSet, 0 where low_ is not of parts
  Packed packed_[2];
  mutable Parts parts_;
  mutable std::atomic<Workspace<T>*> spare_{nullptr};  // of the last call that has ended
};

// Layers one on top of the other: the y of one is the x of the next. They run one after the other,
// or chase one another through the steps, each on a thread of its own.
template <class T>
std::vector<std::unique_ptr<Saved<T>>> forward(const std::vector<const Layer<T>*>& layers,
                                               const Batch& batch,
                                               const std::vector<ForwardArrays<T>>& arrays,
                                               Save save);
template <class T>
void backward(const std::vector<const Layer<T>*>& layers, const std::vector<const Saved<T>*>& saved,
              const std::vector<BackwardArrays<T>>& arrays);

// c = a b, or a^T b, by the products under the kernels, packing included: for benchmarks.
template <class T>
void multiply(const T* a,  // [m, k], or [k, m] where transposed
              const T* b,  // [k, n]
              int64_t m, int64_t n, int64_t k, bool transposed,
              T* c);  // [m, n]
// The same in the matrix unit; false, and nothing done, where the set in use has none.
bool multiply_in_parts(const float* a, const float* b, int64_t m, int64_t n, int64_t k,
                       bool transposed, float* c);

}  // namespace rnnfast
