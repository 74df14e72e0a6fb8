// What both ops need of ONNX Runtime: faults as exceptions inside, as a status outside.
#pragma once

#include <string>
#include <vector>

#include "lstmopt_kernels.h"
#include "ort_abi.h"

namespace lstmopt_ort {

struct Fault {
  std::string text;
};

// Throws where a function of the table fails.
void must(const ort::Api* api, ort::Status* status);

// Runs `body`; returns null, or a status of the fault.
template <class Body>
ort::Status* guarded(const ort::Api* api, const char* op, Body body) {
  std::string text = std::string("lstmopt.") + op + ": ";
  try {
    body();
    return nullptr;
  } catch (const Fault& fault) {
    text += fault.text;
  } catch (...) {
    text += "out of memory";
  }
  return ort::CreateStatus::call(api, ort::kInvalidArgument, text.c_str());
}

int64_t attribute(const ort::Api* api, const ort::KernelInfo* info, const char* name, int64_t otherwise);
float attribute(const ort::Api* api, const ort::KernelInfo* info, const char* name, float otherwise);
std::string attribute(const ort::Api* api, const ort::KernelInfo* info, const char* name);
std::vector<float> attributes(const ort::Api* api, const ort::KernelInfo* info, const char* name);

// A tensor of a runtime's, or nothing.
struct Tensor {
  const void* data = nullptr;
  size_t count = 0;
  std::vector<int64_t> shape;

  explicit operator bool() const { return data != nullptr; }
  const float* floats() const { return static_cast<const float*>(data); }
};

Tensor constant(const ort::Api* api, const ort::KernelInfo* info, size_t index, ort::Type type, const char* name);

// An input of one call: its pointer, and its sizes where `sizes` has room for so many.
const void* input(const ort::Api* api, const ort::Context* context, size_t index);
size_t sizes(const ort::Api* api, const ort::Context* context, size_t index, int64_t* shape, size_t most);
float* output(const ort::Api* api, ort::Context* context, size_t index, const int64_t* shape, size_t rank);

// The session's thread pool, for one call.
struct Pool {
  const ort::Api* api;
  const ort::Context* context;
};
lstmopt_parallel parallel(Pool& pool, size_t threads);

extern const ort::CustomOp kSparseLstm, kSparseGru, kSparseMatMul;

}  // namespace lstmopt_ort
