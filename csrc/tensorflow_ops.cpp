// The passes of plain layers as operators of TensorFlow, by its C API: a library of its own, which
// tf.load_op_library loads, and which rnnfast_connect tells where the kernels are.
//
//   RnnfastForward   x, h_0, c_0, lengths, weights -> y, h_n, c_n, gates, h, c
//   RnnfastBackward  the same and gates, h, c, dy, dh_n, dc_n -> dx, dh_0, dc_0, dweights
//
// for one layer, as in flat_pass.hpp, with transposed weights. The last three results of the
// forward pass are empty unless it is to keep them.
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "flat_pass.hpp"
#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_tensor.h"

namespace rnnfast {
namespace {

RunFlatPass run = nullptr;

struct Deleter {
  void operator()(TF_Status* status) const { TF_DeleteStatus(status); }
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
};
using Status = std::unique_ptr<TF_Status, Deleter>;
using Tensor = std::unique_ptr<TF_Tensor, Deleter>;
using Dims = std::vector<int64_t>;

// An operator of a graph, with its attributes.
struct Operator {
  std::string cell;
  int64_t directions = 1, units = 0, slots = 0;  // D, H, and S of what is saved
  bool has_c = false, keep = false;
  std::vector<int64_t> places;
};

void* create(TF_OpKernelConstruction* construction) {
  auto made = std::make_unique<Operator>();
  const Status status(TF_NewStatus());
  int32_t size = 0, bytes = 0;
  TF_OpKernelConstruction_GetAttrSize(construction, "cell", &size, &bytes, status.get());
  made->cell.resize(size_t(bytes));
  TF_OpKernelConstruction_GetAttrString(construction, "cell", made->cell.data(), size_t(bytes),
                                        status.get());
  TF_OpKernelConstruction_GetAttrSize(construction, "places", &size, &bytes, status.get());
  made->places.resize(size_t(size));
  TF_OpKernelConstruction_GetAttrInt64List(construction, "places", made->places.data(), size,
                                           status.get());
  const auto number = [&](const char* name, int64_t* to) {
    TF_OpKernelConstruction_GetAttrInt64(construction, name, to, status.get());
  };
  const auto flag = [&](const char* name, bool* to) {
    unsigned char found = 0;
    TF_OpKernelConstruction_GetAttrBool(construction, name, &found, status.get());
    *to = found != 0;
  };
  number("directions", &made->directions);
  number("units", &made->units);
  number("slots", &made->slots);
  flag("has_c", &made->has_c);
  flag("keep", &made->keep);
  if (TF_GetCode(status.get()) == TF_OK &&
      (made->directions < 1 || made->directions > 2 || made->units < 1 || made->slots < 0))
    TF_SetStatus(status.get(), TF_INVALID_ARGUMENT, "rnnfast: unexpected attributes");
  if (TF_GetCode(status.get()) == TF_OK) return made.release();
  TF_OpKernelConstruction_Failure(construction, status.get());
  return nullptr;
}

NumberKind kind_of(TF_DataType type) {
  return type == TF_FLOAT    ? NumberKind::kF32
         : type == TF_DOUBLE ? NumberKind::kF64
         : type == TF_INT32  ? NumberKind::kS32
         : type == TF_INT64  ? NumberKind::kS64
                             : NumberKind::kOther;
}

// The tensors of a call.
class Call {
 public:
  explicit Call(TF_OpKernelContext* context) : context_(context), status_(TF_NewStatus()) {
    for (int k = 0; k < TF_NumInputs(context); k++) {
      TF_Tensor* tensor = nullptr;
      TF_GetInput(context, k, &tensor, status_.get());
      if (!tensor) return;
      tensors_.emplace_back(tensor);
      Dims dims;
      for (int d = 0; d < TF_NumDims(tensor); d++) dims.push_back(TF_Dim(tensor, d));
      inputs.push_back(describe(tensor, std::move(dims)));
    }
  }

  bool failed() const { return TF_GetCode(status_.get()) != TF_OK; }
  void fail(const char* message) {
    if (message) TF_SetStatus(status_.get(), TF_INVALID_ARGUMENT, message);
    TF_OpKernelContext_Failure(context_, status_.get());
  }

  // The next output, of x's dtype.
  void allocate(Dims dims) {
    if (failed()) return;  // the next one would clear the status
    const TF_DataType type = TF_TensorType(tensors_.front().get());
    size_t bytes = TF_DataTypeSize(type);
    for (const int64_t n : dims) bytes *= size_t(n);
    TF_Tensor* const tensor = TF_AllocateOutput(context_, made_++, type, dims.data(),
                                                int(dims.size()), bytes, status_.get());
    if (!tensor) return;
    tensors_.emplace_back(tensor);
    outputs.push_back(describe(tensor, std::move(dims)));
  }

  // What flat_pass.hpp has of stacks of layers, and one layer has not.
  void insert_nothing(std::vector<FlatBuffer>& buffers, size_t at) const {
    static constexpr int64_t kNone[] = {0};
    buffers.insert(buffers.begin() + ptrdiff_t(at), {nullptr, inputs[0].kind, kNone, 1});
  }

