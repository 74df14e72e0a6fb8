// cuDNN's algorithms for LSTM inference on an NVIDIA GPU: latency of 35 steps, replayed as a CUDA graph.
//
//     C=$(python3 -c "import nvidia.cudnn; print(list(nvidia.cudnn.__path__)[0])")
//     nvcc -std=c++17 -O2 -x c++ benchmarks/gpu_algorithms.cpp -o algorithms -I$C/include -L$C/lib
//         -l:libcudnn.so.9 -Xlinker -rpath -Xlinker $C/lib && ./algorithms
//
// A minute. The last figure of a line is an output's: algorithms that compute the same print the same.
#include <cuda_runtime.h>
#include <cudnn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int kSteps = 35, kCalls = 120, kWarmUp = 20;

#define TRY(call)                                                                 \
  if (auto status = (call); status != CUDNN_STATUS_SUCCESS) {                     \
    std::printf("%s: %s in %s\n", name, cudnnGetErrorString(status), #call);      \
    return;                                                                       \
  }

void* zeros(size_t bytes) {
  void* made;
  cudaMalloc(&made, bytes + 256);
  cudaMemset(made, 0, bytes + 256);
  return made;
}

void* noise(size_t bytes, bool half, float scale) {
  std::vector<uint8_t> host(bytes + 256);
  for (size_t i = 0; i < bytes / (half ? 2 : 4); ++i) {
    const float value = scale * (2 * (std::rand() / static_cast<float>(RAND_MAX)) - 1);
    if (half)
      reinterpret_cast<_Float16*>(host.data())[i] = static_cast<_Float16>(value);
    else
      reinterpret_cast<float*>(host.data())[i] = value;
  }
  void* made = zeros(bytes);
  cudaMemcpy(made, host.data(), bytes, cudaMemcpyHostToDevice);
  return made;
}

void measure(cudnnRNNAlgo_t algorithm, int layers, int batch, int hidden, bool half, const char* title) {
  char name[128];
  std::snprintf(name, sizeof name, "%-10s layers %d batch %d hidden %4d %s", title, layers, batch, hidden,
                half ? "f16" : "f32");
  std::srand(1);
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  cudnnHandle_t handle;
  TRY(cudnnCreate(&handle));
  TRY(cudnnSetStream(handle, stream));
  const auto type = half ? CUDNN_DATA_HALF : CUDNN_DATA_FLOAT;
  cudnnDropoutDescriptor_t dropout;
  TRY(cudnnCreateDropoutDescriptor(&dropout));
  TRY(cudnnSetDropoutDescriptor(dropout, handle, 0, nullptr, 0, 0));
  cudnnRNNDescriptor_t rnn;
  TRY(cudnnCreateRNNDescriptor(&rnn));
  TRY(cudnnSetRNNDescriptor_v8(rnn, algorithm, CUDNN_LSTM, CUDNN_RNN_DOUBLE_BIAS, CUDNN_UNIDIRECTIONAL,
                               CUDNN_LINEAR_INPUT, type, CUDNN_DATA_FLOAT,
                               half ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH, hidden, hidden, hidden, layers,
                               dropout, 0));
  cudnnRNNDataDescriptor_t data;
  std::vector<int> lengths(batch, kSteps);
  TRY(cudnnCreateRNNDataDescriptor(&data));
  TRY(cudnnSetRNNDataDescriptor(data, type, CUDNN_RNN_DATA_LAYOUT_SEQ_MAJOR_PACKED, kSteps, batch, hidden,
                                lengths.data(), nullptr));
  cudnnTensorDescriptor_t state;
  const int sizes[] = {layers, batch, hidden}, strides[] = {batch * hidden, hidden, 1};
  TRY(cudnnCreateTensorDescriptor(&state));
  TRY(cudnnSetTensorNdDescriptor(state, type, 3, sizes, strides));
  if (algorithm == CUDNN_RNN_ALGO_PERSIST_DYNAMIC) TRY(cudnnBuildRNNDynamic(handle, rnn, batch));
  size_t work = 0, reserve = 0, weights = 0;
  TRY(cudnnGetRNNTempSpaceSizes(handle, rnn, CUDNN_FWD_MODE_INFERENCE, data, &work, &reserve));
  TRY(cudnnGetRNNWeightSpaceSize(handle, rnn, &weights));
  const size_t each = half ? 2 : 4, of_state = each * layers * batch * hidden;
  const size_t of_data = each * kSteps * batch * hidden;
  void *x = noise(of_data, half, 1), *y = zeros(of_data), *space = zeros(work);
  void *h = zeros(of_state), *last_h = zeros(of_state), *c = zeros(of_state), *last_c = zeros(of_state);
  void* packed = noise(weights, half, 0.05f);
  const auto run = [&] {
    return cudnnRNNForward(handle, rnn, CUDNN_FWD_MODE_INFERENCE, nullptr, data, x, data, y, state, h, last_h,
                           state, c, last_c, weights, packed, work, space, 0, nullptr);
  };
  for (int i = 0; i < 3; ++i) TRY(run());
  cudaStreamSynchronize(stream);
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  bool captured = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
  const auto status = run();
  captured = cudaStreamEndCapture(stream, &graph) == cudaSuccess && captured &&
             status == CUDNN_STATUS_SUCCESS && cudaGraphInstantiate(&replay, graph, 0) == cudaSuccess;
  cudaGetLastError();
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < kCalls; ++i) {
    cudaEventRecord(begin, stream);
    if (captured)
      cudaGraphLaunch(replay, stream);
    else
      run();
    cudaEventRecord(end, stream);
    cudaStreamSynchronize(stream);
    float milliseconds;
    cudaEventElapsedTime(&milliseconds, begin, end);
    if (i >= kWarmUp) times.push_back(1e3f * milliseconds);
  }
  std::sort(times.begin(), times.end());
  uint8_t bytes[4];
  cudaMemcpy(bytes, static_cast<char*>(y) + each * (kSteps - 1) * batch * hidden, each, cudaMemcpyDeviceToHost);
  const float first = half ? static_cast<float>(*reinterpret_cast<_Float16*>(bytes))
                           : *reinterpret_cast<float*>(bytes);
  std::printf("%s: %.1f us%s, %.5f\n", name, times[times.size() / 2], captured ? "" : " without a graph", first);
}

}  // namespace

int main() {
  const struct {
    cudnnRNNAlgo_t algorithm;
    const char* title;
  } all[] = {{CUDNN_RNN_ALGO_STANDARD, "standard"},
             {CUDNN_RNN_ALGO_PERSIST_STATIC, "static"},
             {CUDNN_RNN_ALGO_PERSIST_STATIC_SMALL_H, "small-h"},
             {CUDNN_RNN_ALGO_PERSIST_DYNAMIC, "dynamic"}};
  for (const bool half : {true, false})
    for (const int hidden : {128, 256, 384, 392, 512})
      for (const int batch : {1, 8})
        for (const int layers : {1, 2})
          for (const auto& each : all) measure(each.algorithm, layers, batch, hidden, half, each.title);
}
