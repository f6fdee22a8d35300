// All steps of a layer in one cooperative launch: the grid engine. A block keeps its units'
// part of w_hh in shared memory, for all of their gates, and a grid barrier separates the steps.
// rnnfast/backends/cuda/grid.py launches it; no layer normalisation and no projection.
//
// Blocks: x is a slice of the units, y a slice of the rows of the batch, z the direction. Rows do
// not depend on one another, so that only the blocks of one y and z wait for each other. All blocks
// must be on the device at once, which a cooperative launch makes sure of.
//
// Sums are added in an order that depends on no other block and no timing. Lanes or TensorCores say
// how products are made.
#include "sequences.cuh"

namespace rnnfast {

#ifdef __CUDACC__
#define RNNFAST_PAUSE()
// What a thread has done before it arrives, others can read that have seen it arrive.
RNNFAST_DEVICE void arrive(Count* counter) {
  asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(counter) : "memory");
}
RNNFAST_DEVICE Count seen(const Count* counter) {
  Count found;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(found) : "l"(counter) : "memory");
  return found;
}
#else
void arrive(Count* counter);
Count seen(const Count* counter);
#endif

// Between blocks of one y and z: what was written before it can be read after it, by ordinary
// loads. The counter only grows. Thread 0 stands for its whole block: __syncthreads stands between
// it and the other threads, before and after.
struct GridBarrier {
  Count* arrived;
  Count target;

  __device__ explicit GridBarrier(Count* counters) : arrived(counters + blockIdx.y), target(0) {}

  __device__ void wait() {
    target += gridDim.x;
    __syncthreads();
    if (threadIdx.x == 0) {
      arrive(arrived);
      while (seen(arrived) < target) RNNFAST_PAUSE();
    }
    __syncthreads();
  }
};

// ------------------------------------------------------------------------------ the products

// then(row, unit, sums) for all rows of x, 0 <= unit < unit_count: sums[s] is the scalar product of
// `length` numbers of the row, and of those at w[unit * unit_stride + s * sum_stride].
//
// A warp makes kRows * kUnits * kSums of them at a time, each lane with every 32nd number.
template <int kRows, int kUnits, int kSums, class T, class S, class Then>
__device__ void products(const S* w, Index unit_stride, Index sum_stride, Index unit_count,
                         const S* x, Index x_stride, Index row_count, Index length, Then then) {
  constexpr int kPlaces = kRows * kUnits;
  static_assert(kPlaces <= 32, "a lane for each");
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  const Index slices = (unit_count + kUnits - 1) / kUnits;
  const Index tasks = slices * ((row_count + kRows - 1) / kRows);
  for (Index task = threadIdx.x / 32; task < tasks; task += warps) {
    const Index unit = task % slices * kUnits, row = task / slices * kRows;
    T sums[kPlaces * kSums];
    for (int i = 0; i < kPlaces * kSums; i++) sums[i] = 0;
    // Where there are fewer, the last one stands in for them.
    const S *rows[kRows], *columns[kUnits];
    for (int r = 0; r < kRows; r++) rows[r] = x + Share::smaller(row + r, row_count - 1) * x_stride;
    for (int u = 0; u < kUnits; u++)
      columns[u] = w + Share::smaller(unit + u, unit_count - 1) * unit_stride;
    for (Index k = lane; k < length; k += 32) {
      T numbers[kRows];
      for (int r = 0; r < kRows; r++) numbers[r] = rows[r][k];
      for (int u = 0; u < kUnits; u++)
        for (int s = 0; s < kSums; s++) {
          const T weight = columns[u][s * sum_stride + k];
          for (int r = 0; r < kRows; r++) sums[(u * kRows + r) * kSums + s] += weight * numbers[r];
        }
    }
    lane_sums<kPlaces, kSums, 16>(sums);
    constexpr int kSharers = 32 / kPlaces;
    const int place = lane / kSharers;
    const Index r = row + place % kRows, u = unit + place / kRows;
    if (lane % kSharers == 0 && r < row_count && u < unit_count) then(r, u, sums);
  }
}

// Units that a warp takes at a time: together with the gates about four columns of w.
template <int kSums>
constexpr int kUnitsOf = kSums == 1 ? 4 : 1;

// In any type, by ordinary multiply-adds; kRows rows of the batch at a time.
template <int kRows>
struct Lanes {
  static constexpr int kBytes = 0;                                 // of shared memory for itself
  __device__ static Index stride(Index length) { return length; }  // of rows in shared memory

