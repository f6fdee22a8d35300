#include "plan.hpp"

#include <unistd.h>

#include <algorithm>
#include <limits>

namespace rnnfast {
namespace {

// Cycles, roughly, as seen on AVX-512 server processors of 2020 to 2024. One cycle is a row times a
// vector of weights.
constexpr double kNearLoadCycles = 2;     // such a vector from the second-level cache
constexpr double kMovedCycles = 5;        // such a vector, once, from memory or another core
constexpr double kMeetingCycles = 12;     // for a nanosecond of meeting: other lines travel as well
constexpr double kPointwiseCycles = 120;  // a vector of units of one row
constexpr double kWorthWaking = 100e3;    // of work: to wake a sleeping worker takes as long
constexpr double kWorthMeeting = 150;     // of work, for a nanosecond of meeting: where it is awake

// Such a vector from the third-level cache. Intel's is far away (28 GB/s for a core), and its cores
// multiply twice as fast as Zen 4.
double far_load_cycles() {
#if defined(__x86_64__)
  if (__builtin_cpu_is("intel")) return 14;
#endif
  return 5;
}

double second_level_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return double(bytes);
#endif
  return 1 << 20;
}

// The work from which another thread pays.
double worth_another(const Workload& w, bool ready) {
  return ready ? kWorthMeeting * w.meeting : kWorthWaking;
}

// One step of one member that does `rows` rows and a `share` of the hidden units.
double step_cycles(const Workload& w, double rows, double share) {
  static const double l2 = second_level_cache(), far_load = far_load_cycles();
  const double vectors = double(w.gates) * double(w.hidden) * double(w.hidden) / w.lanes * share;
  const double bytes = double(w.weight_bytes) * share;
  // Of a vector, for the first tile. What a step read last is still near at the next one.
  const double near = std::min(1.0, 0.8 * l2 / bytes);
  const double load = bytes < 24e3 ? 1 : near * kNearLoadCycles + (1 - near) * far_load;
  const double tiles = double((int64_t(rows) + 5) / 6);
  return vectors * std::max(rows, load + (tiles - 1) * kNearLoadCycles) +
         rows * share * double(w.hidden) / w.lanes * kPointwiseCycles;
}

struct LoopCycles {
  double by_rows, by_units;  // of the members of a time loop, who divide every step so
  double least() const { return std::min(by_rows, by_units); }
};

// The steps [begin, end).
LoopCycles loop_cycles(const Workload& w, int members, int64_t begin, int64_t end) {
  const int64_t vectors = (w.hidden + w.lanes - 1) / w.lanes;
  const double share = double((vectors + members - 1) / members) / double(vectors);
  const bool full = w.rows == w.steps * w.batch;
  const double barriers = members > 1 ? kMeetingCycles * w.meeting * w.stages : 0;
  LoopCycles total{0, 0};
  for (int64_t t = begin, alike; t < end; t += alike) {
    const int64_t rows = w.offset[t + 1] - w.offset[t];
    alike = full ? end - t : 1;
    while (t + alike < end && w.offset[t + alike + 1] - w.offset[t + alike] == rows) alike++;
    total.by_rows += double(alike) * step_cycles(w, double((rows + members - 1) / members), 1);
    total.by_units += double(alike) * (step_cycles(w, double(rows), share) + barriers);
  }
  if (members > 1)  // each needs the weights that the others have packed
    total.by_rows += double(w.gates * w.hidden * (w.hidden + w.input)) / w.lanes * kMovedCycles *
                     (1 - 1.0 / members);
  if (w.hidden < int64_t(members) * w.lanes)  // not a vector for each
    total.by_units = std::numeric_limits<double>::infinity();
  return total;
}

// The products outside the time loop.
double product_cycles(const Workload& w) {
  return w.gates * double(w.hidden) * double(w.input) / w.lanes *
         std::max(double(w.rows), kMovedCycles);
}

}  // namespace

Plan plan(const Workload& w, int threads, bool ready) {
  if (threads < 2) return {1, {1, 1}, 1, 0};
  const double worth = worth_another(w, ready);
  const double products = product_cycles(w);
  const double alone = loop_cycles(w, 1, 0, w.steps).by_rows;
  const double total = (alone + products) * w.directions;
  Plan p{1, {1, 1}, 1, total};
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
    const double divided = loop_cycles(w, members, 0, w.steps).least();
    if (divided < best) {
      best = divided;
      p.members = members;
    }
  }
  // What each step reads and writes was, and will be, with another.
  const double sharing = double(w.steps) * kMeetingCycles * w.meeting;
  if (p.members == 1 && products < std::max(2 * worth, sharing)) p.size[0] = p.size[1] = 1;
  p.cycles = (best + products / p.size[0]) * w.directions / p.teams;
  return p;
}

int wavefront(const Workload& w, int layers, int threads, bool ready) {
  const int members = std::min(layers, threads);
  if (members < 2 || w.directions == 2 || w.steps < kWaves * members) return 1;
  const double alone = loop_cycles(w, 1, 0, w.steps).by_rows + product_cycles(w);
  if (layers * alone < members * worth_another(w, ready)) return 1;
  const double rounds = (layers + members - 1) / members;
  const double wave = rounds * alone * (1 + double(members - 1) / kWaves);
  return wave < layers * plan(w, threads, ready).cycles ? members : 1;
}

Part divide(const Split& split, int id, int64_t begin, int64_t end) {
  const int64_t members = split.members;
  if (members == 1) return {true, 0, std::numeric_limits<int64_t>::max()};
  const Workload& w = *split.work;
  const LoopCycles cycles = loop_cycles(w, split.members, begin, end);
  if (cycles.by_units < cycles.by_rows) return {false, 0, w.batch};
  if (w.rows == w.steps * w.batch)
    return {true, std::min(w.batch, w.batch * id / members),
            std::min(w.batch, w.batch * (id + 1) / members)};
  // Rows in turn, until a member has as much as each should. The rows that a step has share in it.
  const auto rows_of = [&](int64_t t) { return w.offset[t + 1] - w.offset[t]; };
  const auto cost = [&](int64_t t) {  // of a row
    const double rows = double((rows_of(t) + members - 1) / members);
    return rows > 0 ? step_cycles(w, rows, 1) / rows : 0;
  };
  double row = 0, all = 0, before = 0;
  for (int64_t t = begin; t < end; t++) {
    const double one = cost(t);
    row += one;
    all += one * double(rows_of(t));
  }
  const double enough = all / double(members) * (1 - 1e-9);
  Part part{true, id == 0 ? 0 : w.batch, w.batch};
  int64_t step = end;
  for (int64_t b = 0; b < w.batch; b++) {
    while (step > begin && rows_of(step - 1) <= b) row -= cost(--step);
    const auto crosses = [&](int share) {
      return before < enough * share && before + row >= enough * share;
    };
    if (id > 0 && crosses(id)) part.row_begin = b + 1;
    if (id + 1 < members && crosses(id + 1)) part.row_end = b + 1;
    before += row;
  }
  return part;
}

}  // namespace rnnfast
