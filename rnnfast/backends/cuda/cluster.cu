// All steps of a layer in one launch, w_hh in registers: the cluster engine, for small layers. A
// cluster of blocks has all units of some rows of the batch; what the next product reads goes from
// each block to all of them, into shared memory. rnnfast/backends/cuda/cluster.py launches it.
//
// A few lanes share a column of w_hh: each has every so many'th four of its numbers. They add up
// their sums, and then one of them goes on with the unit of a row. What belongs to a unit and row
// is read and written by that thread alone; all that other threads read goes through `Exchange`.
//
// Clusters do not wait for one another: there may be more of them than the device holds at a time.
#include "exchange.cuh"
#include "sequences.cuh"

namespace rnnfast {

constexpr int kThreads = 256;  // of a block

// How a launch is divided, known to the compiler, so that it has few addresses to compute in a
// step.
template <int kBlocksOfCluster, int kRowsAtATime, int kUnitsOfThread, int kLanesOfColumn,
          int kNumbersOfLane, int kUnitsOfLayer, int kRowsOfBlock, bool kWholeBlocks,
          bool kEqualSteps>
struct Division {
  static constexpr int kBlocks = kBlocksOfCluster;  // gridDim.x
  static constexpr int kRows = kRowsAtATime;        // of the batch, in registers
  static constexpr int kUnits = kUnitsOfThread;
  static constexpr int kLanes = kLanesOfColumn;      // 1, 2, .. 32
  static constexpr int kNumbers = kNumbersOfLane;    // a multiple of 4
  static constexpr int kLength = kLanes * kNumbers;  // of a column, with zeros at its end
  static constexpr int kHidden = kUnitsOfLayer;
  static constexpr int kBlockRows = kRowsOfBlock;
  static constexpr bool kWhole = kWholeBlocks;  // each block has so many
  static constexpr bool kEqual = kEqualSteps;   // each step has all rows: no `visits`
  static constexpr int kBlockUnits = kThreads / kLanes * kUnits;
  // After the sums have been added up, a lane has those of kOwn places (row and unit), or
  // kSharers lanes have those of one.
  static constexpr int kPlaces = kRows * kUnits;
  static constexpr int kOwn = kPlaces > kLanes ? kPlaces / kLanes : 1;
  static constexpr int kSharers = kPlaces > kLanes ? 1 : kLanes / kPlaces;
};

// What a block works on, and the steps that it goes through.
template <class D, class S>
struct Part {
  const Sequence<S>& s;
  int unit, unit_end;
  Index row;  // of the batch
  int row_count;

  __device__ explicit Part(const Sequence<S>& sequence) : s(sequence) {
    unit = D::kBlocks == 1 ? 0 : int(blockIdx.x) * D::kBlockUnits;
    const int end = unit + D::kBlockUnits;
    unit_end = D::kHidden % D::kBlockUnits != 0 && end > D::kHidden ? D::kHidden : end;
    row = Index(blockIdx.y) * D::kBlockRows;
    const Index left = s.batch - row;
    row_count = D::kWhole || left > D::kBlockRows ? D::kBlockRows : int(left);
  }

  // Without rows before the first step and after the last one.
  __device__ Visit visit(Index k) const {
    if (k < 0 || k >= s.visit_count) return {0, 0, 0};
    return visited(s, k);
  }

  // A number of the state before the first step.
  template <class T>
  __device__ T end(const void* numbers, Index at) const {
    if (!numbers) return 0;
    return s.wide_ends ? static_cast<const T*>(numbers)[at] : T(static_cast<const S*>(numbers)[at]);
  }

  // The state after the last step, of its units and rows; h and c are (D::kBlockRows, H).
  template <bool kHasC, class T>
  __device__ void leave(const T* h, const T* c) const {
    __syncthreads();
    const int units = unit_end - unit;
    for (int i = threadIdx.x; i < row_count * units; i += kThreads) {
      const int at = i / units * D::kHidden + unit + i % units;
      put(s.h_n, row * D::kHidden + at, h[at]);
      if (kHasC) put(s.c_n, row * D::kHidden + at, c[at]);
    }
  }
  template <class T>
  __device__ void put(void* numbers, Index at, T value) const {
    if (s.wide_ends)
      static_cast<T*>(numbers)[at] = value;
    else
      static_cast<S*>(numbers)[at] = S(value);
  }

