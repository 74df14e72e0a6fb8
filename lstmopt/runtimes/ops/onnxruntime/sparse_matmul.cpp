// SparseMatMul: Y [..., units] = X [..., columns] . W' + b, W packed.
#include <memory>

#include "support.h"

namespace lstmopt_ort {
namespace {

constexpr const char* kName = "SparseMatMul";
enum Input { kX, kW, kB, kInputs };
constexpr size_t kMostDimensions = 8;

struct Kernel {
  const ort::Api* api;
  lstmopt_matmul* product = nullptr;
  bool has_b;
  size_t threads;

  ~Kernel() { lstmopt_matmul_destroy(product); }
};

std::unique_ptr<Kernel> make(const ort::Api* api, const ort::KernelInfo* info) {
  auto kernel = std::make_unique<Kernel>();
  const Tensor w = constant(api, info, kW, ort::kUint8, "W"), b = constant(api, info, kB, ort::kFloat, "B");
  if (!w) throw Fault{"W has to be a constant"};
  char fault[300] = "";
  if (lstmopt_matmul_create(w.data, w.count, b.floats(), b.count, &kernel->product, fault, sizeof fault)) throw Fault{fault};
  kernel->api = api;
  kernel->has_b = bool(b);
  kernel->threads = size_t(attribute(api, info, "threads", int64_t(1)));
  return kernel;
}

void compute(const Kernel& kernel, ort::Context* context) {
  const ort::Api* api = kernel.api;
  size_t count = 0;
  must(api, ort::InputCount::call(api, context, &count));
  if (count > kB && !kernel.has_b && input(api, context, kB)) throw Fault{"B has to be a constant"};
  int64_t shape[kMostDimensions];
  const size_t rank = sizes(api, context, kX, shape, kMostDimensions);
  const size_t columns = lstmopt_matmul_columns(kernel.product);
  if (!rank || shape[rank - 1] != int64_t(columns)) throw Fault{"X has a wrong shape, expected [..., " + std::to_string(columns) + "]"};
  size_t rows = 1;
  for (size_t i = 0; i + 1 < rank; ++i) rows *= size_t(shape[i]);
  shape[rank - 1] = int64_t(lstmopt_matmul_units(kernel.product));
  float* y = output(api, context, 0, shape, rank);
  Pool pool{api, context};
  const lstmopt_parallel threads = parallel(pool, kernel.threads);
  if (lstmopt_matmul_run(kernel.product, rows, static_cast<const float*>(input(api, context, kX)), y,
                         kernel.threads > 1 ? &threads : nullptr)) {
    throw Fault{"out of memory"};
  }
}

ort::CustomOp describe() {
  ort::CustomOp op = {};
  op.version = ort::kVersion;
  op.name = [](const ort::CustomOp*) { return kName; };
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.input_count = [](const ort::CustomOp*) { return size_t(kInputs); };
  op.input_type = [](const ort::CustomOp*, size_t i) { return i == kW ? ort::kUint8 : ort::kFloat; };
  op.input_characteristic = [](const ort::CustomOp*, size_t i) { return i == kB ? ort::kOptional : ort::kRequired; };
  op.output_count = [](const ort::CustomOp*) { return size_t(1); };
  op.output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.output_characteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
  op.create_kernel_v2 = [](const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, kName, [&] { *kernel = make(api, info).release(); });
  };
  op.compute_v2 = [](void* kernel, ort::Context* context) {
    const Kernel& own = *static_cast<const Kernel*>(kernel);
    return guarded(own.api, kName, [&] { compute(own, context); });
  };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.start_version = [](const ort::CustomOp*) { return 1; };
  op.end_version = [](const ort::CustomOp*) { return INT32_MAX; };
  return op;
}

}  // namespace

const ort::CustomOp kSparseMatMul = describe();

}  // namespace lstmopt_ort
