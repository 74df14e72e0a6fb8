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
  explicit Identity(const ov::op::v0::Constant& constant) : type_(constant.get_element_type()) {
    visit(constant, [this](const uint8_t* at, size_t bytes) {
      content_.insert(content_.end(), at, at + bytes);
      return true;
    });
  }

  // A plugin that runs in another precision converts the small constants: they are still the same.
  bool is_of(const ov::op::v0::Constant& constant) const {
    if (constant.get_element_type() != type_) return true;
    size_t done = 0;
    visit(constant, [&](const uint8_t* at, size_t bytes) {
      if (bytes > content_.size() - done || std::memcmp(&content_[done], at, bytes)) return false;
      done += bytes;
      return true;
    });
    return done == content_.size();
  }

 private:
  static constexpr size_t kHeader = 64, kSizeAt = 32;

  // Calls visit(pointer, bytes) for the parts that count, until it returns false.
  template <class Visit>
  static void visit(const ov::op::v0::Constant& constant, Visit visit) {
    const uint8_t* data = static_cast<const uint8_t*>(constant.get_data_ptr());
    const size_t bytes = constant.get_byte_size();
    if (constant.get_element_type() != ov::element::u8) {
      if (bytes) visit(data, bytes);
      return;
    }
    for (size_t at = 0; at + kHeader <= bytes && visit(data + at, kHeader);) {
      uint64_t size;
      std::memcpy(&size, data + at + kSizeAt, sizeof size);
      if (size < kHeader || size > bytes - at) return;
      at += size_t(size);
    }
  }

  ov::element::Type type_;
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
      if (!identities_[i].is_of(*constants[i])) return false;
    }
    return true;
  }

 private:
  Object* object_;
  std::vector<Identity> identities_;
};

}  // namespace lstmopt_ov
