// Tensors of the types that OpenVINO's plugin may pass, as f32.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <openvino/core/type/element_type.hpp>
#include <openvino/core/type/bfloat16.hpp>
#include <openvino/core/type/float16.hpp>
#include <openvino/runtime/tensor.hpp>
#include <vector>

namespace lstmopt_ov {

inline bool is_float(const ov::element::Type& type) {
  return type == ov::element::f32 || type == ov::element::f16 || type == ov::element::bf16;
}

// Memory that a thread keeps for its next call; `place` tells the uses of one call apart.
template <class T>
T* kept(size_t place, size_t count) {
  thread_local std::vector<T> memory[8];
  if (memory[place].size() < count) memory[place].resize(count);
  return memory[place].data();
}

// Gives a tensor its shape. Making an ov::Shape allocates, so that only a tensor of another shape gets one.
inline void shape_to(ov::Tensor& tensor, std::initializer_list<size_t> sizes) {
  const ov::Shape& now = tensor.get_shape();
  if (!std::equal(now.begin(), now.end(), sizes.begin(), sizes.end())) tensor.set_shape(ov::Shape(sizes));
}

// Returns the tensor's numbers: its own memory where they are f32 already.
inline const float* to_f32(const ov::Tensor& tensor, size_t place) {
  const size_t count = tensor.get_size();
  if (tensor.get_element_type() == ov::element::f32) return tensor.data<const float>();
  float* values = kept<float>(place, count);
  if (tensor.get_element_type() == ov::element::f16) {
    std::copy_n(tensor.data<const ov::float16>(), count, values);
  } else {
    std::copy_n(tensor.data<const ov::bfloat16>(), count, values);
  }
  return values;
}

// Returns where f32 results are to be written, for `from_f32` to bring them to the tensor.
inline float* for_f32(ov::Tensor& tensor, size_t place) {
  return tensor.get_element_type() == ov::element::f32 ? tensor.data<float>() : kept<float>(place, tensor.get_size());
}

inline void from_f32(const float* values, ov::Tensor& tensor) {
  if (tensor.get_element_type() == ov::element::f16) {
    std::transform(values, values + tensor.get_size(), tensor.data<ov::float16>(), [](float value) { return ov::float16(value); });
  } else if (tensor.get_element_type() == ov::element::bf16) {
    std::transform(values, values + tensor.get_size(), tensor.data<ov::bfloat16>(), [](float value) { return ov::bfloat16(value); });
  }
}

// What a caller gets in place of an error: OpenVINO goes on with memory of its own after one.
inline void fill_nan(ov::TensorVector& tensors) {
  for (ov::Tensor& tensor : tensors) {
    if (!is_float(tensor.get_element_type())) continue;
    float* values = for_f32(tensor, 7);
    std::fill_n(values, tensor.get_size(), std::numeric_limits<float>::quiet_NaN());
    from_f32(values, tensor);
  }
}

}  // namespace lstmopt_ov
