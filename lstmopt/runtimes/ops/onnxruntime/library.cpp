// What ONNX Runtime calls when the library is registered on a session's options.
#include "support.h"

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::SessionOptions* options,
                                                                                 const ort::ApiBase* base) {
  const ort::Api* api = base->get(ort::kVersion);
  if (!api) {
    const std::string text = std::string("lstmopt: needs ONNX Runtime 1.20 or newer, this is ") + base->version_string();
    return ort::CreateStatus::call(base->get(1), ort::kInvalidArgument, text.c_str());
  }
  // One domain for all sessions of the process: it has to outlive them.
  static ort::Domain* const domain = [api]() -> ort::Domain* {
    ort::Domain* made = nullptr;
    if (ort::CreateDomain::call(api, "lstmopt", &made) || ort::DomainAdd::call(api, made, &lstmopt_ort::kSparseLstm) ||
        ort::DomainAdd::call(api, made, &lstmopt_ort::kSparseGru) ||
        ort::DomainAdd::call(api, made, &lstmopt_ort::kSparseMatMul)) {
      return nullptr;
    }
    return made;
  }();
  if (!domain) return ort::CreateStatus::call(api, ort::kInvalidArgument, "lstmopt: the ops cannot be registered");
  return ort::AddDomain::call(api, options, domain);
}
