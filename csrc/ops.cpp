#include "ops.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <type_traits>

#include "dispatch.hpp"
#include "region.hpp"

namespace rnnfast {

template <>
const Kernels<float>& kernels<float>(const InstructionSet& isa) {
  return isa.f32;
}
template <>
const Kernels<double>& kernels<double>(const InstructionSet& isa) {
  return isa.f64;
}
template <>
const Kernels<Dual>& kernels<Dual>(const InstructionSet& isa) {
  return isa.dual;
}

namespace {

// Rows of the products between two stretches of the time loop: few, so that they stay in the cache
// (1.03 times faster than 512 at (100, 32, 256, 256)); more where weight gradients are summed up.
constexpr int64_t kForwardChunk = 128;
constexpr int64_t kBackwardChunk = 512;

constexpr int64_t kMany = 1000;  // times

// Widths from which the matrix unit takes products with weights, the same of a backward pass, and
// weight gradients, whose numbers are all split anew.
constexpr int64_t kSplitWidth = 32, kSplitBackWidth = 64, kSplitNarrowest = 128;
// Of w_hh in parts, which take 6 bytes a number and are read at each step: so many numbers stay in
// the cache, and of more only so many rows make the time up (at (35, 20, 650, 650) they would not).
constexpr int64_t kSplitNear = 330000, kSplitFarBatch = 28;

// How many times fewer bytes weights of a precision take.
int64_t shrunk_by(Precision p) {
  return p == Precision::kFull ? 1 : p == Precision::kBfloat16 ? 2 : 4;
}

// w_ih or w_hh [rows, width] with its rows, as the user has them, as columns.
template <class T>
Source<T> columns_of(const T* w, int64_t rows, int64_t width, const Layout& layout) {
  if (layout.transposed) return {w, rows, 1};
  return {w, 1, width};
}

// Some of the gates, in our order, side by side.
template <class T>
Source<T> beside(Source<T> columns, int64_t hidden, int first, int gates, const Layout& layout) {
  columns.groups = gates;
  for (int g = 0; g < gates; g++)
    columns.begin[g] = layout.place[first + g] * hidden * columns.column;
  return columns;
}

// The same as rows, one gate below another.
template <class T>
Source<T> below(const Source<T>& columns, int64_t hidden, int first, int gates,
                const Layout& layout) {
  Source<T> rows = beside(columns, hidden, first, gates, layout);
  std::swap(rows.row, rows.column);
  rows.groups = 1;
  bool in_turn = true;
  for (int g = 1; g < gates; g++) in_turn &= rows.begin[g] == rows.begin[0] + g * hidden * rows.row;
  if (!in_turn) rows.height = hidden;
  return rows;
}

template <class T>
const T* copy(const T* from, int64_t count, Buffer<T>& to) {
  std::copy_n(from, count, to.grow(count));
  return to.get();
}

// The sum of two biases, each of which may be null, from `first` on.
template <class T>
void add_biases(const T* a, const T* b, int64_t first, int64_t count, T* to) {
  for (int64_t j = first; j < first + count; j++) to[j] = (a ? a[j] : T(0)) + (b ? b[j] : T(0));
}

// Lets a pass pack its weights where those of another one are.
template <class Pass>
void pack_over(Pass& p, const Pass& ended, int stages) {
  p.x_panels.data = ended.x_panels.data;
  for (int s = 0; s < stages; s++) p.h_panels[s].data = ended.h_panels[s].data;
}

}  // namespace

// Memory for panels; what was there is lost.
template <class T>
void Layer<T>::place(Panels<T>& p, Buffer<T>& data) const {
  const int64_t lanes = kernels_->lanes;
  p.data = data.grow(p.k * ((p.n + lanes - 1) / lanes * lanes) * p.source.groups);
}

// The same for panels of words.
template <class T>
void Layer<T>::place_words(Panels<T>& p, Precision precision, Buffer<T>& data,
                           LowBuffers& low) const {
  const int64_t lanes = kernels_->lanes;
  const int64_t columns = (p.n + lanes - 1) / lanes * lanes * p.source.groups;
  low.scale.grow(columns);
  if (precision != Precision::kSplit) low.correction.grow(columns);
  p.k = words_of(precision, p.k);
  place(p, data);
}

template <class T>
Layer<T>::Layer(CellKind cell, std::vector<Weights<T>> weights, int64_t input, int64_t hidden,
                bool reuse, Precision precision)
    : kernels_(&kernels<T>(active_set())),
      cell_(kernels_->cells[cell]),
      weights_(std::move(weights)),
      input_(input),
      hidden_(hidden),
      reuse_(reuse),
      precision_(precision),
      low_(precision != Precision::kFull ? &low_kernels()
           : std::is_same_v<T, float>    ? split_kernels()
                                         : nullptr),
      split_batch_(precision == Precision::kFull && low_ ? active_set().split_batch : 0) {
  const int64_t I = input_, H = hidden_, G = cell_->gates;
  for (int d = 0; d < directions(); d++) {
    const Weights<T>& w = weights_[d];
    Packed& p = packed_[d];
    p.x = {nullptr, I, G * H, kernels_->widest, columns_of(w.w_ih, G * H, I, w.layout), false};
    for (int s = 0; s < cell_->stages; s++)
      p.h[s] = {nullptr,
                H,
                H,
                cell_->unit_vectors[s],
                beside(columns_of(w.w_hh, G * H, H, w.layout), H, cell_->stage_first[s],
                       cell_->stage_gates[s], w.layout),
                false};
    const int64_t place_apart = cell_->apart >= 0 ? w.layout.place[cell_->apart] : -1;
    p.bias = Buffer<T>(G * H);
    for (int64_t gate = 0; gate < G; gate++)
      add_biases(w.b_ih, gate == place_apart ? nullptr : w.b_hh, gate * H, H, p.bias.get());
    if (cell_->apart >= 0) {
      p.bias_h = Buffer<T>(H);
      for (int64_t j = 0; j < H; j++)
        p.bias_h.get()[j] = w.b_hh ? w.b_hh[place_apart * H + j] : T(0);
    }
  }
  if (!reuse_) return;
  for (int d = 0; d < directions(); d++) {
    Packed& p = packed_[d];
    const auto keep = [&](Panels<T>& panels, Buffer<T>& data, LowBuffers& low) {
      if (precision_ == Precision::kFull)
        place(panels, data);
      else
        place_words(panels, precision_, data, low);
    };
    keep(p.x, p.data.x, p.data.x_low);
    for (int s = 0; s < cell_->stages; s++) keep(p.h[s], p.data.h[s], p.data.h_low[s]);
  }
  divided([&](Team team) {
    for (int d = 0; d < directions(); d++) pack(d, team);
  });
}

// Calls pack(team) on every thread of a team that packs the weights, where they are many.
template <class T>
template <class Pack>
void Layer<T>::divided(Pack pack) const {
  const int threads = cell_->gates * hidden_ * (input_ + hidden_) > 200000 ? thread_count() : 1;
  auto member = [&](int id) { pack(Team{id, threads, nullptr}); };
  auto alone = [&](int) { pack(Team{0, 1, nullptr}); };
  if (!try_parallel(threads, member)) try_parallel(1, alone);
}

template <class T>
void Layer<T>::pack(int direction, Team team) const {
  const Packed& p = packed_[direction];
  if constexpr (std::is_same_v<T, float>)
    if (precision_ != Precision::kFull) {
      low_->pack(precision_, p.x, p.data.x_low.columns(), team);
      for (int s = 0; s < cell_->stages; s++)
        low_->pack(precision_, p.h[s], p.data.h_low[s].columns(), team);
      return;
    }
  kernels_->pack_panels(p.x, team);
  for (int s = 0; s < cell_->stages; s++) kernels_->pack_panels(p.h[s], team);
}

// Whether any products of a batch are split, those with w_ih, and those with w_hh.
template <class T>
bool Layer<T>::splits(int64_t batch) const {
  return split_batch_ > 0 && batch >= split_batch_ &&
         std::max(input_, hidden_) >= (split_batch_ == 1 ? 1 : kSplitWidth) && may_split();
}
template <class T>
bool Layer<T>::splits_x() const {
  return split_batch_ == 1 || input_ >= kSplitWidth;
}
template <class T>
bool Layer<T>::splits_h(int64_t batch) const {
  if (split_batch_ == 1) return true;
  const int64_t weights = cell_->gates * hidden_ * hidden_;
  return hidden_ >= kSplitWidth && (weights <= kSplitNear || batch >= kSplitFarBatch);
}

// Packs panels of words in parts, from columns of k numbers: those of `numbers`, or where they have
// no data from their source.
template <class T>
void Layer<T>::split(const Panels<T>& numbers, const Panels<T>& words, const LowColumns& columns,
                     Team team) const {
  if constexpr (std::is_same_v<T, float>)
    low_->split->pack(numbers, reinterpret_cast<uint32_t*>(words.data), columns, team);
}
template <class T>
void Layer<T>::split(const Panels<T>& words, int64_t k, const LowColumns& columns,
                     Team team) const {
  Panels<T> numbers = words;
  numbers.k = k;
  numbers.data = nullptr;
  split(numbers, words, columns, team);
}

// Those in parts of a layer for reuse: of w_ih, or of w_hh.
template <class T>
const PanelBuffers<T>& Layer<T>::parts_of(int direction, bool of_x) const {
  const auto each = [&](auto body) {  // numbers, data, low
    for (int d = 0; d < directions(); d++) {
      PanelBuffers<T>& to = parts_.data[d];
      if (of_x) body(packed_[d].x, to.x, to.x_low);
      for (int s = 0; !of_x && s < cell_->stages; s++) body(packed_[d].h[s], to.h[s], to.h_low[s]);
    }
  };
  std::call_once(of_x ? parts_.x : parts_.h, [&] {
    each([&](const Panels<T>& numbers, Buffer<T>& data, LowBuffers& low) {
      Panels<T> words = numbers;
      place_words(words, Precision::kSplit, data, low);
    });
    divided([&](Team team) {
      each([&](const Panels<T>& numbers, const Buffer<T>& data, const LowBuffers& low) {
        Panels<T> words = numbers;
        words.data = data.get();
        split(numbers, words, low.columns(), team);
      });
    });
  });
  return parts_.data[direction];
}

// Panels that a pass multiplies with so many times. Those of one time are packed block by block by
// the member that needs them, which finds them in its cache, or not at all.
template <class T>
void Layer<T>::prepare(Panels<T>& p, int64_t times, Team team) const {
  const int64_t vectors = (p.n + kernels_->lanes - 1) / kernels_->lanes;
  const int64_t blocks = (vectors + p.widest - 1) / p.widest;
  p.one_by_one =
      times <= 1 && (blocks >= 2 * team.size || (team.size == 1 && p.source.column == 1));
  if (p.one_by_one)
    p.data += team.id * (p.k * p.widest * kernels_->lanes * p.source.groups);
  else
    kernels_->pack_panels(p, team);
}

// Those of a forward pass that packs them itself.
template <class T>
void Layer<T>::prepare(Forward<T>& p, int64_t x_times, int64_t h_times, Team team) const {
  if (p.low && p.low->x_words)
    split(p.x_panels, input_, p.low->x, team);
  else
    prepare(p.x_panels, x_times, team);
  for (int s = 0; s < cell_->stages; s++)
    if (p.low && p.low->h_words)
      split(p.h_panels[s], hidden_, p.low->h[s], team);
    else
      prepare(p.h_panels[s], h_times, team);
}

template <class T>
void Layer<T>::fill_weights(Forward<T>& f, int direction, PanelBuffers<T>& own, LowForward* low,
                            int64_t batch) const {
  const Packed& p = packed_[direction];
  f.input = input_;
  f.hidden = hidden_;
  f.reverse = direction == 1;
  f.place = weights_[direction].layout.place;
  f.bias = p.bias.get();
  f.bias_h = p.bias_h.get();
  f.low = low;
  const bool in_parts = low && precision_ == Precision::kFull;
  for (int s = -1; s < cell_->stages; s++) {
    const bool of_x = s < 0;
    Panels<T>& panels = of_x ? f.x_panels : f.h_panels[s];
    panels = of_x ? p.x : p.h[s];
    const bool words = in_parts && (of_x ? splits_x() : splits_h(batch));
    const PanelBuffers<T>& from = !reuse_ ? own : words ? parts_of(direction, of_x) : p.data;
    if (!reuse_ && words) {
      place_words(panels, Precision::kSplit, of_x ? own.x : own.h[s],
                  of_x ? own.x_low : own.h_low[s]);
    } else if (!reuse_) {
      place(panels, of_x ? own.x : own.h[s]);
    } else if (words) {
      panels.k = words_of(Precision::kSplit, panels.k);
      panels.data = (of_x ? from.x : from.h[s]).get();
    }
    if (low) (of_x ? low->x : low->h[s]) = (of_x ? from.x_low : from.h_low[s]).columns();
  }
}

template <class T>
void Layer<T>::fill_low(LowForward& low, LowSpace& space, int64_t rows, int64_t batch, int threads,
                        bool h_too) const {
  const bool in_parts = precision_ == Precision::kFull;
  low.kernels = low_;
  low.precision = in_parts ? Precision::kSplit : precision_;
  const bool x_too = !in_parts || splits_x();
  low.x_words = x_too ? low_->operand_words(low.precision, input_) : 0;
  low.h_words = h_too ? low_->operand_words(low.precision, hidden_) : 0;
  low.x_operand = space.x_operand.grow(rows * low.x_words);
  low.x_scale = space.x_scale.grow(rows);
  const int64_t copies = in_parts ? 1 : threads;
  low.h_operand = space.h_operand.grow(copies * batch * low.h_words);
  low.h_scale = space.h_scale.grow(copies * batch);
}

template <class T>
Workload Layer<T>::work(const std::vector<int64_t>& offset, int64_t batch, int threads) const {
  const int64_t steps = int64_t(offset.size()) - 1, G = cell_->gates, H = hidden_;
  return {steps,
          offset[steps],
          offset.data(),
          batch,
          input_,
          H,
          int(G),
          directions(),
          kernels_->lanes,
          cell_->stages,
          G * H * H * int64_t(sizeof(T)) / shrunk_by(precision_),
          meeting_ns(threads)};
}

template <class T>
void Layer<T>::begin(ForwardCall<T>& call, const Batch& batch, const ForwardArrays<T>& a, Save save,
                     int threads) const {
  const int D = directions();
  const int64_t T_ = batch.steps, B = batch.batch, I = input_, H = hidden_;
  const int64_t G = cell_->gates, S = cell_->saved;
  const int64_t state = B * H;
  std::unique_ptr<Saved<T>>& saved = call.saved;
  std::unique_ptr<Workspace<T>>& space = call.space;
  if (save != Save::kNothing) saved.reset(new Saved<T>);
  space.reset(spare_.exchange(nullptr, std::memory_order_acquire));
  if (!space) space.reset(new Workspace<T>);
  std::vector<int64_t>& offset = saved ? saved->offset : space->offset;
  count_rows(batch, offset);
  const int64_t N = offset[T_];

  const int64_t chunk = std::clamp<int64_t>(N, 1, kForwardChunk);
  const int64_t scratch_rows = (B > 1 ? threads : 1) * chunk + B;
  const T* zeros = nullptr;
  if (!a.h_0 || (cell_->has_c && !a.c_0)) {
    zeros = space->zeros.grow(state);
    std::fill_n(space->zeros.get(), state, T(0));
  }
  for (int d = 0; d < D; d++) {
    auto& own = space->directions[d];
    Forward<T>& f = call.p[d];
    f = Forward<T>{};
    f.steps = {T_, offset.data()};
    f.batch = B;
    f.chunk = chunk;
    f.x = a.x;
    LowForward* low = precision_ != Precision::kFull || splits(B) ? &space->low[d] : nullptr;
    fill_weights(f, d, own.panels, low, B);
    f.h_0 = a.h_0 ? a.h_0 + d * state : zeros;
    f.zero_h = !a.h_0;
    f.c_0 = !cell_->has_c ? nullptr : a.c_0 ? a.c_0 + d * state : zeros;
    f.x_order = a.x_order;
    if (a.x_order || (threads > 1 && B > 1)) f.x_rows = own.x_rows.grow(scratch_rows);
    f.gx = own.gx.grow(scratch_rows * G * H);
    if (low)
      fill_low(*low, own.low, scratch_rows, B, threads,
               precision_ != Precision::kFull || splits_h(B));
    // Threads far apart wait for a cache line that both write to, and for one that the processor
    // fetched because it follows what a thread reads. The caller's c_n may not even be aligned.
    const int64_t page = 4096 / int64_t(sizeof(T));
    f.between = (2 * state / page + 2) * page;
    f.save = bool(saved);
    f.save_gates = save == Save::kAll;
    f.y = a.y + d * H;
    f.y_stride = D * H;
    f.y_order = a.y_order;
    f.h_n = a.h_n + d * state;
    f.c_n = cell_->has_c ? a.c_n + d * state : nullptr;
    if (saved) {
      auto& kept = saved->directions[d];
      if (a.keep[d].h) {
        kept.gates = Buffer<T>(a.keep[d].gates, N * S * H);
        kept.h = Buffer<T>(a.keep[d].h, N * H);
        kept.c = Buffer<T>(a.keep[d].c, N * H);
      }
      f.h_0 = copy(f.h_0, state, kept.h_0);
      if (save == Save::kAll) f.gates = kept.gates.grow(N * S * H);
      f.h = kept.h.grow(N * H);
      if (cell_->has_c) {
        f.c_0 = copy(f.c_0, state, kept.c_0);
        f.c = kept.c.grow(N * H);
      }
    } else {
      if (a.h_0 == a.h_n) f.h_0 = copy(f.h_0, state, own.h_0);
      if (cell_->has_c && a.c_0 == a.c_n) f.c_0 = copy(f.c_0, state, own.c_0);
      f.h = own.h.grow(f.between * threads);
      if (cell_->has_c) f.c = threads > 1 ? own.c.grow(f.between * threads) : f.c_n;
    }
    if (cell_->stages > 1 && save != Save::kAll) f.gates = own.gates.grow(S * f.between * threads);
  }

  call.work = work(offset, B, threads);
  if (saved) {
    saved->zero_h = !a.h_0;
    saved->steps = T_;
    saved->batch = B;
    saved->x = a.x;
    if (a.x_order) saved->x_order.assign(a.x_order, a.x_order + B);
    if (a.y_order) saved->y_order.assign(a.y_order, a.y_order + B);
  }
}

template <class T>
void Layer<T>::pass(const Forward<T>& p, Team team) const {
  if (reuse_) return cell_->forward(p, team);
  Forward<T> mine = p;
  const int64_t rows = p.steps.offset[p.steps.count];
  // Threads that divide rows would each pack all of it.
  const bool once = rows <= (team.size == 1 || p.batch == 1 ? p.chunk : kFewRows);
  prepare(mine, once ? 1 : kMany, p.batch > kFewRows ? kMany : p.steps.count, team);
  if (team.size > 1) team.barrier->wait();
  cell_->forward(mine, team);
}

template <class T>
void Layer<T>::follow(Forward<T>& p, const Forward<T>& ended) const {
  p.gx = ended.gx;
  if (!reuse_) pack_over(p, ended, cell_->stages);
}

template <class T>
void Layer<T>::follow(Backward<T>& p, const Backward<T>& ended) const {
  for (int k = 0; k < 2; k++) p.dgates[k] = ended.dgates[k];
  p.pack = ended.pack;
  pack_over(p, ended, cell_->stages);
}

template <class T>
std::unique_ptr<Saved<T>> Layer<T>::end(ForwardCall<T>& call) const {
  if (reuse_) call.space.reset(spare_.exchange(call.space.release(), std::memory_order_acq_rel));
  return std::move(call.saved);
}

template <class T>
void Layer<T>::begin(BackwardCall<T>& call, const Saved<T>& saved, const BackwardArrays<T>& a,
                     int threads) const {
  const int D = directions();
  const int64_t T_ = saved.steps, B = saved.batch, I = input_, H = hidden_;
  const int64_t G = cell_->gates, W = cell_->written;
  const int64_t state = B * H, N = saved.offset[T_];
  const int64_t chunk_rows = std::min(N, kBackwardChunk + B);

  if (N == 0)  // no step: the passes below write no weight gradient
    for (int d = 0; d < D; d++) {
      const auto& w = a.dweights[d];
      if (w.w_ih) std::fill_n(w.w_ih, G * H * I, T(0));
      if (w.w_hh) std::fill_n(w.w_hh, G * H * H, T(0));
      if (w.b_ih) std::fill_n(w.b_ih, G * H, T(0));
      if (w.b_hh) std::fill_n(w.b_hh, G * H, T(0));
    }

  call.work = work(saved.offset, B, threads);
  const int64_t* x_order = saved.x_order.empty() ? nullptr : saved.x_order.data();
  if (D == 2 && a.dx) call.dx_reverse = Buffer<T>((x_order ? T_ * B : N) * I);
  for (int d = 0; d < D; d++) {
    const auto& kept = saved.directions[d];
    auto& own = call.directions[d];
    Backward<T>& b = own.p;
    b = Backward<T>{};
    b.steps = {T_, saved.offset.data()};
    b.batch = B;
    b.input = I;
    b.hidden = H;
    b.reverse = d == 1;
    b.chunk = b.stretch = kBackwardChunk;
    b.x = saved.x;
    b.x_order = x_order;
    b.y_order = saved.y_order.empty() ? nullptr : saved.y_order.data();
    if (x_order) {
      own.x_rows = Buffer<const T*>(N);
      b.x_rows = own.x_rows.get();
      if (a.dx) own.dx_rows = Buffer<T*>(N);
      b.dx_rows = own.dx_rows.get();
    }
    const Weights<T>& w = weights_[d];
    const auto rows_of = [&](const T* weights, int64_t columns, int first, int gates) {
      const Source<T> across = columns_of(weights, G * H, columns, w.layout);
      return Panels<T>{
          nullptr, gates * H, columns, kernels_->widest, below(across, H, first, gates, w.layout),
          false};
    };
    if (splits(B)) b.low = &own.low;
    const auto place_panels = [&](Panels<T>& panels, bool split, int64_t& words,
                                  LowColumns& columns, Buffer<T>& data, LowBuffers& low) {
      split = split && (panels.n >= kSplitBackWidth || split_batch_ == 1);
      words = split ? low_->operand_words(Precision::kSplit, panels.k) : 0;
      if (words)
        place_words(panels, Precision::kSplit, data, low);
      else
        place(panels, data);
      columns = low.columns();
    };
    LowBackward& low = own.low;
    low.kernels = low_;
    low.x_numbers = G * H;
    low.narrowest = split_batch_ == 1 ? 1 : kSplitNarrowest;
    b.x_panels = rows_of(w.w_ih, I, 0, int(G));
    place_panels(b.x_panels, b.low && splits_x(), low.x_words, low.x, own.panels.x,
                 own.panels.x_low);
    low.most_words = 0;
    for (int s = 0; s < cell_->stages; s++) {
      b.h_panels[s] = rows_of(w.w_hh, H, cell_->stage_first[s], cell_->stage_gates[s]);
      place_panels(b.h_panels[s], b.low && splits_h(B), low.h_words[s], low.h[s], own.panels.h[s],
                   own.panels.h_low[s]);
      low.most_words = std::max(low.most_words, low.h_words[s]);
    }
    if (b.low) {
      low.x_operand = own.x_operand.grow(chunk_rows * low.x_words);
      low.x_special = own.x_special.grow(chunk_rows);
      low.h_operand = own.h_operand.grow(B * low.most_words);
      low.h_special = own.h_special.grow(B);
      low.row = own.row.grow(threads * W * H);
    }
    b.h_0 = kept.h_0.get();
    b.c_0 = kept.c_0.get();
    b.gates = kept.gates.get();
    if (!b.gates && cell_->saved > 0) {
      Forward<T>& f = own.again;
      f = Forward<T>{};
      f.steps = b.steps;
      f.batch = chunk_rows;
      f.zero_h = saved.zero_h;
      fill_weights(f, d, own.again_panels, b.low ? &own.low_again : nullptr, B);
      if (b.low)
        fill_low(own.low_again, own.again_space, chunk_rows, chunk_rows, threads, splits_h(B));
      own.gx = Buffer<T>(chunk_rows * G * H);
      own.gates = Buffer<T>(chunk_rows * cell_->saved * H);
      f.gx = own.gx.get();
      f.gates = own.gates.get();
      b.again = &f;
    }
    b.h = kept.h.get();
    b.c = kept.c.get();
    b.dy = a.dy ? a.dy + d * H : nullptr;
    b.y_stride = D * H;
    b.dh_n = a.dh_n ? a.dh_n + d * state : nullptr;
    b.dc_n = a.dc_n ? a.dc_n + d * state : nullptr;
    for (int k = 0; k < 2; k++) {
      own.dgates[k] = Buffer<T>(chunk_rows * W * H);
      b.dgates[k] = own.dgates[k].get();
    }
    own.direct = Buffer<T>(state);
    b.direct = own.direct.get();
    own.partial = Buffer<T>(state);
    b.partial = own.partial.get();
    if (cell_->has_c) {
      own.dc = Buffer<T>(state);
      b.dc = own.dc.get();
    }
    own.before = Buffer<const T*>(N);
    b.before = own.before.get();
    const int64_t columns = w.layout.transposed ? G * H : std::max(I, H);
    own.scratch = Buffer<T>(
        std::max(kernels_->tn_scratch(static_cast<const T*>(nullptr), columns, chunk_rows, threads),
                 b.low ? low_->split->tn_scratch(columns, chunk_rows, threads) : 0));
    b.pack = own.scratch.get();
    b.dx = d == 0 ? a.dx : call.dx_reverse.get();
    b.layout = w.layout;
    b.dw_ih = a.dweights[d].w_ih;
    b.dw_hh = a.dweights[d].w_hh;
    b.db_ih = a.dweights[d].b_ih;
    b.db_hh = a.dweights[d].b_hh;
    b.dh_0 = a.dh_0 ? a.dh_0 + d * state : nullptr;
    b.dc_0 = cell_->has_c ? a.dc_0 + d * state : nullptr;
  }
}

template <class T>
void Layer<T>::pass(const Backward<T>& p, Team team) const {
  Backward<T> mine = p;
  const int64_t rows = p.steps.offset[p.steps.count];
  if (p.dx && p.low && p.low->x_words)
    split(mine.x_panels, cell_->gates * hidden_, p.low->x, team);
  else if (p.dx)
    prepare(mine.x_panels, rows > std::min(p.stretch, kForwardChunk) ? kMany : 1, team);
  for (int s = 0; s < cell_->stages; s++)
    if (s > 0 || p.steps.count > 1 || p.dh_0) {
      if (p.low && p.low->h_words[s])
        split(mine.h_panels[s], cell_->stage_gates[s] * hidden_, p.low->h[s], team);
      else
        prepare(mine.h_panels[s], p.batch > kFewRows ? kMany : p.steps.count, team);
    }
  Forward<T> again;
  if (p.again && !reuse_) {
    again = *p.again;
    mine.again = &again;
    prepare(again, kMany, kMany, team);
  }
  cell_->backward(mine, team);  // starts with a barrier
}

namespace {

// Of a wavefront: how far each layer has come, each count on a cache line of its own.
struct alignas(64) Progress {
  int64_t rows = 0;
};

constexpr Split kAlone{1, nullptr, nullptr};

// Calls pass(layer, team of one) for every layer, layer k after layer k - 1 on each of `members`
// threads, which take turns with the layers. False where another Python thread has the pool.
template <class Pass>
bool chase(int members, size_t layers, Pass pass) {
  auto member = [&](int id) {
    for (size_t k = size_t(id); k < layers; k += size_t(members)) pass(k, Team{0, 1, nullptr});
  };
  const bool done = try_parallel(members, member);
  if (done) note_call();
  return done;
}

// How many threads to run layers as a wavefront with, or 1 for none.
template <class T>
int wave_threads(const std::vector<const Layer<T>*>& layers, const std::vector<int64_t>& offset,
                 int64_t batch, int threads) {
  if (layers.size() < 2 || threads < 2) return 1;
  const Workload last = layers.back()->work(offset, batch, threads);
  const int members = wavefront(last, int(layers.size()), threads, true);
  if (members < 2 || threads_ready(members)) return members;
  return wavefront(last, int(layers.size()), threads, false);
}

// Rows that a layer of a wavefront hands on at a time.
int64_t part_of_wave(const Workload& work, int64_t most) {
  return std::min(most, std::max<int64_t>(1, work.rows / (kWaves * 2)));
}

}  // namespace

template <class T>
std::vector<std::unique_ptr<Saved<T>>> forward(const std::vector<const Layer<T>*>& layers,
                                               const Batch& batch,
                                               const std::vector<ForwardArrays<T>>& arrays,
                                               Save save) {
  const int threads = thread_count();
  const size_t count = layers.size();
  std::vector<std::unique_ptr<Saved<T>>> saved(count);
  std::vector<int64_t> offset;
  if (count > 1) count_rows(batch, offset);  // a stream of one layer allocates nothing for it
  const int members = wave_threads(layers, offset, batch.batch, threads);
  if (members > 1) {
    std::vector<ForwardCall<T>> calls(count);
    for (size_t k = 0; k < count; k++) layers[k]->begin(calls[k], batch, arrays[k], save, threads);
    std::vector<Progress> progress(count);
    const auto alone = [&](size_t k, Team team) {
      Forward<T> mine = calls[k].p[0];
      mine.split = kAlone;
      mine.chunk = part_of_wave(calls[k].work, mine.chunk);
      mine.ready = k > 0 ? &progress[k - 1].rows : nullptr;
      mine.done = &progress[k].rows;
      layers[k]->pass(mine, team);
    };
    const bool done = chase(members, count, alone);
    for (size_t k = 0; k < count; k++) saved[k] = layers[k]->end(calls[k]);
    if (done) return saved;
  }
  // Each layer ends before the next one begins, which so finds its scratch in the caches.
  for (size_t k = 0; k < count; k++) {
    ForwardCall<T> call;
    layers[k]->begin(call, batch, arrays[k], save, threads);
    run(call.work, threads, [&](Region& region, int id) {
      region.each_direction(id, [&](int d, Team team) {
        Forward<T> mine = call.p[d];
        mine.split = region.split(d);
        if (d > 0 && region.in_turn()) layers[k]->follow(mine, call.p[0]);
        layers[k]->pass(mine, team);
      });
    });
    saved[k] = layers[k]->end(call);
  }
  return saved;
}

template <class T>
void backward(const std::vector<const Layer<T>*>& layers, const std::vector<const Saved<T>*>& saved,
              const std::vector<BackwardArrays<T>>& arrays) {
  const int threads = thread_count();
  const size_t count = layers.size();
  const Saved<T>& top = *saved.back();
  const int members = wave_threads(layers, top.offset, top.batch, threads);
  if (members > 1) {
    std::vector<BackwardCall<T>> calls(count);
    for (size_t k = 0; k < count; k++) layers[k]->begin(calls[k], *saved[k], arrays[k], threads);
    std::vector<Progress> progress(count);
    const auto alone = [&](size_t from_top, Team team) {
      const size_t k = count - 1 - from_top;
      Backward<T> mine = calls[k].directions[0].p;
      mine.split = kAlone;
      mine.stretch = part_of_wave(calls[k].work, mine.chunk);
      mine.ready = from_top > 0 ? &progress[k + 1].rows : nullptr;
      mine.done = &progress[k].rows;
      layers[k]->pass(mine, team);
    };
    if (chase(members, count, alone)) return;
  }
  for (size_t k = count; k-- > 0;) {
    const Layer<T>& layer = *layers[k];
    const BackwardArrays<T>& a = arrays[k];
    BackwardCall<T> call;
    layer.begin(call, *saved[k], a, threads);
    run(call.work, threads, [&](Region& region, int id) {
      region.each_direction(id, [&](int d, Team team) {
        Backward<T> mine = call.directions[d].p;
        mine.split = region.split(d);
        if (d > 0 && region.in_turn()) layer.follow(mine, call.directions[0].p);
        layer.pass(mine, team);
      });
      if (layer.directions() == 2 && a.dx) {
        region.meet();
        const int64_t rows =
            saved[k]->x_order.empty() ? call.work.rows : call.work.steps * call.work.batch;
        layer.add(a.dx, call.dx_reverse.get(), rows * call.work.input, a.dx, region.everyone(id));
      }
    });
  }
}

#define RNNFAST_DEFINE_STACK(T)                                                                    \
  template std::vector<std::unique_ptr<Saved<T>>> forward(                                         \
      const std::vector<const Layer<T>*>&, const Batch&, const std::vector<ForwardArrays<T>>&,     \
      Save);                                                                                       \
  template void backward(const std::vector<const Layer<T>*>&, const std::vector<const Saved<T>*>&, \
                         const std::vector<BackwardArrays<T>>&);
RNNFAST_DEFINE_STACK(float)
RNNFAST_DEFINE_STACK(double)

template <class T>
void multiply(const T* a, const T* b, int64_t m, int64_t n, int64_t k, bool transposed, T* c) {
  const Kernels<T>& kernel = kernels<T>(active_set());
  const auto padded = [&](int64_t count) {
    return (count + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
  };
  for (int threads : {thread_count(), 1}) {
    Barrier barrier(threads);
    const int64_t chunk = std::min(k, kBackwardChunk);
    Buffer<T> scratch(transposed ? kernel.tn_scratch(a, n, chunk, threads) : k * padded(n));
    const Panels<T> panels{scratch.get(), k, n, kernel.widest, {b, n, 1}, false};
    auto member = [&](int id) {
      const Team team{id, threads, &barrier};
      if (transposed) {
        for (int64_t r = 0; r < k; r += chunk)
          kernel.multiply_tn({a + r * m, m}, m, {b + r * n, n}, n, std::min(chunk, k - r), c, n,
                             r > 0, scratch.get(), team);
      } else {
        kernel.pack_panels(panels, team);
        if (threads > 1) barrier.wait();
        kernel.multiply_panels({a, k}, m, panels, nullptr, {c, n}, team);
      }
    };
    if (try_parallel(threads, member)) return;
  }
}

template void multiply(const float*, const float*, int64_t, int64_t, int64_t, bool, float*);
template void multiply(const double*, const double*, int64_t, int64_t, int64_t, bool, double*);

bool multiply_in_parts(const float* a, const float* b, int64_t m, int64_t n, int64_t k,
                       bool transposed, float* c) {
  const LowKernels* low = split_kernels();
  if (!low || !may_split()) return false;
  const Kernels<float>& kernel = kernels<float>(active_set());
  const int64_t columns = (n + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
  const int64_t words = low->operand_words(Precision::kSplit, k);
  for (int threads : {thread_count(), 1}) {
    Barrier barrier(threads);
    const int64_t chunk = std::min(k, kBackwardChunk), depth = words_of(Precision::kSplit, k);
    Buffer<float> scratch(transposed ? low->split->tn_scratch(n, chunk, threads) : depth * columns);
    Buffer<float> marks(columns), special(m);
    Buffer<uint32_t> operand(transposed ? 0 : m * words);
    const Panels<float> numbers{nullptr, k, n, kernel.widest, {b, n, 1}, false};
    Panels<float> panels = numbers;
    panels.k = depth;
    panels.data = scratch.get();
    const LowColumns low_columns{marks.get(), nullptr};
    auto member = [&](int id) {
      const Team team{id, threads, &barrier};
      if (transposed) {
        for (int64_t r = 0; r < k; r += chunk)
          low->split->multiply_tn({a + r * m, m}, m, {b + r * n, n}, n, std::min(chunk, k - r), c,
                                  n, r > 0, false, scratch.get(), team);
      } else {
        low->split->pack(numbers, reinterpret_cast<uint32_t*>(scratch.get()), low_columns, team);
        const int64_t begin = m * id / threads, end = m * (id + 1) / threads;
        low->convert(Precision::kSplit, {a + begin * k, k}, end - begin, k,
                     operand.get() + begin * words, special.get() + begin);
        if (threads > 1) barrier.wait();
        low->multiply_panels(Precision::kSplit, operand.get(), special.get(), words, m, panels,
                             low_columns, nullptr, Rows<float>{c, n}, team);
      }
      low->split->release();
    };
    if (try_parallel(threads, member)) break;
  }
  return true;
}

template class Layer<float>;
template class Layer<double>;

}  // namespace rnnfast