  // Its rows of a step.
  __device__ int rows_of(const Visit& visit) const {
    if (D::kEqual && D::kWhole) return visit.rows > 0 ? D::kBlockRows : 0;
    const Index left = visit.rows - row;
    return left > row_count ? row_count : left < 0 ? 0 : int(left);
  }
};

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T numbers[4];
};

// What products read, in the memory of every block of the cluster: one lot is read while the next
// one arrives in the other of two places. Who gives numbers of a lot has read the one before; and a
// lot is there when all who read the one before it have given. So nothing is overwritten too early.
template <class D, class T>
struct Exchange {
  static constexpr bool kAlone = D::kBlocks == 1;
  Mailbox* boxes;  // (2,)
  T* numbers;      // (2, D::kBlockRows, D::kLength)

  __device__ T* lot(int turn) const { return numbers + (turn & 1) * D::kBlockRows * D::kLength; }

  __device__ void open() const {
    if (!kAlone && threadIdx.x < 2) open_mailbox(boxes + threadIdx.x);
    if (kAlone)
      __syncthreads();
    else
      meet_cluster();
  }

  // Before await() of the turn before; `given` numbers from all blocks.
  __device__ void expect(int turn, int given) const {
    if (!kAlone && threadIdx.x == 0) expect_bytes(boxes + (turn & 1), unsigned(given * sizeof(T)));
  }

  // `phase` counts those of this place that were awaited before.
  __device__ void await(int turn, int phase) const {
    if (kAlone)
      __syncthreads();
    else
      await_bytes(boxes + (turn & 1), phase & 1);
  }

  template <int kCount>
  __device__ void give(int turn, int row, int at, const T (&x)[kCount]) const {
    T* to = lot(turn) + row * D::kLength + at;
    if (kAlone)
      for (int i = 0; i < kCount; i++) to[i] = x[i];
    else
      for (int b = 0; b < D::kBlocks; b++) send(b, to, boxes + (turn & 1), x);
  }
};

// A thread's place in its block, and its part of w_hh.
template <class D>
struct Thread {
  int lane, unit, unit_end;  // its first unit, and the end of its block's

  template <class S>
  __device__ explicit Thread(const Part<D, S>& part)
      : lane(threadIdx.x % D::kLanes),
        unit(part.unit + threadIdx.x / D::kLanes * D::kUnits),
        unit_end(part.unit_end) {}

  // Whether any thread of its warp gives numbers. One that does not stays out of the steps: nobody
  // waits for it, so that phases of a mailbox could pass it by, of which it knows two apart.
  __device__ bool gives() const {
    const int first = unit - int(threadIdx.x % 32) / D::kLanes * D::kUnits;
    return D::kBlocks == 1 || first < unit_end;
  }

  // Number i of a column that it has.
  __device__ int number(int i) const { return 4 * (lane + i / 4 * D::kLanes) + i % 4; }

  // Of the rows from `row` to `end`, then(row, unit, m) for each of its own m.
  template <class Then>
  __device__ void for_own(int row, int end, Then then) const {
#pragma unroll
    for (int m = 0; m < D::kOwn; m++) {
      const int place = D::kSharers == 1 ? lane * D::kOwn + m : lane / D::kSharers;
      const int r = row + place % D::kRows, u = unit + place / D::kRows;
      if (lane % D::kSharers == 0 && u < unit_end && r < end) then(r, u, m);
    }
  }
};

// sums[(unit, row, sum)] of the rows of x from `row` to `end`, the last one standing in where there
// are fewer; added up.
template <class D, int kSums, class T>
__device__ void multiply(const Thread<D>& thread, const T (&w)[D::kUnits * kSums][D::kNumbers],
                         const T* x, int row, int end, T* sums) {
  const T* rows[D::kRows];
  for (int r = 0; r < D::kRows; r++)
    rows[r] = x + (row + r < end ? row + r : end - 1) * D::kLength + 4 * thread.lane;
  for (int i = 0; i < D::kPlaces * kSums; i++) sums[i] = 0;
#pragma unroll
  for (int i = 0; i < D::kNumbers; i += 4)
#pragma unroll
    for (int r = 0; r < D::kRows; r++) {
      const Four<T> four = *reinterpret_cast<const Four<T>*>(rows[r] + i * D::kLanes);
#pragma unroll
      for (int u = 0; u < D::kUnits; u++)
#pragma unroll
        for (int s = 0; s < kSums; s++)
#pragma unroll
          for (int j = 0; j < 4; j++)
            sums[(u * D::kRows + r) * kSums + s] += w[u * kSums + s][i + j] * four.numbers[j];
    }
  lane_sums<D::kPlaces, kSums, D::kLanes / 2>(sums);
}