  std::vector<FlatBuffer> inputs, outputs;

 private:
  FlatBuffer describe(TF_Tensor* tensor, Dims dims) {
    dims_.push_back(std::make_unique<Dims>(std::move(dims)));
    return {TF_TensorData(tensor), kind_of(TF_TensorType(tensor)), dims_.back()->data(),
            dims_.back()->size()};
  }

  TF_OpKernelContext* context_;
  Status status_;
  std::vector<Tensor> tensors_;
  std::vector<std::unique_ptr<Dims>> dims_;
  int made_ = 0;
};

constexpr size_t kBeforeWeights = 4, kWeights = 4;  // x, h_0, c_0, lengths; of a direction

template <bool kBackward>
void compute(void* of, TF_OpKernelContext* context) {
  const Operator& op = *static_cast<Operator*>(of);
  Call call(context);
  if (call.failed()) return call.fail(nullptr);
  const size_t weights = kWeights * size_t(op.directions), saved = kBeforeWeights + weights;
  if (call.inputs.size() != saved + (kBackward ? 6 : 0) || call.inputs[0].rank != 3)
    return call.fail("rnnfast: unexpected inputs");
  const int64_t T = call.inputs[0].dims[0], B = call.inputs[0].dims[1];
  const int64_t D = op.directions, H = op.units;
  const Dims state{D, B, H}, state_c = op.has_c ? state : Dims{0};
  if (kBackward) {
    const auto like = [&](size_t k) {
      const FlatBuffer& input = call.inputs[k];
      return Dims(input.dims, input.dims + input.rank);
    };
    for (const Dims& dims : {like(0), like(1), state_c}) call.allocate(dims);
    for (size_t k = 0; k < weights; k++) call.allocate(like(kBeforeWeights + k));
    call.insert_nothing(call.inputs, saved);
  } else {
    const int64_t rows = op.keep ? D * T * B : 0;
    for (const Dims& dims : {Dims{T, B, D * H}, state, state_c, Dims{rows, op.slots, H},
                             Dims{rows, H}, Dims{op.has_c ? rows : 0, H}})
      call.allocate(dims);
    if (!call.failed()) call.insert_nothing(call.outputs, 3);
  }
  if (call.failed()) return call.fail(nullptr);
  const FlatPass pass{kBackward,
                      op.cell.c_str(),
                      1,
                      D,
                      true,
                      op.places.data(),
                      int64_t(op.places.size()),
                      kBackward || op.keep ? "all" : "",
                      call.inputs.data(),
                      call.inputs.size(),
                      call.outputs.data(),
                      call.outputs.size()};
  char message[256] = "rnnfast: rnnfast_connect has not been called";
  if (!run || !run(pass, message, sizeof message)) call.fail(message);
}

void destroy(void* of) { delete static_cast<Operator*>(of); }

void add(const char* name, bool backward) {
  TF_OpDefinitionBuilder* const op = TF_NewOpDefinitionBuilder(name);
  for (const char* attribute : {"T: {float, double}", "Lengths: {int32, int64}", "N: int >= 4",
                                "cell: string", "directions: int", "units: int", "slots: int",
                                "has_c: bool", "keep: bool", "places: list(int)"})
    TF_OpDefinitionBuilderAddAttr(op, attribute);
  for (const char* input : {"x: T", "h_0: T", "c_0: T", "lengths: Lengths", "weights: N * T"})
    TF_OpDefinitionBuilderAddInput(op, input);
  if (backward) {
    for (const char* input : {"gates: T", "h: T", "c: T", "dy: T", "dh_n: T", "dc_n: T"})
      TF_OpDefinitionBuilderAddInput(op, input);
    for (const char* output : {"dx: T", "dh_0: T", "dc_0: T", "dweights: N * T"})
      TF_OpDefinitionBuilderAddOutput(op, output);
  } else {
    for (const char* output : {"y: T", "h_n: T", "c_n: T", "gates: T", "h: T", "c: T"})
      TF_OpDefinitionBuilderAddOutput(op, output);
  }
  TF_OpDefinitionBuilderSetShapeInferenceFunction(
      op, [](TF_ShapeInferenceContext* context, TF_Status* status) {
        TF_ShapeInferenceContextSetUnknownShape(context, status);
      });
  const Status status(TF_NewStatus());
  TF_RegisterOpDefinition(op, status.get());
  TF_RegisterKernelBuilder(
      name,
      TF_NewKernelBuilder(name, "CPU", &create, backward ? &compute<true> : &compute<false>,
                          &destroy),
      status.get());
}

struct Registration {
  Registration() {
    add("RnnfastForward", false);
    add("RnnfastBackward", true);
  }
} const registration;

}  // namespace
}  // namespace rnnfast

extern "C" __attribute__((visibility("default"))) void rnnfast_connect(
    rnnfast::RunFlatPass kernels) {
  rnnfast::run = kernels;
}