  template <int kSums, class T, class S, class Then>
  __device__ static void products(void*, const S* w, Index unit_stride, Index sum_stride,
                                  Index unit_count, const S* x, Index x_stride, Index row_count,
                                  Index length, Then then) {
    rnnfast::products<kRows, kUnitsOf<kSums>, kSums, T>(w, unit_stride, sum_stride, unit_count, x,
                                                        x_stride, row_count, length, then);
  }
};

// Numbers of 16 bits, by the instruction for products of tiles: 16 rows of w and 8 of the batch.
// Lane 4 g + t has the sums of rows g and g + 8 of w with rows 2 t and 2 t + 1 of the batch. The
// rows of w are those of 8 units, two sums of each in a tile, so that a lane has all sums of a
// unit; where there is one sum, those of 16 units. The warps of a block divide the numbers of the
// rows, and meet in own, (warps, 4 * tiles, 32 lanes). Else as `products`.
struct TensorCores {
  static constexpr int kBytes = 8 * 2 * 4 * 32 * 4;  // (warps, tiles, 4, lanes) of float
  // Lanes then read different banks, and two numbers at a time are aligned.
  __device__ static Index stride(Index length) { return (length + 15) / 16 * 16 + 8; }

  template <int kSums, class T, class S, class Then>
  __device__ static void products(void* own, const S* w, Index unit_stride, Index sum_stride,
                                  Index unit_count, const S* x, Index x_stride, Index row_count,
                                  Index length, Then then) {
    constexpr int kTiles = (kSums + 1) / 2, kUnits = kSums == 1 ? 16 : 8;
    T* parts = static_cast<T*>(own);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const int g = lane / 4, t = lane % 4;
    const bool aligned = x_stride % 2 == 0;
    for (Index row = 0; row < row_count; row += 8)
      for (Index unit = 0; unit < unit_count; unit += kUnits) {
        // Where there are fewer, the last one stands in for them.
        const S* numbers = x + Share::smaller(row + g, row_count - 1) * x_stride;
        const S* columns[kTiles][2];
        for (int i = 0; i < 2 * kTiles; i++) {
          const Index u = Share::smaller(unit + g + (kSums == 1 ? 8 * i : 0), unit_count - 1);
          const int sum = kSums == 1 ? 0 : i < kSums ? i : kSums - 1;
          columns[i / 2][i % 2] = w + u * unit_stride + sum * sum_stride;
        }
        T sums[kTiles][4] = {};
        for (Index first = 16 * warp; first < length; first += 16 * warps) {
          const Index k = first + 2 * t;
          const unsigned b[2] = {two(numbers, k, length, aligned),
                                 two(numbers, k + 8, length, aligned)};
          for (int i = 0; i < kTiles; i++) {
            const unsigned a[4] = {
                two(columns[i][0], k, length, true), two(columns[i][1], k, length, true),
                two(columns[i][0], k + 8, length, true), two(columns[i][1], k + 8, length, true)};
            add_product_of_tiles<S>(sums[i], a, b);
          }
        }
        for (int i = 0; i < 4 * kTiles; i++)
          parts[(warp * 4 * kTiles + i) * 32 + lane] = sums[i / 4][i % 4];
        __syncthreads();
        for (int place = threadIdx.x; place < kUnits * 8; place += blockDim.x) {
          const int u = place / 8, r = place % 8, from = u % 8 * 4 + r / 2;
          T total[kSums];
          for (int s = 0; s < kSums; s++) {
            const int i = (kSums == 1 ? u / 8 : s) * 2 + r % 2;
            total[s] = 0;
            for (int v = 0; v < warps; v++) total[s] += parts[(v * 4 * kTiles + i) * 32 + from];
          }
          if (unit + u < unit_count && row + r < row_count) then(row + r, unit + u, total);
        }
        __syncthreads();
      }
  }
};

// ----------------------------------------------------------------------------------- kernels

