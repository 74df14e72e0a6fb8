// Runs a model with lstmopt's sparse ops in OpenVINO: no Python, and of lstmopt only the library of its ops.
//   openvino MODEL LIBRARY SHAPE...     MODEL is .onnx or .xml; one shape an input, as 35,1,512
#include <chrono>
#include <cstdio>
#include <cstring>
#include <openvino/openvino.hpp>
#include <sstream>

static ov::Shape shape_of(const char* text) {
  ov::Shape shape;
  std::istringstream stream(text);
  for (std::string size; std::getline(stream, size, ',');) shape.push_back(std::stoul(size));
  return shape;
}

int main(int count, char** arguments) try {
  if (count < 4) throw std::invalid_argument("usage: openvino MODEL LIBRARY SHAPE...");
  ov::Core core;
  core.add_extension(std::string(arguments[2]));  // this is all that the ops ask for
  ov::CompiledModel model = core.compile_model(arguments[1], "CPU", ov::inference_num_threads(1),
                                               ov::hint::inference_precision(ov::element::f32));
  if (size_t(count) != 3 + model.inputs().size()) throw std::invalid_argument("give one shape an input");
  ov::InferRequest request = model.create_infer_request();
  for (size_t input = 0; input < model.inputs().size(); ++input) {
    ov::Tensor tensor(model.input(input).get_element_type(), shape_of(arguments[3 + input]));
    std::memset(tensor.data(), 0, tensor.get_byte_size());  // numbers of other types stay 0
    for (size_t i = 0; tensor.get_element_type() == ov::element::f32 && i < tensor.get_size(); ++i)
      tensor.data<float>()[i] = (float(i % 7) - 3) / 4;
    request.set_input_tensor(input, tensor);
  }
  request.infer();
  double sum = 0;
  for (size_t output = 0; output < model.outputs().size(); ++output) {
    const ov::Tensor tensor = request.get_output_tensor(output);
    for (size_t i = 0; i < tensor.get_size(); ++i) sum += tensor.data<const float>()[i];
  }
  const auto start = std::chrono::steady_clock::now();
  for (int call = 0; call < 100; ++call) request.infer();
  const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
  std::printf("sum %.9g, %.1f us a call\n", sum, time.count() / 100);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
