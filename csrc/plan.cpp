#include "plan.hpp"

#include <unistd.h>

#include <algorithm>

namespace rnnfast {
namespace {

// Cycles, roughly, as seen on AVX-512 server processors of 2020 to 2024.
constexpr double kFarLoadCycles = 5;  // a vector of weights from the third-level cache
constexpr double kBarrierCycles = 600;
constexpr double kPointwiseCycles = 120;  // a vector of units of one row
constexpr double kWorthWaking = 100e3;    // of work: to wake a sleeping worker takes as long
constexpr double kWorthAnother = 8e3;     // of work, where the worker is awake

double second_level_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return double(bytes);
#endif
  return 1 << 20;
}

// One step of one member that does `rows` rows and a `share` of the hidden units.
double step_cycles(const Workload& w, double rows, double share) {
  static const double l2 = second_level_cache();
  const double vectors = double(w.gates) * double(w.hidden) * double(w.hidden) / w.lanes * share;
  const double bytes = double(w.weight_bytes) * share;
  const double load = bytes < 24e3       ? 1
                      : bytes < 0.8 * l2 ? 2
                                         : kFarLoadCycles;  // a vector, for the first tile
  const double tiles = double((int64_t(rows) + 5) / 6);
  return vectors * std::max(rows, load + (tiles - 1) * 2) +
         rows * share * double(w.hidden) / w.lanes * kPointwiseCycles;
}

// All steps of the rows [begin, end) of the batch.
double loop_cycles(const Workload& w, int64_t begin, int64_t end, double share, double barriers) {
  if (w.rows == w.steps * w.batch)
    return double(w.steps) * (step_cycles(w, double(end - begin), share) + barriers);
  double total = 0;
  for (int64_t t = 0; t < w.steps; t++) {
    const int64_t rows = std::min(w.offset[t + 1] - w.offset[t], end) - begin;
    if (rows > 0) total += step_cycles(w, double(rows), share) + barriers;
  }
  return total;
}

// The products outside the time loop.
double product_cycles(const Workload& w) {
  return w.gates * double(w.hidden) * double(w.input) / w.lanes *
         std::max(double(w.rows), kFarLoadCycles);
}

}  // namespace

Plan plan(const Workload& w, int threads, bool ready) {
  const double worth = ready ? kWorthAnother : kWorthWaking;
  const double products = product_cycles(w);
  const double alone = loop_cycles(w, 0, w.batch, 1, 0);
  const double total = (alone + products) * w.directions;
  Plan p{1, {1, 1}, 1, false, total};
  const int most = int(std::min<double>(threads, total / worth));
  if (most < 2) return p;
  if (w.directions == 2) {
    p.teams = 2;
    p.size[0] = most - most / 2;
    p.size[1] = most / 2;
  } else {
    p.size[0] = most;
  }
  const int size = p.size[p.teams - 1];
  if (size == 1) {
    p.size[0] = 1;
    return p;
  }
  double best = alone;
  for (int members = 2; members <= size; members++) {
    const double units = loop_cycles(w, 0, w.batch, 1.0 / members, kBarrierCycles * w.stages);
    if (units < best && w.hidden >= int64_t(members) * w.lanes) {
      best = units;
      p.members = members;
      p.by_rows = false;
    }
    if (w.batch >= members) {
      double rows = 0;
      if (w.rows == w.steps * w.batch) {
        rows = loop_cycles(w, 0, (w.batch + members - 1) / members, 1, 0);
      } else {
        const auto begin = divide_rows(w.offset, w.steps, w.batch, members);
        for (int m = 0; m < members; m++)
          rows = std::max(rows, loop_cycles(w, begin[m], begin[m + 1], 1, 0));
      }
      if (rows < best) {
        best = rows;
        p.members = members;
        p.by_rows = true;
      }
    }
  }
  if (p.members == 1 && products < 2 * worth) p.size[0] = p.size[1] = 1;
  p.cycles = (best + products / p.size[0]) * w.directions / p.teams;
  return p;
}

int wavefront(const Workload& w, int layers, int threads, bool ready) {
  const int members = std::min(layers, threads);
  if (members < 2 || w.directions == 2 || w.steps < kWaves * members) return 1;
  const double alone = loop_cycles(w, 0, w.batch, 1, 0) + product_cycles(w);
  if (layers * alone < members * (ready ? kWorthAnother : kWorthWaking)) return 1;
  const double rounds = (layers + members - 1) / members;
  const double wave = rounds * alone * (1 + double(members - 1) / kWaves);
  return wave < layers * plan(w, threads, ready).cycles ? members : 1;
}

std::vector<int64_t> divide_rows(const int64_t* offset, int64_t steps, int64_t batch, int members) {
  std::vector<int64_t> begin(members + 1, batch);
  begin[0] = 0;
  // A row's length is the number of steps that have more rows than its index.
  int64_t step = steps, total = 0;
  int next = 1;
  for (int64_t b = 0; b < batch && next < members; b++) {
    while (step > 0 && offset[step] - offset[step - 1] <= b) step--;
    total += step;
    while (next < members && total * members >= offset[steps] * next) begin[next++] = b + 1;
  }
  return begin;
}

}  // namespace rnnfast
