// SparseLSTMSequence: ONNX's LSTM with packed weights. See docs/ops.md.
#pragma once

#include <openvino/op/op.hpp>
#include <string>
#include <vector>

#include "constants.h"
#include "lstmopt_kernels.h"

namespace lstmopt_ov {

class SparseLSTMSequence : public ov::op::Op {
 public:
  OPENVINO_OP("SparseLSTMSequence", "lstmopt");

  // Inputs of ONNX's LSTM, by its positions; OpenVINO has no absent inputs, so `optional` names those
  // that are there, in order.
  struct Attributes {
    std::string optional;  // some of "B sequence_lens initial_h initial_c P"
    std::string direction = "forward";
    int64_t hidden_size = 0;
    std::string activations;
    std::vector<float> activation_alpha, activation_beta;
    float clip = 0;
    bool input_forget = false;
  };

  SparseLSTMSequence() = default;
  SparseLSTMSequence(const ov::OutputVector& inputs, const Attributes& attributes);

  void validate_and_infer_types() override;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
  bool visit_attributes(ov::AttributeVisitor& visitor) override;
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;
  bool has_evaluate() const override { return true; }

 private:
  using Layer = Made<lstmopt_lstm, lstmopt_lstm_destroy>;

  size_t position(const char* name) const;  // of an optional input, or kAbsent
  void make_layer();
  void check_shapes(const ov::PartialShape& x, ov::PartialShape& state) const;
  bool run(ov::TensorVector& outputs, const ov::TensorVector& inputs) const;

  Attributes attributes_;
  std::shared_ptr<const Layer> layer_;
  bool copy_ = false;  // made by clone_with_new_inputs
};

}  // namespace lstmopt_ov
