// Weights are constants of the graph. What the kernels make of them is made once, and passed on to the
// copies of an op that OpenVINO makes, at every inference where shapes are dynamic.
#pragma once

#include <memory>
#include <openvino/op/constant.hpp>
#include <openvino/op/convert.hpp>
#include <vector>

namespace lstmopt_ov {

// Returns the constant at an input, or null; it may stand behind a conversion (of compressed weights).
inline std::shared_ptr<ov::op::v0::Constant> constant_at(const ov::Node& node, size_t index) {
  std::shared_ptr<ov::Node> source = node.get_input_node_shared_ptr(index);
  while (ov::is_type<ov::op::v0::Convert>(source)) source = source->get_input_node_shared_ptr(0);
  return ov::as_type_ptr<ov::op::v0::Constant>(source);
}

// An object of the kernels and the constants that it was made of: these stay alive, so that another
// constant can never be mistaken for one of them.
template <class Object, void (*Destroy)(Object*)>
class Made {
 public:
  using Constants = std::vector<std::shared_ptr<ov::op::v0::Constant>>;

  Made(Object* object, Constants constants) : object_(object), constants_(std::move(constants)) {}
  ~Made() { Destroy(object_); }
  Made(const Made&) = delete;
  Made& operator=(const Made&) = delete;

  const Object* get() const { return object_; }

  bool is_of(const Constants& constants) const {
    if (constants.size() != constants_.size()) return false;
    for (size_t i = 0; i < constants.size(); ++i) {
      // Copies of a constant share its memory.
      if (constants[i]->get_data_ptr() != constants_[i]->get_data_ptr() ||
          constants[i]->get_byte_size() != constants_[i]->get_byte_size()) {
        return false;
      }
    }
    return true;
  }

 private:
  Object* object_;
  Constants constants_;
};

}  // namespace lstmopt_ov
