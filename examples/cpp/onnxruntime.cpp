// Runs a model with lstmopt's sparse ops in ONNX Runtime: no Python, and of lstmopt only the library of its ops.
//   onnxruntime MODEL LIBRARY SHAPE...     one shape an input, as 35,1,512
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <sstream>
#define ORT_API_MANUAL_INIT  // these headers may be newer than the runtime: ask it for a version that both know
#include <onnxruntime_cxx_api.h>

static std::vector<int64_t> shape_of(const char* text) {
  std::vector<int64_t> shape;
  std::istringstream stream(text);
  for (std::string size; std::getline(stream, size, ',');) shape.push_back(std::stol(size));
  return shape;
}

int main(int count, char** arguments) try {
  if (count < 4) throw std::invalid_argument("usage: onnxruntime MODEL LIBRARY SHAPE...");
  const OrtApi* api = OrtGetApiBase()->GetApi(20);
  if (!api) throw std::runtime_error("ONNX Runtime has to be 1.20 or newer");
  Ort::InitApi(api);
  Ort::Env environment;
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  options.RegisterCustomOpsLibrary(arguments[2]);  // this is all that the ops ask for
  Ort::Session session(environment, arguments[1], options);
  if (size_t(count) != 3 + session.GetInputCount()) throw std::invalid_argument("give one shape an input");
  Ort::IoBinding binding(session);
  Ort::AllocatorWithDefaultOptions allocator;
  for (size_t input = 0; input < session.GetInputCount(); ++input) {
    const std::vector<int64_t> shape = shape_of(arguments[3 + input]);
    const ONNXTensorElementDataType type =
        session.GetInputTypeInfo(input).GetTensorTypeAndShapeInfo().GetElementType();
    Ort::Value value = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), type);
    const size_t size = value.GetTensorTypeAndShapeInfo().GetElementCount();
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
      for (size_t i = 0; i < size; ++i) value.GetTensorMutableData<float>()[i] = (float(i % 7) - 3) / 4;
    } else if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {  // tokens
      std::fill_n(value.GetTensorMutableData<int64_t>(), size, 0);
    } else {
      throw std::invalid_argument("this example feeds float32 and int64");
    }
    binding.BindInput(session.GetInputNameAllocated(input, allocator).get(), value);
  }
  for (size_t output = 0; output < session.GetOutputCount(); ++output)
    binding.BindOutput(session.GetOutputNameAllocated(output, allocator).get(), allocator.GetInfo());
  session.Run(Ort::RunOptions(), binding);
  double sum = 0;
  for (const Ort::Value& value : binding.GetOutputValues())
    for (size_t i = 0; i < value.GetTensorTypeAndShapeInfo().GetElementCount(); ++i) sum += value.GetTensorData<float>()[i];
  const auto start = std::chrono::steady_clock::now();
  for (int call = 0; call < 100; ++call) session.Run(Ort::RunOptions(), binding);
  const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
  std::printf("sum %.9g, %.1f us a call\n", sum, time.count() / 100);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
