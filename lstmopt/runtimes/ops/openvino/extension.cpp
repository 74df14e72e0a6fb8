// What OpenVINO finds in the library: the ops for its own files, and how ONNX's nodes of the domain
// "lstmopt" become them.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>

#include "sparse_layer.hpp"
#include "sparse_matmul.hpp"

namespace {

using lstmopt_ov::SparseGRUSequence;
using lstmopt_ov::SparseLSTMSequence;
using lstmopt_ov::SparseMatMul;
using lstmopt_ov::SparseSequence;
using ov::frontend::NodeContext;

// Whether ONNX's node has an input there: an absent one is a node of a type of the frontend's own.
bool has_input(const NodeContext& node, size_t index) {
  return index < node.get_input_size() && node.get_input(int(index)).get_node() &&
         std::string(node.get_input(int(index)).get_node()->get_type_name()) != "NullNode";
}

// Lists of floats come as one or the other type, by the frontend's version.
std::vector<float> floats(const NodeContext& node, const std::string& name) {
  if (!node.has_attribute(name)) return {};
  const ov::Any value = node.get_attribute_as_any(name);
  if (value.is<std::vector<float>>()) return value.as<std::vector<float>>();
  const std::vector<double> wide = value.as<std::vector<double>>();
  return std::vector<float>(wide.begin(), wide.end());
}

template <class Op>
ov::OutputVector convert_layer(const NodeContext& node) {
  const char* const names[] = {"X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"};
  SparseSequence::Attributes attributes;
  ov::OutputVector inputs;
  for (size_t i = 0; i < 8; ++i) {
    if (!has_input(node, i)) {
      FRONT_END_OP_CONVERSION_CHECK(i > 2, node.get_op_type(), ": input ", names[i], " is missing");
      continue;
    }
    inputs.push_back(node.get_input(int(i)));
    if (i > 2) attributes.optional += (attributes.optional.empty() ? "" : " ") + std::string(names[i]);
  }
  attributes.direction = node.get_attribute<std::string>("direction", "forward");
  attributes.hidden_size = node.get_attribute<int64_t>("hidden_size", 0);
  attributes.activations = node.get_attribute<std::string>("activations", "");
  attributes.activation_alpha = floats(node, "activation_alpha");
  attributes.activation_beta = floats(node, "activation_beta");
  attributes.clip = node.get_attribute<float>("clip", 0.0f);
  attributes.input_forget = node.get_attribute<int64_t>("input_forget", 0) != 0;
  attributes.linear_before_reset = node.get_attribute<int64_t>("linear_before_reset", 0) != 0;
  attributes.threads = node.get_attribute<int64_t>("threads", 1);
  return std::make_shared<Op>(inputs, attributes)->outputs();
}

ov::OutputVector convert_matmul(const NodeContext& node) {
  ov::OutputVector inputs;
  for (size_t i = 0; i < 3; ++i) {
    if (has_input(node, i)) inputs.push_back(node.get_input(int(i)));
  }
  return std::make_shared<SparseMatMul>(inputs, node.get_attribute<int64_t>("threads", 1))->outputs();
}

}  // namespace

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<SparseLSTMSequence>>(),
    std::make_shared<ov::OpExtension<SparseGRUSequence>>(),
    std::make_shared<ov::OpExtension<SparseMatMul>>(),
    std::make_shared<ov::frontend::onnx::ConversionExtension>("SparseLSTMSequence", "lstmopt", convert_layer<SparseLSTMSequence>),
    std::make_shared<ov::frontend::onnx::ConversionExtension>("SparseGRUSequence", "lstmopt", convert_layer<SparseGRUSequence>),
    std::make_shared<ov::frontend::onnx::ConversionExtension>("SparseMatMul", "lstmopt", convert_matmul),
}));
