#include "sparse_matmul.hpp"

#include <algorithm>

#include "pool.h"
#include "tensors.h"

namespace lstmopt_ov {
namespace {

enum Input { kX, kW, kB };

}  // namespace

SparseMatMul::SparseMatMul(const ov::OutputVector& inputs, int64_t threads) : Op(inputs), threads_(threads) {
  constructor_validate_and_infer_types();
}

void SparseMatMul::make_product() {
  Constants constants;
  for (size_t at = kW; at < get_input_size(); ++at) {
    constants.push_back(constant_at(*this, at));
    if (!constants.back()) {
      // A copy whose constants became inputs of its own keeps what was made before.
      NODE_VALIDATION_CHECK(this, product_, "W and B have to be constants");
      return;
    }
  }
  if (product_ && product_->is_of(constants)) return;
  const auto& w = constants[0];
  NODE_VALIDATION_CHECK(this, w->get_element_type() == ov::element::u8, "W has to be packed weights of type u8");
  std::vector<float> b;
  if (constants.size() > 1) b = constants[1]->cast_vector<float>();
  lstmopt_matmul* made = nullptr;
  char fault[300] = "";
  NODE_VALIDATION_CHECK(this,
                        !lstmopt_matmul_create(w->get_data_ptr(), w->get_byte_size(), constants.size() > 1 ? b.data() : nullptr,
                                               b.size(), &made, fault, sizeof fault),
                        fault);
  product_ = std::make_shared<const Product>(made, constants);
}

// Shapes are checked when a model is read or reshaped, as SparseLSTMSequence's are.
void SparseMatMul::validate_and_infer_types() {
  NODE_VALIDATION_CHECK(this, get_input_size() == 2 || get_input_size() == 3, "has a wrong number of inputs");
  NODE_VALIDATION_CHECK(this, is_float(get_input_element_type(kX)), "X has to be f32, f16 or bf16");
  make_product();
  ov::PartialShape shape = get_input_partial_shape(kX);
  if (shape.rank().is_static()) {
    const auto columns = int64_t(lstmopt_matmul_columns(product_->get()));
    NODE_VALIDATION_CHECK(this, shape.size() > 0 && (copy_ || shape[shape.size() - 1].compatible(columns)), "X has shape ",
                          shape, ", expected [..., ", columns, "]");
    shape[shape.size() - 1] = int64_t(lstmopt_matmul_units(product_->get()));
  }
  set_output_type(0, get_input_element_type(kX), shape);
}

std::shared_ptr<ov::Node> SparseMatMul::clone_with_new_inputs(const ov::OutputVector& inputs) const {
  auto copy = std::make_shared<SparseMatMul>();
  copy->set_arguments(inputs);
  copy->threads_ = threads_;
  copy->product_ = product_;
  copy->copy_ = true;
  copy->constructor_validate_and_infer_types();
  return copy;
}

bool SparseMatMul::visit_attributes(ov::AttributeVisitor& visitor) {
  visitor.on_attribute("threads", threads_);
  return true;
}

bool SparseMatMul::run(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  if (!product_ || inputs.size() != get_input_size() || outputs.size() != 1) return false;
  const ov::Shape& x = inputs[kX].get_shape();
  if (x.empty()) return false;
  const size_t columns = lstmopt_matmul_columns(product_->get()), units = lstmopt_matmul_units(product_->get());
  const size_t given = x.back();
  const ov::Shape& y_shape = outputs[0].get_shape();
  if (y_shape.size() != x.size() || y_shape.back() != units || !std::equal(x.begin(), x.end() - 1, y_shape.begin())) {
    ov::Shape shape = x;
    shape.back() = units;
    outputs[0].set_shape(shape);
  }
  if (given != columns || !is_float(inputs[kX].get_element_type()) || !is_float(outputs[0].get_element_type())) return false;
  const size_t rows = inputs[kX].get_size() / columns;
  float* y = for_f32(outputs[0], 1);
  const lstmopt_parallel threads = parallel(threads_);
  if (lstmopt_matmul_run(product_->get(), rows, to_f32(inputs[kX], 0), y, &threads)) return false;
  from_f32(y, outputs[0]);
  return true;
}

// Never fails, see SparseLSTMSequence::evaluate.
bool SparseMatMul::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  try {
    if (!run(outputs, inputs)) fill_nan(outputs);
  } catch (...) {
    try {
      fill_nan(outputs);
    } catch (...) {
    }
  }
  return true;
}

}  // namespace lstmopt_ov
