// SparseLSTMSequence and SparseGRUSequence: ONNX's LSTM and GRU with packed weights. See docs/ops.md.
#pragma once

#include <array>
#include <openvino/op/op.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "constants.h"
#include "lstmopt_kernels.h"

namespace lstmopt_ov {

class SparseSequence : public ov::op::Op {
 public:
  OPENVINO_OP("SparseSequence", "lstmopt");

  // Inputs of ONNX's operator, by its positions; OpenVINO has no absent inputs, so `optional` names those
  // that are there, in order.
  struct Attributes {
    std::string optional;  // some of "B sequence_lens initial_h initial_c P", of a GRU not the last two
    std::string direction = "forward";
    int64_t hidden_size = 0;
    std::string activations;
    std::vector<float> activation_alpha, activation_beta;
    float clip = 0;
    bool input_forget = false;
    bool linear_before_reset = false;
    int64_t threads = 1;
  };

  SparseSequence() = default;
  SparseSequence(const ov::OutputVector& inputs, const Attributes& attributes) : Op(inputs), attributes_(attributes) {}

  void validate_and_infer_types() override;
  bool visit_attributes(ov::AttributeVisitor& visitor) override;
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;
  bool has_evaluate() const override { return true; }

 protected:
  virtual int cell() const = 0;  // LSTMOPT_LSTM or LSTMOPT_GRU
  // Makes `copy` one of this op with other inputs.
  std::shared_ptr<ov::Node> as_copy(std::shared_ptr<SparseSequence> copy, const ov::OutputVector& inputs) const;

 private:
  using Layer = Made<lstmopt_layer, lstmopt_layer_destroy>;

  size_t output_count() const { return cell() == LSTMOPT_GRU ? 2 : 3; }
  enum Optional { kB, kLengths, kInitialH, kInitialC, kP, kOptionals };
  size_t position(Optional input) const { return positions_[input]; }  // or kAbsent
  void read_positions();
  void make_layer();
  void check_shapes(const ov::PartialShape& x, ov::PartialShape& state) const;
  bool run(ov::TensorVector& outputs, const ov::TensorVector& inputs) const;

  static constexpr size_t kAbsent = SIZE_MAX;

  Attributes attributes_;
  std::array<size_t, kOptionals> positions_{};  // read once: an inference parses nothing
  std::shared_ptr<const Layer> layer_;
  bool copy_ = false;  // made by clone_with_new_inputs
};

class SparseLSTMSequence : public SparseSequence {
 public:
  OPENVINO_OP("SparseLSTMSequence", "lstmopt", SparseSequence);

  SparseLSTMSequence() = default;
  SparseLSTMSequence(const ov::OutputVector& inputs, const Attributes& attributes) : SparseSequence(inputs, attributes) {
    constructor_validate_and_infer_types();
  }
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return as_copy(std::make_shared<SparseLSTMSequence>(), inputs);
  }

 private:
  int cell() const override { return LSTMOPT_LSTM; }
};

class SparseGRUSequence : public SparseSequence {
 public:
  OPENVINO_OP("SparseGRUSequence", "lstmopt", SparseSequence);

  SparseGRUSequence() = default;
  SparseGRUSequence(const ov::OutputVector& inputs, const Attributes& attributes) : SparseSequence(inputs, attributes) {
    constructor_validate_and_infer_types();
  }
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return as_copy(std::make_shared<SparseGRUSequence>(), inputs);
  }

 private:
  int cell() const override { return LSTMOPT_GRU; }
};

}  // namespace lstmopt_ov