// Memory of a block, handed out piece by piece.
struct Pieces {
  char* next;

  template <class X>
  __device__ X* of(int count) {
    X* piece = reinterpret_cast<X*>(next);
    next += (count * sizeof(X) + 15) / 16 * 16;
    return piece;
  }
};

// ----------------------------------------------------------------------------------- kernels

template <class Cell, class T, class S, class D>
__device__ void forward_cluster(const ForwardSequence<T, S>& sequence, void* memory) {
  static_assert(!Cell::kSecondProduct, "one product in a step");
  constexpr int kGates = Cell::kGates, H = D::kHidden, kInputs = D::kBlockRows * kGates * H;
  const Sequence<S>& s = sequence.of;
  const Part<D, S> part(s);
  const Thread<D> thread(part);

  T w[D::kUnits * kGates][D::kNumbers];
#pragma unroll
  for (int c = 0; c < D::kUnits * kGates; c++)
#pragma unroll
    for (int i = 0; i < D::kNumbers; i++) {
      const int unit = thread.unit + c / kGates, k = thread.number(i);
      const bool there = unit < thread.unit_end && k < H;
      w[c][i] = there ? T(s.w_hh[(c % kGates * H + unit) * s.w_stride + k]) : T(0);
    }

  Pieces pieces{static_cast<char*>(memory)};
  const Exchange<D, T> exchange{pieces.of<Mailbox>(2),
                                pieces.of<T>(2 * D::kBlockRows * D::kLength)};
  T* h = pieces.of<T>(D::kBlockRows * H);
  T* c = pieces.of<T>(Cell::kHasC ? D::kBlockRows * H : 0);
  T* gx = pieces.of<T>(2 * kInputs);
  S* b_ih = pieces.of<S>(kGates * H);
  S* b_hh = pieces.of<S>(kGates * H);

  const T* recurrent = sequence.step.recurrent;
  for (int i = threadIdx.x; i < D::kBlockRows * D::kLength; i += kThreads) {
    const int r = i / D::kLength, u = i % D::kLength;
    const Index at = (part.row + r) * H + u;
    const bool there = r < part.row_count && u < H;
    const T before = there ? part.template end<T>(s.h_0, at) : T(0);
    const T operand = T(S(there && recurrent ? before * recurrent[at] : before));
    exchange.lot(0)[i] = exchange.lot(1)[i] = operand;
    if (u < H) {
      h[r * H + u] = before;
      if (Cell::kHasC) c[r * H + u] = there ? part.template end<T>(s.c_0, at) : T(0);
    }
  }
  for (int i = threadIdx.x; i < kGates * H; i += kThreads) {
    if (sequence.step.b_ih) b_ih[i] = sequence.step.b_ih[i];
    if (sequence.step.b_hh) b_hh[i] = sequence.step.b_hh[i];
  }
  exchange.open();

  const auto fetch_inputs = [&](const Visit& visit, int rows, int turn) {
    const T* from = sequence.step.gx + (visit.first + part.row) * (kGates * H);
    T* to = gx + (turn & 1) * kInputs;
    for (int row = 0; row < rows; row += D::kRows)
      thread.for_own(row, rows, [&](int r, int u, int) {
#pragma unroll
        for (int g = 0; g < kGates; g++) {
          const int at = (r * kGates + g) * H + u;
          fetch(to + at, from + at);
        }
      });
    end_of_lot();
  };

  // Once a step has rows, so have all up to the last that has any.
  Index k = 0;
  while (!D::kEqual && k < s.visit_count && part.rows_of(part.visit(k)) == 0) k++;
  Visit visit = part.visit(k);
  int n = thread.gives() ? part.rows_of(visit) : 0;
  fetch_inputs(visit, n, 0);
  for (int turn = 0; n > 0; turn++) {
    const Visit next = part.visit(++k);
    const int more = part.rows_of(next);
    if (more > 0) exchange.expect(turn + 1, n * H);
    fetch_inputs(next, more, turn + 1);
    ForwardStep<T, S> p = at_row<Cell>(sequence.step, visit.first, s.extra_stride);
    T given[1];
    p.gx = gx + (turn & 1) * kInputs - part.row * (kGates * H);
    p.h = h - part.row * H;
    if (Cell::kHasC) p.c = c - part.row * H;
    if (p.b_ih) p.b_ih = b_ih;
    if (p.b_hh) p.b_hh = b_hh;
    RNNFAST_ASSUME(b_ih != nullptr && b_hh != nullptr);
    p.operand = nullptr;
    p.given = given;
    if (turn > 0) exchange.await(turn, (turn - 1) / 2);
    for (int row = 0; row < n; row += D::kRows) {
      T sums[D::kPlaces * kGates];
      multiply<D, kGates>(thread, w, exchange.lot(turn), row, n, sums);
      await_lots_but<1>();
      thread.for_own(row, n, [&](int r, int u, int m) {
        Cell::template forward<false>(p, part.row + r, u, sums + m * kGates);
        if (more > 0) exchange.give(turn + 1, r, u, given);
      });
    }
    visit = next;
    n = more;
  }
  part.template leave<Cell::kHasC>(h, c);
}

