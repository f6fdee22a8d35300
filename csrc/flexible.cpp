#include "flexible.hpp"

#include <algorithm>

#include "dispatch.hpp"

namespace rnnfast {
namespace {

constexpr int64_t kChunk = 128;  // rows of the products between two stretches of the time loop

template <class T>
void copy_or_clear(const T* from, int64_t count, T* to) {
  if (!from)
    std::fill_n(to, count, T(0));
  else if (from != to)
    std::copy_n(from, count, to);
}

}  // namespace

template <class T>
Panels<T> FlexibleLayer<T>::panels(Buffer<T>& data, int64_t k, int64_t n, const T* weights,
                                   int64_t row, int64_t column) const {
  const int64_t lanes = kernels_->lanes;
  data = Buffer<T>(k * ((n + lanes - 1) / lanes * lanes));
  return {data.get(), k, n, kernels_->widest, {weights, row, column}, false};
}

template <class T>
FlexibleLayer<T>::FlexibleLayer(FlexibleKind cell, const CellOptions& options,
                                std::vector<FlexibleWeights<T>> weights, int64_t input,
                                int64_t hidden, int64_t outputs)
    : kernels_(&kernels<T>(active_set())),
      cell_(&kernels_->flexible[cell]),
      options_(options),
      weights_(std::move(weights)),
      input_(input),
      hidden_(hidden),
      outputs_(outputs),
      norm_(weights_[0].ln_ih != nullptr) {
  const int64_t I = input_, H = hidden_, P = outputs_, G = cell_->gates;
  const int64_t first = cell_->first_gates * H;
  for (int d = 0; d < directions(); d++) {
    const FlexibleWeights<T>& w = weights_[d];
    Packed& p = packed_[d];
    p.x = panels(p.x_data, I, G * H, w.w_ih, 1, I);
    p.h[0] = panels(p.h_data[0], P, first, w.w_hh, 1, P);
    if (first < G * H)
      p.h[1] = panels(p.h_data[1], H, G * H - first, w.w_hh + first * P, 1, P);
    else if (w.w_hr)
      p.h[1] = panels(p.h_data[1], H, P, w.w_hr, 1, H);
  }
  const int threads = G * H * (I + P) > 200000 ? thread_count() : 1;
  const auto pack = [&](int id, int size) {
    const Team team{id, size, nullptr};
    for (int d = 0; d < directions(); d++) {
      const Packed& p = packed_[d];
      for (const Panels<T>* panels : {&p.x, &p.h[0], &p.h[1]})
        if (panels->data) kernels_->pack_panels(*panels, team);
    }
  };
  auto member = [&](int id) { pack(id, threads); };
  auto alone = [&](int) { pack(0, 1); };
  if (!try_parallel(threads, member)) try_parallel(1, alone);
}

template <class T>
int FlexibleLayer<T>::saved_slots() const {
  return cell_->saved + (norm_ ? 2 * cell_->gates : 0);
}

template <class T>
Written FlexibleLayer<T>::written() const {
  const int G = cell_->gates;
  Written w{0, 0, 0, 0, -1, -1, -1, -1, -1, 0};
  const auto take = [&](int slots) {
    const int first = w.count;
    w.count += slots;
    return first;
  };
  w.arguments = take(G);
  w.of_h = cell_->apart ? take(G) : w.arguments;
  w.product_x = norm_ ? take(G) : w.arguments;
  w.product_h = norm_ ? take(G) : w.of_h;
  if (norm_) {
    w.gain_x = take(G);
    w.gain_h = take(G);
  }
  if (weights_[0].w_peep) w.peep = take(3);
  if (weights_[0].ln_c) w.c_gain = take(2);
  if (cell_->has_c) w.work = take(1);
  return w;
}

template <class T>
Workload FlexibleLayer<T>::work(const std::vector<int64_t>& offset, int64_t batch) const {
  const int64_t G = cell_->gates, H = hidden_;
  return {int64_t(offset.size()) - 1,
          offset.back(),
          offset.data(),
          batch,
          input_,
          H,
          int(G),
          directions(),
          kernels_->lanes,
          4,  // meetings of a step, about
          G * H * outputs_ * int64_t(sizeof(T)),
          meeting_ns(thread_count())};
}

template <class T>
std::unique_ptr<FlexibleSaved<T>> FlexibleLayer<T>::forward(const Batch& batch,
                                                            const FlexibleForwardArrays<T>& a,
                                                            bool save) const {
  const int64_t B = batch.batch, I = input_, H = hidden_, P = outputs_, G = cell_->gates;
  const int64_t S = saved_slots();
  std::unique_ptr<FlexibleSaved<T>> kept(new FlexibleSaved<T>);
  count_rows(batch, kept->offset);
  kept->steps = batch.steps;
  kept->batch = B;
  kept->x = a.x;
  const int64_t N = kept->offset[batch.steps], chunk = std::min(N, kChunk + B);
  struct Scratch {
    Buffer<T> gx, raw, step_h, operand;
  } scratch[2];
  FlexibleForward<T> passes[2] = {};
  for (int d = 0; d < directions(); d++) {
    auto& own = kept->directions[d];
    Scratch& s = scratch[d];
    FlexibleForward<T>& p = passes[d];
    p.steps = {batch.steps, kept->offset.data()};
    p.batch = B;
    p.input = I;
    p.hidden = H;
    p.outputs = P;
    p.reverse = d == 1;
    p.save = save;
    p.chunk = kChunk;
    p.options = options_;
    p.w = weights_[d];
    p.masks = a.masks[d];
    p.x = a.x;
    p.x_panels = packed_[d].x;
    for (int s2 = 0; s2 < 2; s2++) p.h_panels[s2] = packed_[d].h[s2];
    p.saved_slots = int(S);
    p.gx = s.gx.grow(chunk * G * H);
    p.raw = s.raw.grow(B * G * H);
    p.step_h = s.step_h.grow(B * P);
    p.h_n = a.h_n + d * B * P;
    copy_or_clear(a.h_0 ? a.h_0 + d * B * P : nullptr, B * P, p.h_n);
    if (cell_->has_c) {
      p.c_n = a.c_n + d * B * H;
      copy_or_clear(a.c_0 ? a.c_0 + d * B * H : nullptr, B * H, p.c_n);
    }
    p.operand = p.masks.recurrent ? s.operand.grow(B * P) : p.h_n;
    const auto& keep = a.keep[d];
    if (save && keep.saved) {
      own.saved = Buffer<T>(keep.saved, N * S * H);
      own.scales = Buffer<T>(keep.scales, N * kScales);
      own.h_before = Buffer<T>(keep.h_before, N * P);
      if (keep.operand_before) own.operand_before = Buffer<T>(keep.operand_before, N * P);
      own.c_before = Buffer<T>(keep.c_before, N * H);
    }
    p.saved = own.saved.grow((save ? N : chunk) * S * H);
    p.scales = own.scales.grow((save ? N : chunk) * kScales);
    if (save) {
      p.h_before = own.h_before.grow(N * P);
      if (p.masks.recurrent) p.operand_before = own.operand_before.grow(N * P);
      if (cell_->has_c) p.c_before = own.c_before.grow(N * H);
    }
    p.y = a.y + d * P;
    p.y_stride = directions() * P;
  }
  run(work(kept->offset, B), thread_count(), [&](Region& region, int id) {
    region.each_direction(id, [&](int d, Team team) {
      FlexibleForward<T> mine = passes[d];
      mine.split = region.split(d);
      cell_->forward(mine, team);
    });
  });
  if (!save) kept.reset();
  return kept;
}

template <class T>
void FlexibleLayer<T>::backward(const FlexibleSaved<T>& saved,
                                const FlexibleBackwardArrays<T>& a) const {
  const int64_t B = saved.batch, I = input_, H = hidden_, P = outputs_, G = cell_->gates;
  const int64_t N = saved.offset[saved.steps], chunk = std::min(N, kChunk + B);
  const int64_t first = cell_->first_gates * H;
  const int threads = thread_count();
  const Written to = written();
  struct Scratch {
    Buffer<T> x_data, h_data[2], rows, dh, sum, pack;
  } scratch[2];
  Buffer<T> dx_reverse;
  if (directions() == 2) dx_reverse.grow(N * I);
  FlexibleBackward<T> passes[2] = {};
  for (int d = 0; d < directions(); d++) {
    const auto& kept = saved.directions[d];
    const FlexibleWeights<T>& w = weights_[d];
    Scratch& s = scratch[d];
    FlexibleBackward<T>& p = passes[d];
    p.steps = {saved.steps, saved.offset.data()};
    p.batch = B;
    p.input = I;
    p.hidden = H;
    p.outputs = P;
    p.reverse = d == 1;
    p.chunk = kChunk;
    p.options = options_;
    p.w = w;
    p.masks = a.masks[d];
    p.x = saved.x;
    p.x_panels = panels(s.x_data, G * H, I, w.w_ih, I, 1);
    p.h_panels[0] = panels(s.h_data[0], first, P, w.w_hh, P, 1);
    if (first < G * H)
      p.h_panels[1] = panels(s.h_data[1], G * H - first, P, w.w_hh + first * P, P, 1);
    else if (w.w_hr)
      p.h_panels[1] = panels(s.h_data[1], P, H, w.w_hr, H, 1);
    p.saved_slots = saved_slots();
    p.saved = kept.saved.get();
    p.scales = kept.scales.get();
    p.h_before = kept.h_before.get();
    p.operand_before = p.masks.recurrent ? kept.operand_before.get() : p.h_before;
    p.c_before = kept.c_before.get();
    p.dy = a.dy ? a.dy + d * P : nullptr;
    p.y_stride = directions() * P;
    p.written = to;
    p.rows = s.rows.grow(chunk * to.count * H);
    p.dh = s.dh.grow(chunk * P);
    p.sum = s.sum.grow(B * std::max(H, P));
    p.pack = s.pack.grow(
        kernels_->tn_scratch(static_cast<const T*>(nullptr), std::max({I, H, P}), chunk, threads));
    p.dh_0 = a.dh_0 + d * B * P;
    copy_or_clear(a.dh_n ? a.dh_n + d * B * P : nullptr, B * P, p.dh_0);
    if (cell_->has_c) {
      p.dc_0 = a.dc_0 + d * B * H;
      copy_or_clear(a.dc_n ? a.dc_n + d * B * H : nullptr, B * H, p.dc_0);
    }
    p.dx = d == 0 ? a.dx : dx_reverse.get();
    p.dw = a.dweights[d];
    if (N == 0) {  // no step: the passes below write no weight gradient
      const auto fields = each_field(p.dw);
      const auto sizes = weight_sizes(G, I, H, P);
      for (int k = 0; k < kWeightFields; k++)
        if (*fields[k]) std::fill_n(*fields[k], sizes[k], T(0));
    }
  }
  run(work(saved.offset, B), threads, [&](Region& region, int id) {
    region.each_direction(id, [&](int d, Team team) {
      FlexibleBackward<T> mine = passes[d];
      mine.split = region.split(d);
      for (const Panels<T>* panels : {&mine.x_panels, &mine.h_panels[0], &mine.h_panels[1]})
        if (panels->data) kernels_->pack_panels(*panels, team);
      if (team.size > 1) team.barrier->wait();
      cell_->backward(mine, team);
    });
    if (directions() == 2) {
      region.meet();
      kernels_->add(a.dx, dx_reverse.get(), N * I, a.dx, region.everyone(id));
    }
  });
}

template class FlexibleLayer<float>;
template class FlexibleLayer<double>;
template class FlexibleLayer<Dual>;

}  // namespace rnnfast