// memory: what Products want, then (units, G, stride), the rows of w_hh of each unit.
template <class Cell, class T, class S, class Products>
__device__ void forward_sequence(const ForwardSequence<T, S>& sequence, double* memory) {
  const Sequence<S>& s = sequence.of;
  const Index H = sequence.step.hidden, stride = Products::stride(H);
  const Index width = Cell::kGates * H, unit_stride = Cell::kGates * stride;
  const Share share(s, H);
  S* w = reinterpret_cast<S*>(memory + Products::kBytes / sizeof(double));
  for (Index i = threadIdx.x; i < share.unit_count * width; i += blockDim.x)
    w[i / H * stride + i % H] =
        s.w_hh[(i / H % Cell::kGates * H + share.unit + i / width) * s.w_stride + i % H];
  GridBarrier barrier(s.arrived);
  __syncthreads();
  for (Index k = 0; k < s.visit_count; k++) {
    const Visit visit = visited(s, k);
    const Index n = share.rows_of(visit.rows);
    if (n <= 0) continue;  // as for every block that it would wait for
    ForwardStep<T, S> p = at_row<Cell>(sequence.step, visit.first, s.extra_stride);
    const S* operand = s.exchange + k % 2 * s.batch * H;
    p.operand = s.exchange + (k + 1) % 2 * s.batch * H;
    Products::template products<Cell::kSums, T>(
        memory, w, unit_stride, stride, share.unit_count, operand + share.row * H, H, n, H,
        [&](Index b, Index u, const T* sums) {
          Cell::template forward<false>(p, share.row + b, share.unit + u, sums);
        });
    barrier.wait();
    if constexpr (Cell::kSecondProduct) {
      Products::template products<1, T>(
          memory, w + Cell::kSums * stride, unit_stride, stride, share.unit_count,
          p.extra + share.row * H, H, n, H, [&](Index b, Index u, const T* sums) {
            Cell::forward_second(p, share.row + b, share.unit + u, sums[0]);
          });
      barrier.wait();
    }
  }
}

// memory: what Products want, then (units, stride), the G*H numbers of w_hh's column of each unit.
template <class Cell, class T, class S, class Products>
__device__ void backward_sequence(const BackwardSequence<T, S>& sequence, double* memory) {
  const Sequence<S>& s = sequence.of;
  const Index H = sequence.step.hidden, width = Cell::kGates * H, first = Cell::kSums * H;
  const Index stride = Products::stride(width);
  const Share share(s, H);
  S* w = reinterpret_cast<S*>(memory + Products::kBytes / sizeof(double));
  for (Index i = threadIdx.x; i < share.unit_count * width; i += blockDim.x)
    w[i % share.unit_count * stride + i / share.unit_count] =
        s.w_hh[i / share.unit_count * s.w_stride + share.unit + i % share.unit_count];
  GridBarrier barrier(s.arrived);
  for (Index k = s.visit_count - 1; k >= 0; k--) {
    const Visit visit = visited(s, k);
    const Index n = share.rows_of(visit.rows);
    if (n <= 0) continue;
    BackwardStep<T, S> p = at_row<Cell>(sequence.step, visit.first);
    p.cut = visit.cut;
    const int units = int(share.unit_count), count = int(n) * units;
    for (int i = threadIdx.x; i < count; i += blockDim.x)
      Cell::template backward<false>(p, share.row + i / units, share.unit + i % units);
    barrier.wait();
    const S* d = p.product_h + share.row * width;
    if constexpr (Cell::kSecondProduct) {
      Products::template products<1, T>(
          memory, w + first, stride, 0, share.unit_count, d + first, width, n, width - first,
          [&](Index b, Index u, const T* sums) {
            Cell::template backward_second<false>(p, share.row + b, share.unit + u, sums[0]);
          });
      barrier.wait();
    }
    Products::template products<1, T>(memory, w, stride, 0, share.unit_count, d, width, n, first,
                                      [&](Index b, Index u, const T* sums) {
                                        pass_on(p, share.row + b, share.unit + u, sums[0]);
                                      });
    __syncthreads();
  }
}

}  // namespace rnnfast

// ------------------------------------------------------------------------------- entry points

// RNNFAST_CELL, _REAL, _STORED and _PRODUCTS name the instantiation; sequences.cuh has the rest.
#ifdef RNNFAST_PRODUCTS

#define RNNFAST_KERNEL __global__ void __launch_bounds__(256, 1)

namespace {
using Cell = rnnfast::RNNFAST_CELL;
using Real = RNNFAST_REAL;
using Stored = RNNFAST_STORED;
}  // namespace

extern "C" {
#if RNNFAST_BACKWARD
RNNFAST_KERNEL backward_steps(
    const __grid_constant__ rnnfast::Directions<rnnfast::BackwardSequence<Real, Stored>> p) {
  extern __shared__ double memory[];
  rnnfast::backward_sequence<Cell, Real, Stored, RNNFAST_PRODUCTS>(rnnfast::own(p), memory);
}
#else
RNNFAST_KERNEL forward_steps(
    const __grid_constant__ rnnfast::Directions<rnnfast::ForwardSequence<Real, Stored>> p) {
  extern __shared__ double memory[];
  rnnfast::forward_sequence<Cell, Real, Stored, RNNFAST_PRODUCTS>(rnnfast::own(p), memory);
}
#endif
}

#endif
