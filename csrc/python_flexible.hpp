// A layer of a cell with options as Python sees it.
#pragma once

#include <complex>

#include "flexible.hpp"
#include "python_layer.hpp"

namespace rnnfast {
namespace {

// Python holds dual numbers as complex ones, the derivative in the imaginary part.
template <class T>
struct NumPyOf {
  using type = T;
};
template <>
struct NumPyOf<Dual> {
  using type = std::complex<double>;
};
template <class T>
using Element = typename NumPyOf<T>::type;

template <class T>
const T* read(const std::optional<py::array>& array, int64_t size, const char* name) {
  return reinterpret_cast<const T*>(pointer<const Element<T>>(array, size, name));
}
template <class T>
T* write(const std::optional<py::array>& array, int64_t size, const char* name) {
  return reinterpret_cast<T*>(pointer<Element<T>>(array, size, name));
}

template <class T>
struct PyFlexibleSaved {
  std::unique_ptr<FlexibleSaved<T>> saved;
  py::array x;  // kept alive for its pointer
};

using Arrays = std::vector<std::optional<py::array>>;
using FunctionTuple = std::tuple<int, double, double>;
// Of gates, candidate and output; clip, grad_clip, input_forget, truncate.
using OptionTuple =
    std::tuple<FunctionTuple, FunctionTuple, FunctionTuple, double, double, bool, int64_t>;

template <class T>
class PyFlexible {
 public:
  // An array for each of WeightFields, in its order, or None.
  PyFlexible(const std::string& cell, const OptionTuple& options, std::vector<Arrays> directions)
      : arrays_(std::move(directions)), layer_(make(cell, options, arrays_)) {}

  PyFlexibleSaved<T> forward(const py::array& x, int64_t steps, int64_t batch,
                             const std::optional<py::array>& sizes,
                             const std::optional<py::array>& h_0,
                             const std::optional<py::array>& c_0, const py::array& y,
                             const py::array& h_n, const std::optional<py::array>& c_n,
                             const std::vector<Arrays>& masks, bool save) const {
    const Batch b{steps, batch, pointer<const int64_t>(sizes, steps, "batch_sizes")};
    const int64_t rows = count_checked(b);
    const int64_t D = layer_.directions(), H = layer_.hidden(), P = layer_.outputs();
    if (layer_.has_c() != c_n.has_value())
      throw std::invalid_argument("c_n: does not fit the cell");
    FlexibleForwardArrays<T> a{read<T>(x, rows * layer_.input(), "x"),
                               read<T>(h_0, D * batch * P, "h_0"),
                               read<T>(c_0, D * batch * H, "c_0"),
                               write<T>(y, rows * D * P, "y"),
                               write<T>(h_n, D * batch * P, "h_n"),
                               write<T>(c_n, D * batch * H, "c_n"),
                               {}};
    fill_masks(masks, rows, batch, a.masks);
    PyFlexibleSaved<T> kept{nullptr, x};
    const Released released;
    kept.saved = layer_.forward(b, a, save);
    return kept;
  }

  // dx, the gradients of every field of every direction, dh_0 and dc_0.
  py::tuple backward(const PyFlexibleSaved<T>& kept, const std::optional<py::array>& dy,
                     const std::optional<py::array>& dh_n, const std::optional<py::array>& dc_n,
                     const std::vector<Arrays>& masks) const {
    if (!kept.saved) throw std::invalid_argument("saved: nothing was");
    const FlexibleSaved<T>& saved = *kept.saved;
    const int64_t D = layer_.directions(), H = layer_.hidden(), P = layer_.outputs();
    const int64_t B = saved.batch, N = saved.offset[saved.steps];
    const auto make = [](std::vector<py::ssize_t> shape, T** at) {
      py::array_t<Element<T>> array(std::move(shape));
      *at = reinterpret_cast<T*>(array.mutable_data());
      return array;
    };
    FlexibleBackwardArrays<T> a{};
    a.dy = read<T>(dy, N * D * P, "dy");
    a.dh_n = read<T>(dh_n, D * B * P, "dh_n");
    a.dc_n = read<T>(dc_n, D * B * H, "dc_n");
    fill_masks(masks, N, B, a.masks);
    py::object dh_0 = make({D, B, P}, &a.dh_0), dx = make({N, layer_.input()}, &a.dx);
    py::object dc_0 = py::none();
    if (layer_.has_c()) dc_0 = make({D, B, H}, &a.dc_0);
    py::list dweights;
    for (int d = 0; d < D; d++) {
      const auto fields = each_field(a.dweights[d]);
      py::list made;
      for (int k = 0; k < kWeightFields; k++) {
        const auto& like = arrays_[d][k];
        if (like)
          made.append(make({like->shape(), like->shape() + like->ndim()}, fields[k]));
        else
          made.append(py::none());
      }
      dweights.append(made);
    }
    {
      const Released released;
      layer_.backward(saved, a);
    }
    return py::make_tuple(dx, dweights, dh_0, dc_0);
  }

