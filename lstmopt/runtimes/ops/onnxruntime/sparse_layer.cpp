// SparseLSTMSequence and SparseGRUSequence: inputs, attributes and outputs of ONNX's LSTM and GRU, W and R packed.
#include <memory>

#include "support.h"

namespace lstmopt_ort {
namespace {

// A GRU has the inputs up to kH0, and no last output.
enum Input { kX, kW, kR, kB, kLengths, kH0, kC0, kP, kInputs };

struct Lstm {
  static constexpr const char* kName = "SparseLSTMSequence";
  static constexpr int kCell = LSTMOPT_LSTM;
  static constexpr size_t kInputCount = kInputs, kOutputCount = 3;
};

struct Gru {
  static constexpr const char* kName = "SparseGRUSequence";
  static constexpr int kCell = LSTMOPT_GRU;
  static constexpr size_t kInputCount = kC0, kOutputCount = 2;
};

struct Kernel {
  const ort::Api* api;
  lstmopt_layer* layer = nullptr;
  bool has_b, has_p;
  size_t threads;

  ~Kernel() { lstmopt_layer_destroy(layer); }
};

template <class Cell>
std::unique_ptr<Kernel> make(const ort::Api* api, const ort::KernelInfo* info) {
  auto kernel = std::make_unique<Kernel>();
  const Tensor w = constant(api, info, kW, ort::kUint8, "W"), r = constant(api, info, kR, ort::kUint8, "R");
  const Tensor b = constant(api, info, kB, ort::kFloat, "B");
  const Tensor p = Cell::kInputCount > kP ? constant(api, info, kP, ort::kFloat, "P") : Tensor();
  if (!w || !r) throw Fault{"W and R have to be constants"};
  const std::string direction = attribute(api, info, "direction"), names = attribute(api, info, "activations");
  const std::vector<float> alpha = attributes(api, info, "activation_alpha"), beta = attributes(api, info, "activation_beta");
  lstmopt_layer_config config = {};
  config.cell = Cell::kCell;
  if (direction == "reverse") {
    config.direction = LSTMOPT_REVERSE;
  } else if (direction == "bidirectional") {
    config.direction = LSTMOPT_BIDIRECTIONAL;
  } else if (!direction.empty() && direction != "forward") {
    throw Fault{"unknown direction"};
  }
  config.hidden_size = attribute(api, info, "hidden_size", int64_t(0));
  config.w = w.data, config.w_bytes = w.count;
  config.r = r.data, config.r_bytes = r.count;
  config.b = b.floats(), config.b_count = b.count;
  config.p = p.floats(), config.p_count = p.count;
  config.activations = names.c_str();
  config.alpha = alpha.data(), config.alpha_count = alpha.size();
  config.beta = beta.data(), config.beta_count = beta.size();
  config.clip = attribute(api, info, "clip", 0.0f);
  config.input_forget = attribute(api, info, "input_forget", int64_t(0)) != 0;
  config.linear_before_reset = attribute(api, info, "linear_before_reset", int64_t(0)) != 0;
  char fault[300] = "";
  if (lstmopt_layer_create(&config, &kernel->layer, fault, sizeof fault)) throw Fault{fault};
  kernel->api = api;
  kernel->has_b = bool(b), kernel->has_p = bool(p);
  kernel->threads = size_t(attribute(api, info, "threads", int64_t(1)));
  return kernel;
}

void expect(const Kernel& kernel, const ort::Context* context, size_t index, const char* name, std::initializer_list<int64_t> want) {
  int64_t have[4];
  const size_t rank = sizes(kernel.api, context, index, have, 4);
  bool same = rank == want.size();
  for (size_t i = 0; same && i < rank; ++i) same = have[i] == want.begin()[i];
  if (!same) throw Fault{std::string(name) + " has a wrong shape"};
}

template <class Cell>
void compute(const Kernel& kernel, ort::Context* context) {
  const ort::Api* api = kernel.api;
  const int64_t D = int64_t(lstmopt_layer_directions(kernel.layer)), H = int64_t(lstmopt_layer_hidden(kernel.layer));
  size_t count = 0;
  must(api, ort::InputCount::call(api, context, &count));
  const void* given[kInputs] = {};
  for (size_t i = 0; i < count && i < kInputs; ++i) given[i] = i == kW || i == kR ? nullptr : input(api, context, i);
  int64_t x[4];
  if (sizes(api, context, kX, x, 4) != 3 || x[2] != int64_t(lstmopt_layer_input(kernel.layer))) {
    throw Fault{"X has a wrong shape, expected [steps, batch, " + std::to_string(lstmopt_layer_input(kernel.layer)) + "]"};
  }
  if ((given[kB] && !kernel.has_b) || (given[kP] && !kernel.has_p)) throw Fault{"B and P have to be constants"};
  if (given[kLengths]) expect(kernel, context, kLengths, "sequence_lens", {x[1]});
  if (given[kH0]) expect(kernel, context, kH0, "initial_h", {D, x[1], H});
  if (given[kC0]) expect(kernel, context, kC0, "initial_c", {D, x[1], H});
  const int64_t y[] = {x[0], D, x[1], H}, state[] = {D, x[1], H};
  const lstmopt_layer_call call = {
      size_t(x[0]), size_t(x[1]), static_cast<const float*>(given[kX]), static_cast<const int32_t*>(given[kLengths]),
      static_cast<const float*>(given[kH0]), static_cast<const float*>(given[kC0]), output(api, context, 0, y, 4),
      output(api, context, 1, state, 3), Cell::kOutputCount > 2 ? output(api, context, 2, state, 3) : nullptr};
  Pool pool{api, context};
  const lstmopt_parallel threads = parallel(pool, kernel.threads);
  if (lstmopt_layer_run(kernel.layer, &call, kernel.threads > 1 ? &threads : nullptr)) throw Fault{"out of memory"};
}

template <class Cell>
ort::CustomOp describe() {
  ort::CustomOp op = {};
  op.version = ort::kVersion;
  op.name = [](const ort::CustomOp*) { return Cell::kName; };
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.input_count = [](const ort::CustomOp*) { return Cell::kInputCount; };
  op.input_type = [](const ort::CustomOp*, size_t i) {
    return i == kW || i == kR ? ort::kUint8 : i == kLengths ? ort::kInt32 : ort::kFloat;
  };
  op.input_characteristic = [](const ort::CustomOp*, size_t i) { return i > kR ? ort::kOptional : ort::kRequired; };
  op.output_count = [](const ort::CustomOp*) { return Cell::kOutputCount; };
  op.output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.output_characteristic = [](const ort::CustomOp*, size_t) { return ort::kOptional; };
  op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
  op.create_kernel_v2 = [](const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, Cell::kName, [&] { *kernel = make<Cell>(api, info).release(); });
  };
  op.compute_v2 = [](void* kernel, ort::Context* context) {
    const Kernel& own = *static_cast<const Kernel*>(kernel);
    return guarded(own.api, Cell::kName, [&] { compute<Cell>(own, context); });
  };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.start_version = [](const ort::CustomOp*) { return 1; };
  op.end_version = [](const ort::CustomOp*) { return INT32_MAX; };
  return op;
}

}  // namespace

const ort::CustomOp kSparseLstm = describe<Lstm>();
const ort::CustomOp kSparseGru = describe<Gru>();

}  // namespace lstmopt_ort
