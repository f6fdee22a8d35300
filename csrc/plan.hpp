// How the threads divide a layer pass. Results do not depend on it, only speed does.
#pragma once

#include <cstdint>

#include "params.hpp"

namespace rnnfast {

struct Workload {
  int64_t steps, rows;    // T, N
  const int64_t* offset;  // [T + 1] first row of each step
  int64_t batch, input, hidden;
  int gates, directions;
  int lanes;             // numbers in a vector
  int stages;            // barriers a step
  int64_t weight_bytes;  // of one direction's recurrent matrix
  double meeting;        // nanoseconds in which the threads meet (see meeting_ns)
};

struct Plan {
  int teams;      // 2 where two directions run side by side
  int size[2];    // members of each team
  int members;    // of a team's time loop
  double cycles;  // what all of it takes, roughly

  int threads() const { return size[0] + (teams == 2 ? size[1] : 0); }
};

// `ready`: whether other threads would start at once, not from their sleep.
Plan plan(const Workload& work, int threads, bool ready);

// About as many parts of its steps a layer hands on to the next while it goes on.
constexpr int kWaves = 8;

// How many threads should run a stack of like layers as a wavefront, each thread whole layers, one
// of them chasing the other through the steps; below 2 where layer after layer is better.
int wavefront(const Workload& layer, int layers, int threads, bool ready);

// The part of member `id` of the steps [begin, end), between two barriers of all members.
Part divide(const Split& split, int id, int64_t begin, int64_t end);

}  // namespace rnnfast