  const FlexibleLayer<T>& layer() const { return layer_; }

 private:
  void fill_masks(const std::vector<Arrays>& given, int64_t rows, int64_t batch,
                  StateMasks<T>* masks) const {
    const int64_t H = layer_.hidden(), P = layer_.outputs();
    if (!given.empty() && given.size() != size_t(layer_.directions()))
      throw std::invalid_argument("masks: one for each direction");
    for (size_t d = 0; d < given.size(); d++) {
      if (given[d].size() != 3) throw std::invalid_argument("masks: three for each direction");
      const auto stride = [&](const std::optional<py::array>& keep, int64_t width) {
        return keep && keep->shape(0) != 1 ? width : 0;
      };
      const auto& [recurrent, keep_h, keep_c] = std::tie(given[d][0], given[d][1], given[d][2]);
      StateMasks<T>& m = masks[d];
      m.keep_h_stride = stride(keep_h, P);
      m.keep_c_stride = stride(keep_c, H);
      m.recurrent = read<T>(recurrent, batch * P, "recurrent");
      m.keep_h = read<T>(keep_h, m.keep_h_stride ? rows * P : P, "keep_h");
      m.keep_c = read<T>(keep_c, m.keep_c_stride ? rows * H : H, "keep_c");
    }
  }

  static FlexibleLayer<T> make(const std::string& cell, const OptionTuple& given,
                               const std::vector<Arrays>& directions) {
    const FlexibleKind kind =
        FlexibleKind(one_of(cell, {"lstm", "gru_after", "gru_before", "rnn", "gated"}, "cell"));
    const auto function = [](const FunctionTuple& f) {
      return Activation{Function(std::get<0>(f)), std::get<1>(f), std::get<2>(f)};
    };
    const CellOptions options{function(std::get<0>(given)),
                              function(std::get<1>(given)),
                              function(std::get<2>(given)),
                              std::get<3>(given),
                              std::get<4>(given),
                              std::get<5>(given),
                              std::get<6>(given)};
    if (directions.empty() || directions.size() > 2)
      throw std::invalid_argument("directions: expected one or two");
    const int64_t G = kernels<T>(active_set()).flexible[kind].gates;
    const py::array &w_ih = directions[0].at(0).value(), &w_hh = directions[0].at(1).value();
    const int64_t rows = w_hh.shape(0), P = w_hh.shape(1), I = w_ih.shape(1), H = rows / G;
    if (rows != G * H) throw std::invalid_argument("w_hh: does not fit the cell");
    std::vector<FlexibleWeights<T>> weights;
    const auto sizes = weight_sizes(G, I, H, P);
    for (const Arrays& arrays : directions) {
      if (arrays.size() != kWeightFields)
        throw std::invalid_argument("weights: unexpected number of fields");
      FlexibleWeights<T> w{};
      const auto fields = each_field(w);
      for (int k = 0; k < kWeightFields; k++)
        *fields[k] = read<T>(arrays[k], sizes[k], kWeightNames[k]);
      if (!complete(w, H, P)) throw std::invalid_argument("weights: do not fit the cell");
      weights.push_back(w);
    }
    const Released released;
    return FlexibleLayer<T>(kind, options, std::move(weights), I, H, P);
  }

  std::vector<Arrays> arrays_;  // kept alive for their pointers
  FlexibleLayer<T> layer_;
};

}  // namespace
}  // namespace rnnfast
