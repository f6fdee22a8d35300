// A parallel region for a layer pass: its threads in teams, as the plan has them.
#pragma once

#include <vector>

#include "plan.hpp"
#include "threads.hpp"

namespace rnnfast {

// A packed batch. `sizes` are the rows of each step, or null where every step has `batch`.
struct Batch {
  int64_t steps, batch;
  const int64_t* sizes;
};

inline void count_rows(const Batch& b, std::vector<int64_t>& offset) {
  offset.resize(b.steps + 1);
  offset[0] = 0;
  for (int64_t t = 0; t < b.steps; t++)
    offset[t + 1] = offset[t] + (b.sizes ? b.sizes[t] : b.batch);
}

// Calls body(id) on n threads at once; false, and nothing done, where the threads are taken or too
// few.
template <class Body>
bool try_parallel(int n, Body& body) {
  return run_parallel(n, [](void* b, int id) { (*static_cast<Body*>(b))(id); }, &body);
}

// Barriers and shares of a plan, and the calls of every member of every team.
class Region {
 public:
  Region(const Plan& plan, const Workload& work)
      : plan_(plan),
        work_(work),
        team_{Barrier(plan.size[0]), Barrier(plan.size[1])},
        loop_{Barrier(plan.members), Barrier(plan.members)},
        all_(plan.threads()) {}

  int threads() const { return all_.size; }
  // Whether one direction ends before the next one begins.
  bool in_turn() const { return plan_.teams == 1; }
  Split split(int direction) {
    return {plan_.members, &loop_[plan_.teams == 2 ? direction : 0], &work_};
  }
  Team everyone(int id) { return {id, all_.size, &all_}; }

  // pass(direction, team) on the calling member, for each direction that its team has.
  template <class Pass>
  void each_direction(int id, Pass pass) {
    if (plan_.teams == 2) {
      const int team = id < plan_.size[0] ? 0 : 1;
      pass(team, Team{team ? id - plan_.size[0] : id, plan_.size[team], &team_[team]});
    } else {
      for (int d = 0; d < work_.directions; d++) {
        pass(d, Team{id, plan_.size[0], &team_[0]});
        if (d + 1 < work_.directions && plan_.size[0] > 1) team_[0].wait();
      }
    }
  }
  void meet() {
    if (all_.size > 1) all_.wait();
  }

 private:
  Plan plan_;
  const Workload& work_;
  Barrier team_[2], loop_[2], all_;
};

// Calls body(region, id) on every thread of the plan; on this one alone where another Python
// thread has the pool.
template <class Body>
void run(const Workload& work, int most, Body body) {
  Plan best = plan(work, most, true);
  if (best.threads() > 1 && !threads_ready(best.threads())) best = plan(work, most, false);
  const auto attempt = [&](const Plan& chosen) {
    Region region(chosen, work);
    auto member = [&](int id) { body(region, id); };
    return try_parallel(region.threads(), member);
  };
  if (!attempt(best)) attempt(plan(work, 1, false));
  note_call();
}

}  // namespace rnnfast
