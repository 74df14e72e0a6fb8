// SparseMatMul: Y [..., units] = X [..., columns] . W' + b, W packed. See docs/ops.md.
#pragma once

#include <openvino/op/op.hpp>

#include "constants.h"
#include "lstmopt_kernels.h"

namespace lstmopt_ov {

class SparseMatMul : public ov::op::Op {
 public:
  OPENVINO_OP("SparseMatMul", "lstmopt");

  SparseMatMul() = default;
  SparseMatMul(const ov::OutputVector& inputs, int64_t threads);  // X, W, and B where there is one

  void validate_and_infer_types() override;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
  bool visit_attributes(ov::AttributeVisitor& visitor) override;
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;
  bool has_evaluate() const override { return true; }

 private:
  using Product = Made<lstmopt_matmul, lstmopt_matmul_destroy>;

  void make_product();
  bool run(ov::TensorVector& outputs, const ov::TensorVector& inputs) const;

  int64_t threads_ = 1;
  std::shared_ptr<const Product> product_;
  bool copy_ = false;  // made by clone_with_new_inputs
};

}  // namespace lstmopt_ov
