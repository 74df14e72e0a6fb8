#include "sparse_layer.hpp"

#include <algorithm>
#include <array>
#include <sstream>

#include "pool.h"
#include "tensors.h"

namespace lstmopt_ov {
namespace {

enum Input { kX, kW, kR, kFirstOptional };
const char* const kOptional[] = {"B", "sequence_lens", "initial_h", "initial_c", "P"};

std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> found;
  for (std::string word; stream >> word;) found.push_back(word);
  return found;
}

// Whether `names` holds some of the optional inputs in their order.
bool in_order(const std::vector<std::string>& names) {
  size_t next = 0;
  for (const char* known : kOptional) next += next < names.size() && names[next] == known;
  return next == names.size();
}

}  // namespace

void SparseSequence::read_positions() {
  const std::vector<std::string> names = words(attributes_.optional);
  NODE_VALIDATION_CHECK(this, in_order(names), "optional: unknown, repeated or unordered names of inputs");
  for (size_t i = 0; i < kOptionals; ++i) {
    const auto found = std::find(names.begin(), names.end(), kOptional[i]);
    positions_[i] = found == names.end() ? kAbsent : kFirstOptional + size_t(found - names.begin());
  }
  NODE_VALIDATION_CHECK(this, cell() == LSTMOPT_LSTM || (position(kInitialC) == kAbsent && position(kP) == kAbsent),
                        "optional: a GRU has neither initial_c nor P");
}

void SparseSequence::make_layer() {
  const size_t b_at = position(kB), p_at = position(kP);
  Constants constants;
  for (const size_t at : {size_t(kW), size_t(kR), b_at, p_at}) {
    if (at == kAbsent) continue;
    constants.push_back(constant_at(*this, at));
    if (!constants.back()) {
      // A copy whose constants became inputs of its own keeps what was made before.
      NODE_VALIDATION_CHECK(this, layer_, "W, R, B and P have to be constants");
      return;
    }
  }
  if (layer_ && layer_->is_of(constants)) return;

  const auto& w = constants[0];
  const auto& r = constants[1];
  NODE_VALIDATION_CHECK(this, w->get_element_type() == ov::element::u8 && r->get_element_type() == ov::element::u8,
                        "W and R have to be packed weights of type u8");
  std::vector<float> b, p;
  if (b_at != kAbsent) b = constants[2]->cast_vector<float>();
  if (p_at != kAbsent) p = constants.back()->cast_vector<float>();
  lstmopt_layer_config config = {};
  config.cell = cell();
  config.direction = attributes_.direction == "reverse"         ? LSTMOPT_REVERSE
                     : attributes_.direction == "bidirectional" ? LSTMOPT_BIDIRECTIONAL
                     : attributes_.direction == "forward"       ? LSTMOPT_FORWARD
                                                                : -1;
  config.hidden_size = attributes_.hidden_size;
  config.w = w->get_data_ptr(), config.w_bytes = w->get_byte_size();
  config.r = r->get_data_ptr(), config.r_bytes = r->get_byte_size();
  config.b = b_at == kAbsent ? nullptr : b.data(), config.b_count = b.size();
  config.p = p_at == kAbsent ? nullptr : p.data(), config.p_count = p.size();
  config.activations = attributes_.activations.c_str();
  config.alpha = attributes_.activation_alpha.data(), config.alpha_count = attributes_.activation_alpha.size();
  config.beta = attributes_.activation_beta.data(), config.beta_count = attributes_.activation_beta.size();
  config.clip = attributes_.clip;
  config.input_forget = attributes_.input_forget;
  config.linear_before_reset = attributes_.linear_before_reset;
  lstmopt_layer* made = nullptr;
  char fault[300] = "";
  NODE_VALIDATION_CHECK(this, !lstmopt_layer_create(&config, &made, fault, sizeof fault), fault);
  layer_ = std::make_shared<const Layer>(made, constants);
}

// Shapes are checked when a model is read or reshaped. OpenVINO copies an op to infer the shapes of an
// inference, and swallows what is thrown then: shapes that do not fit each other give NaN there, see `run`.
void SparseSequence::validate_and_infer_types() {
  // A copy, of which OpenVINO makes one in every inference of a dynamic shape, has those of the original.
  if (!copy_) read_positions();
  const auto absent = std::count(positions_.begin(), positions_.end(), kAbsent);
  NODE_VALIDATION_CHECK(this, get_input_size() == kFirstOptional + kOptionals - size_t(absent), "has a wrong number of inputs");
  NODE_VALIDATION_CHECK(this, is_float(get_input_element_type(kX)), "X has to be f32, f16 or bf16");
  make_layer();

  const auto directions = int64_t(lstmopt_layer_directions(layer_->get())), hidden = int64_t(lstmopt_layer_hidden(layer_->get()));
  ov::PartialShape x = get_input_partial_shape(kX);
  NODE_VALIDATION_CHECK(this, x.merge_rank(3), "X has to be [steps, batch, input]");
  ov::PartialShape state{directions, x[1], hidden};
  if (!copy_) check_shapes(x, state);
  set_output_size(output_count());
  set_output_type(0, get_input_element_type(kX), ov::PartialShape{x[0], directions, state[1], hidden});
  for (size_t at = 1; at < output_count(); ++at) set_output_type(at, get_input_element_type(kX), state);
}