// Of what one unit gives to the products: all of its gates, in a piece that is stored at once.
template <class Cell>
constexpr int kGiven = Cell::kGates == 1 ? 1 : 4;

template <class Cell, class T, class S, class D>
__device__ void backward_cluster(const BackwardSequence<T, S>& sequence, void* memory) {
  static_assert(!Cell::kSecondProduct, "one product in a step");
  constexpr int kGates = Cell::kGates, kPiece = kGiven<Cell>, H = D::kHidden;
  constexpr bool kReadsH = Cell::kBackwardReadsH, kReadsDy = !kNarrow<T, S>;
  const Sequence<S>& s = sequence.of;
  const Part<D, S> part(s);
  const Thread<D> thread(part);

  T w[D::kUnits][D::kNumbers];
#pragma unroll
  for (int c = 0; c < D::kUnits; c++)
#pragma unroll
    for (int i = 0; i < D::kNumbers; i++) {
      const int unit = thread.unit + c, k = thread.number(i), from = k / kPiece, g = k % kPiece;
      const bool there = unit < thread.unit_end && from < H && g < kGates;
      w[c][i] = there ? T(s.w_hh[(g * H + from) * s.w_stride + unit]) : T(0);
    }

  Pieces pieces{static_cast<char*>(memory)};
  const Exchange<D, T> exchange{pieces.of<Mailbox>(2),
                                pieces.of<T>(2 * D::kBlockRows * D::kLength)};
  constexpr int kState = D::kBlockRows * H;
  T* dh = pieces.of<T>(kState);
  T* dc = pieces.of<T>(Cell::kHasC ? kState : 0);
  // What was saved, of two steps in turns.
  T* gates = pieces.of<T>(2 * kGates * kState);
  T* value = pieces.of<T>(Cell::kHasC ? 2 * kState : 0);
  T* c_before = pieces.of<T>(Cell::kHasC ? 2 * kState : 0);
  T* h_before = pieces.of<T>(kReadsH ? 2 * kState : 0);
  T* q = pieces.of<T>(sequence.step.q ? 2 * kState : 0);
  T* dy = pieces.of<T>(kReadsDy ? 2 * kState : 0);

  for (int i = threadIdx.x; i < 2 * D::kBlockRows * D::kLength; i += kThreads)
    exchange.numbers[i] = 0;
  for (int i = threadIdx.x; i < part.row_count * H; i += kThreads) {
    dh[i] = part.template end<T>(s.h_0, part.row * H + i);
    if (Cell::kHasC) dc[i] = part.template end<T>(s.c_0, part.row * H + i);
  }
  exchange.open();

  const auto step_of = [&](const Visit& visit) {
    BackwardStep<T, S> p = at_row<Cell>(sequence.step, visit.first);
    p.cut = visit.cut;
    p.dh = dh - part.row * H;
    if (Cell::kHasC) p.dc = dc - part.row * H;
    return p;
  };
  const auto fetch_saved = [&](const Visit& visit, int rows, int turn) {
    const BackwardStep<T, S> p = at_row<Cell>(sequence.step, visit.first);
    const int to = (turn & 1) * kState;
    const Index from = part.row * H;
    for (int row = 0; row < rows; row += D::kRows)
      thread.for_own(row, rows, [&](int r, int u, int) {
        const int at = r * H + u;
#pragma unroll
        for (int g = 0; g < kGates; g++) {
          const int gate = (r * kGates + g) * H + u;
          fetch(gates + to * kGates + gate, p.gates + from * kGates + gate);
        }
        if (Cell::kHasC) {
          fetch(value + to + at, p.value + from + at);
          fetch(c_before + to + at, p.c_before + from + at);
        }
        if (kReadsH) fetch(h_before + to + at, p.h_before + from + at);
        if (p.q) fetch(q + to + at, p.q + from + at);
        if constexpr (kReadsDy)
          if (p.dy) fetch(dy + to + at, p.dy + (part.row + r) * p.dy_stride + u);
      });
    end_of_lot();
  };
  // The gates of a step, which give what the next product reads.
  const auto pass = [&](BackwardStep<T, S> p, int r, int u, int turn) {
    const Index of = (turn & 1) * kState - part.row * H;
    T given[kPiece] = {};
    p.gates = gates + of * kGates;
    if (Cell::kHasC) {
      p.value = value + of;
      p.c_before = c_before + of;
    }
    if (kReadsH) p.h_before = h_before + of;
    if (p.q) p.q = q + of;
    if constexpr (kReadsDy)
      if (p.dy) {
        p.dy = dy + of;
        p.dy_stride = H;
      }
    p.given = given;
    Cell::template backward<false>(p, part.row + r, u);
    exchange.give(turn, r, u * kPiece, given);
  };

  // Once a step has rows, so have all down to the last that has any.
  Index k = s.visit_count - 1;
  while (!D::kEqual && k >= 0 && part.rows_of(part.visit(k)) == 0) k--;
  Visit visit = part.visit(k), next = part.visit(--k);
  int n = thread.gives() ? part.rows_of(visit) : 0;
  int more = n > 0 ? part.rows_of(next) : 0;
  fetch_saved(visit, n, 0);
  fetch_saved(next, more, 1);
  if (n > 0) exchange.expect(0, n * kPiece * H);
  await_lots_but<1>();
  for (int row = 0; row < n; row += D::kRows)
    thread.for_own(row, n, [&](int r, int u, int) { pass(step_of(visit), r, u, 0); });
  for (int turn = 0; n > 0; turn++) {
    const Visit later = part.visit(--k);
    fetch_saved(later, part.rows_of(later), turn);
    if (more > 0) exchange.expect(turn + 1, more * kPiece * H);
    const BackwardStep<T, S> p = step_of(visit), p_next = step_of(next);
    exchange.await(turn, turn / 2);
    await_lots_but<1>();
    const int end = n > more ? n : more;
    for (int row = 0; row < end; row += D::kRows) {
      T sums[D::kPlaces];
      if (row < n) multiply<D, 1>(thread, w, exchange.lot(turn), row, n, sums);
      thread.for_own(row, end, [&](int r, int u, int m) {
        if (r < n) pass_on(p, part.row + r, u, sums[m]);
        if (r < more) pass(p_next, r, u, turn + 1);
      });
    }
    visit = next;
    next = later;
    n = more;
    more = part.rows_of(next);
  }
  part.template leave<Cell::kHasC>(dh, dc);
}

}  // namespace rnnfast

