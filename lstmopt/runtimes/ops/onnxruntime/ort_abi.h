// The part of ONNX Runtime's C interface that custom ops need, declared by ourselves.
//
// Its wheels have no headers, and its C++ headers only fit their own version. The C interface is a table
// of functions to which versions only append, so the slots below are right for every version from 1.20
// on; check_abi.cpp holds them against the headers where there are some.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t kVersion = 20;

struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct Context;
struct Value;
struct Shape;

struct Api {
  void* slots[275];
};

struct ApiBase {
  const Api* (*get)(uint32_t version);
  const char* (*version_string)();
};

enum Type : int { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt32 = 6 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
constexpr int kInvalidArgument = 2;

// OrtCustomOp of version 20; what is null is not used.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  Type (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  Type (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, Context*);
  void (*destroy)(void*);
  Characteristic (*input_characteristic)(const CustomOp*, size_t);
  Characteristic (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_min)(const CustomOp*);
  int (*variadic_input_homogeneous)(const CustomOp*);
  int (*variadic_output_min)(const CustomOp*);
  int (*variadic_output_homogeneous)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, Context*);
  void* infer_output_shape;
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  void* in_place[4];
};

// A function of the table: its slot and its type.
template <size_t Slot, class... Arguments>
struct Function {
  static constexpr size_t kSlot = Slot;
  static Status* call(const Api* api, Arguments... arguments) {
    return reinterpret_cast<Status* (*)(Arguments...)>(api->slots[Slot])(arguments...);
  }
};

using CreateStatus = Function<0, int, const char*>;
using CreateDomain = Function<26, const char*, Domain**>;
using DomainAdd = Function<27, Domain*, const CustomOp*>;
using AddDomain = Function<28, SessionOptions*, Domain*>;
using GetTensorData = Function<51, const Value*, void**>;
using GetElementType = Function<60, const Shape*, Type*>;
using GetDimensionsCount = Function<61, const Shape*, size_t*>;
using GetDimensions = Function<62, const Shape*, int64_t*, size_t>;
using GetShape = Function<65, const Value*, Shape**>;
using AttributeFloat = Function<85, const KernelInfo*, const char*, float*>;
using AttributeInt = Function<86, const KernelInfo*, const char*, int64_t*>;
using AttributeString = Function<87, const KernelInfo*, const char*, char*, size_t*>;
using InputCount = Function<88, const Context*, size_t*>;
using GetInput = Function<90, const Context*, size_t, const Value**>;
using GetOutput = Function<91, Context*, size_t, const int64_t*, size_t, Value**>;
using ReleaseStatus = Function<93, Status*>;
using ReleaseShape = Function<99, Shape*>;
using AttributeFloats = Function<162, const KernelInfo*, const char*, float*, size_t*>;
using ConstantInput = Function<249, const KernelInfo*, size_t, int*, const Value**>;
using ParallelFor = Function<274, const Context*, void (*)(void*, size_t), size_t, size_t, void*>;

}  // namespace ort
