#include "support.h"

#include <algorithm>

namespace lstmopt_ort {
namespace {

// Returns whether a function succeeded; what failed is forgotten.
bool worked(const ort::Api* api, ort::Status* status) {
  if (status) ort::ReleaseStatus::call(api, status);
  return !status;
}

Tensor describe(const ort::Api* api, const ort::Value* value, ort::Type type, const char* name) {
  ort::Shape* shape = nullptr;
  must(api, ort::GetShape::call(api, value, &shape));
  ort::Type have = ort::kUndefined;
  size_t rank = 0;
  Tensor tensor;
  bool fine = worked(api, ort::GetElementType::call(api, shape, &have)) && worked(api, ort::GetDimensionsCount::call(api, shape, &rank));
  tensor.shape.resize(rank);
  fine = fine && worked(api, ort::GetDimensions::call(api, shape, tensor.shape.data(), rank));
  ort::ReleaseShape::call(api, shape);
  if (!fine || have != type) throw Fault{std::string(name) + " has a wrong type"};
  tensor.count = 1;
  for (const int64_t size : tensor.shape) tensor.count *= size_t(size);
  void* data = nullptr;
  must(api, ort::GetTensorData::call(api, value, &data));
  tensor.data = data;
  return tensor;
}

}  // namespace

void must(const ort::Api* api, ort::Status* status) {
  if (!worked(api, status)) throw Fault{"ONNX Runtime refused a call"};
}

int64_t attribute(const ort::Api* api, const ort::KernelInfo* info, const char* name, int64_t otherwise) {
  int64_t value = 0;
  return worked(api, ort::AttributeInt::call(api, info, name, &value)) ? value : otherwise;
}

float attribute(const ort::Api* api, const ort::KernelInfo* info, const char* name, float otherwise) {
  float value = 0;
  return worked(api, ort::AttributeFloat::call(api, info, name, &value)) ? value : otherwise;
}

std::string attribute(const ort::Api* api, const ort::KernelInfo* info, const char* name) {
  size_t bytes = 0;
  if (!worked(api, ort::AttributeString::call(api, info, name, nullptr, &bytes)) || !bytes) return "";
  std::string text(bytes, '\0');
  must(api, ort::AttributeString::call(api, info, name, &text[0], &bytes));
  return text.c_str();
}

std::vector<float> attributes(const ort::Api* api, const ort::KernelInfo* info, const char* name) {
  size_t count = 0;
  if (!worked(api, ort::AttributeFloats::call(api, info, name, nullptr, &count)) || !count) return {};
  std::vector<float> values(count);
  must(api, ort::AttributeFloats::call(api, info, name, values.data(), &count));
  return values;
}

Tensor constant(const ort::Api* api, const ort::KernelInfo* info, size_t index, ort::Type type, const char* name) {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  const bool fine = worked(api, ort::ConstantInput::call(api, info, index, &is_constant, &value));
  return fine && is_constant && value ? describe(api, value, type, name) : Tensor();
}

const void* input(const ort::Api* api, const ort::Context* context, size_t index) {
  const ort::Value* value = nullptr;
  void* data = nullptr;
  must(api, ort::GetInput::call(api, context, index, &value));
  if (value) must(api, ort::GetTensorData::call(api, value, &data));
  return data;
}

size_t sizes(const ort::Api* api, const ort::Context* context, size_t index, int64_t* shape, size_t most) {
  const ort::Value* value = nullptr;
  must(api, ort::GetInput::call(api, context, index, &value));
  ort::Shape* described = nullptr;
  size_t rank = 0;
  must(api, ort::GetShape::call(api, value, &described));
  const bool fine = worked(api, ort::GetDimensionsCount::call(api, described, &rank)) &&
                    (rank > most || worked(api, ort::GetDimensions::call(api, described, shape, rank)));
  ort::ReleaseShape::call(api, described);
  if (!fine || rank > most) throw Fault{"an input has too many dimensions"};
  return rank;
}

float* output(const ort::Api* api, ort::Context* context, size_t index, const int64_t* shape, size_t rank) {
  ort::Value* value = nullptr;
  void* data = nullptr;
  must(api, ort::GetOutput::call(api, context, index, shape, rank, &value));
  if (value) must(api, ort::GetTensorData::call(api, value, &data));
  return static_cast<float*>(data);
}

lstmopt_parallel parallel(Pool& pool, size_t threads) {
  const auto run = [](void* pool, size_t count, void (*task)(void*, size_t), void* argument) {
    const Pool& own = *static_cast<const Pool*>(pool);
    // A pool that cannot be used leaves the work to this thread.
    if (worked(own.api, ort::ParallelFor::call(own.api, own.context, task, count, count, argument))) return;
    for (size_t i = 0; i < count; ++i) task(argument, i);
  };
  return {run, &pool, threads};
}

}  // namespace lstmopt_ort