// ------------------------------------------------------------------------------- entry points

// RNNFAST_CELL, _REAL, _STORED and _DIVISION name the instantiation, RNNFAST_BLOCKS the first
// number of _DIVISION; sequences.cuh has the rest.
#ifdef RNNFAST_DIVISION

namespace {
using Cell = rnnfast::RNNFAST_CELL;
using Real = RNNFAST_REAL;
using Stored = RNNFAST_STORED;
using D = rnnfast::RNNFAST_DIVISION;
}  // namespace

#define RNNFAST_KERNEL \
  __global__ void __launch_bounds__(rnnfast::kThreads, 1) __cluster_dims__(RNNFAST_BLOCKS, 1, 1)

extern "C" {
#if RNNFAST_BACKWARD
RNNFAST_KERNEL backward_steps(
    const __grid_constant__ rnnfast::Directions<rnnfast::BackwardSequence<Real, Stored>> p) {
  extern __shared__ rnnfast::Four<float> memory[];
  rnnfast::backward_cluster<Cell, Real, Stored, D>(rnnfast::own(p), memory);
}
#else
RNNFAST_KERNEL forward_steps(
    const __grid_constant__ rnnfast::Directions<rnnfast::ForwardSequence<Real, Stored>> p) {
  extern __shared__ rnnfast::Four<float> memory[];
  rnnfast::forward_cluster<Cell, Real, Stored, D>(rnnfast::own(p), memory);
}
#endif
}

#endif
