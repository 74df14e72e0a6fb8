// Weights are constants of the graph. What the kernels make of them is made once, and passed on to the
// copies of an op that OpenVINO makes, at every inference where shapes are dynamic.
#pragma once

#include <cstring>
#include <memory>
#include <openvino/op/constant.hpp>
#include <openvino/op/convert.hpp>
#include <vector>

namespace lstmopt_ov {

using Constants = std::vector<std::shared_ptr<ov::op::v0::Constant>>;

// Returns the constant at an input, or null; it may stand behind a conversion (of compressed weights).
inline std::shared_ptr<ov::op::v0::Constant> constant_at(const ov::Node& node, size_t index) {
  std::shared_ptr<ov::Node> source = node.get_input_node_shared_ptr(index);
  while (ov::is_type<ov::op::v0::Convert>(source)) source = source->get_input_node_shared_ptr(0);
  return ov::as_type_ptr<ov::op::v0::Constant>(source);
}

// What tells a constant from others: all of it, but of packed weights only the headers, which hold a digest.
// Plugins copy constants, so where they lie says nothing.
class Identity {
 public:
  explicit Identity(const ov::op::v0::Constant& constant) : type_(constant.get_element_type()), bytes_(constant.get_byte_size()) {
    const uint8_t* data = static_cast<const uint8_t*>(constant.get_data_ptr());
    if (type_ != ov::element::u8) {
      content_.assign(data, data + bytes_);
      return;
    }
    for (size_t at = 0; at + kHeader <= bytes_;) {
      content_.insert(content_.end(), data + at, data + at + kHeader);
      uint64_t size;
      std::memcpy(&size, data + at + kSizeAt, sizeof size);
      if (size < kHeader || size > bytes_ - at) break;
      at += size_t(size);
    }
  }

  // A plugin that runs in another precision converts the small constants: they are still the same.
  bool same(const Identity& other) const {
    return type_ != other.type_ || (bytes_ == other.bytes_ && content_ == other.content_);
  }

 private:
  static constexpr size_t kHeader = 64, kSizeAt = 32;

  ov::element::Type type_;
  size_t bytes_;
  std::vector<uint8_t> content_;
};

// An object of the kernels, and what it was made of.
template <class Object, void (*Destroy)(Object*)>
class Made {
 public:
  Made(Object* object, const Constants& constants) : object_(object) {
    for (const auto& constant : constants) identities_.emplace_back(*constant);
  }
  ~Made() { Destroy(object_); }
  Made(const Made&) = delete;
  Made& operator=(const Made&) = delete;

  const Object* get() const { return object_; }

  bool is_of(const Constants& constants) const {
    if (constants.size() != identities_.size()) return false;
    for (size_t i = 0; i < constants.size(); ++i) {
      if (!Identity(*constants[i]).same(identities_[i])) return false;
    }
    return true;
  }

 private:
  Object* object_;
  std::vector<Identity> identities_;
};

}  // namespace lstmopt_ov
