// Holds ort_abi.h against ONNX Runtime's own header. Compiled where that is installed; adds nothing.
#include <onnxruntime_c_api.h>

#include "ort_abi.h"

#define SLOT(ours, theirs) \
  static_assert(ort::ours::kSlot == offsetof(OrtApi, theirs) / sizeof(void*), "slot of " #theirs)
#define FIELD(ours, theirs) \
  static_assert(offsetof(ort::CustomOp, ours) == offsetof(OrtCustomOp, theirs), "place of " #theirs)

SLOT(CreateStatus, CreateStatus);
SLOT(CreateDomain, CreateCustomOpDomain);
SLOT(DomainAdd, CustomOpDomain_Add);
SLOT(AddDomain, AddCustomOpDomain);
SLOT(GetTensorData, GetTensorMutableData);
SLOT(GetElementType, GetTensorElementType);
SLOT(GetDimensionsCount, GetDimensionsCount);
SLOT(GetDimensions, GetDimensions);
SLOT(GetShape, GetTensorTypeAndShape);
SLOT(AttributeFloat, KernelInfoGetAttribute_float);
SLOT(AttributeInt, KernelInfoGetAttribute_int64);
SLOT(AttributeString, KernelInfoGetAttribute_string);
SLOT(InputCount, KernelContext_GetInputCount);
SLOT(GetInput, KernelContext_GetInput);
SLOT(GetOutput, KernelContext_GetOutput);
SLOT(ReleaseStatus, ReleaseStatus);
SLOT(ReleaseShape, ReleaseTensorTypeAndShapeInfo);
SLOT(AttributeFloats, KernelInfoGetAttributeArray_float);
SLOT(ConstantInput, KernelInfoGetConstantInput_tensor);
SLOT(ParallelFor, KernelContext_ParallelFor);

FIELD(name, GetName);
FIELD(input_type, GetInputType);
FIELD(output_count, GetOutputTypeCount);
FIELD(destroy, KernelDestroy);
FIELD(input_characteristic, GetInputCharacteristic);
FIELD(output_characteristic, GetOutputCharacteristic);
FIELD(create_kernel_v2, CreateKernelV2);
FIELD(compute_v2, KernelComputeV2);
FIELD(infer_output_shape, InferOutputShapeFn);
FIELD(start_version, GetStartVersion);
FIELD(end_version, GetEndVersion);
static_assert(sizeof(ort::CustomOp) == sizeof(OrtCustomOp), "size of OrtCustomOp");

static_assert(int(ort::kFloat) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT), "f32");
static_assert(int(ort::kUint8) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8), "u8");
static_assert(int(ort::kInt32) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32), "i32");
static_assert(int(ort::kOptional) == int(INPUT_OUTPUT_OPTIONAL), "optional");
static_assert(ort::kInvalidArgument == ORT_INVALID_ARGUMENT, "invalid argument");