// Throws where shapes do not fit; what the other inputs tell of the batch goes into `state`.
void SparseSequence::check_shapes(const ov::PartialShape& x, ov::PartialShape& state) const {
  NODE_VALIDATION_CHECK(this, x[2].compatible(int64_t(lstmopt_layer_input(layer_->get()))), "X has ", x[2],
                        " features, the weights have ", lstmopt_layer_input(layer_->get()));
  for (const Optional input : {kInitialH, kInitialC}) {
    const size_t at = position(input);
    const char* const name = kOptional[input];
    if (at == kAbsent) continue;
    NODE_VALIDATION_CHECK(this, is_float(get_input_element_type(at)), name, " has to be f32, f16 or bf16");
    NODE_VALIDATION_CHECK(this, ov::PartialShape::merge_into(state, get_input_partial_shape(at)), name, " has shape ",
                          get_input_partial_shape(at), ", expected ", state);
  }
  const size_t lengths = position(kLengths);
  if (lengths != kAbsent) {
    const ov::element::Type type = get_input_element_type(lengths);
    NODE_VALIDATION_CHECK(this, type == ov::element::i32 || type == ov::element::i64, "sequence_lens has to be i32 or i64");
    ov::PartialShape expected{state[1]};
    NODE_VALIDATION_CHECK(this, ov::PartialShape::merge_into(expected, get_input_partial_shape(lengths)),
                          "sequence_lens has to have the batch's size");
    state[1] = expected[0];
  }
}

std::shared_ptr<ov::Node> SparseSequence::as_copy(std::shared_ptr<SparseSequence> copy, const ov::OutputVector& inputs) const {
  copy->set_arguments(inputs);
  copy->attributes_ = attributes_;
  copy->positions_ = positions_;
  copy->layer_ = layer_;
  copy->copy_ = true;
  copy->constructor_validate_and_infer_types();
  return copy;
}

bool SparseSequence::visit_attributes(ov::AttributeVisitor& visitor) {
  visitor.on_attribute("optional", attributes_.optional);
  visitor.on_attribute("direction", attributes_.direction);
  visitor.on_attribute("hidden_size", attributes_.hidden_size);
  visitor.on_attribute("activations", attributes_.activations);
  visitor.on_attribute("activation_alpha", attributes_.activation_alpha);
  visitor.on_attribute("activation_beta", attributes_.activation_beta);
  visitor.on_attribute("clip", attributes_.clip);
  visitor.on_attribute("threads", attributes_.threads);
  if (cell() == LSTMOPT_LSTM) {
    visitor.on_attribute("input_forget", attributes_.input_forget);
  } else {
    visitor.on_attribute("linear_before_reset", attributes_.linear_before_reset);
  }
  return true;
}

bool SparseSequence::run(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  if (!layer_ || inputs.size() != get_input_size() || outputs.size() != output_count()) return false;
  const size_t directions = lstmopt_layer_directions(layer_->get()), hidden = lstmopt_layer_hidden(layer_->get());
  const ov::Shape& x = inputs[kX].get_shape();
  if (x.size() != 3) return false;
  const std::array<size_t, 3> state{directions, x[1], hidden};
  shape_to(outputs[0], {x[0], directions, x[1], hidden});
  for (size_t at = 1; at < output_count(); ++at) shape_to(outputs[at], {state[0], state[1], state[2]});
  for (const ov::Tensor& output : outputs) {
    if (!is_float(output.get_element_type())) return false;
  }
  if (x[2] != lstmopt_layer_input(layer_->get()) || !is_float(inputs[kX].get_element_type())) return false;

  lstmopt_layer_call call = {};
  call.steps = x[0];
  call.batch = x[1];
  call.x = to_f32(inputs[kX], 0);
  const size_t lengths = position(kLengths), h0 = position(kInitialH), c0 = position(kInitialC);
  if (lengths != kAbsent) {
    const ov::Tensor& given = inputs[lengths];
    if (given.get_size() != x[1]) return false;
    if (given.get_element_type() == ov::element::i64) {
      int32_t* narrow = kept<int32_t>(0, x[1]);
      const int64_t most = int64_t(std::min<size_t>(x[0], INT32_MAX));
      for (size_t i = 0; i < x[1]; ++i) narrow[i] = int32_t(std::clamp<int64_t>(given.data<const int64_t>()[i], 0, most));
      call.lengths = narrow;
    } else if (given.get_element_type() == ov::element::i32) {
      call.lengths = given.data<const int32_t>();
    } else {
      return false;
    }
  }
  for (const size_t at : {h0, c0}) {
    if (at == kAbsent) continue;
    const ov::Shape& given = inputs[at].get_shape();
    if (!std::equal(given.begin(), given.end(), state.begin(), state.end())) return false;
    if (!is_float(inputs[at].get_element_type())) return false;
    (at == h0 ? call.h0 : call.c0) = to_f32(inputs[at], at == h0 ? 1 : 2);
  }
  call.y = for_f32(outputs[0], 3);
  call.y_h = for_f32(outputs[1], 4);
  if (output_count() > 2) call.y_c = for_f32(outputs[2], 5);
  const lstmopt_parallel threads = parallel(attributes_.threads);
  if (lstmopt_layer_run(layer_->get(), &call, &threads)) return false;
  from_f32(call.y, outputs[0]);
  from_f32(call.y_h, outputs[1]);
  if (output_count() > 2) from_f32(call.y_c, outputs[2]);
  return true;
}

// Never fails: after a failure OpenVINO would go on with memory that nobody wrote. What cannot be computed
// (nothing, for inputs that passed validate_and_infer_types) is NaN.
bool SparseSequence::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
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
