# The kernels as an object library: C++17, no runtime's headers.
file(GLOB LSTMOPT_KERNEL_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cpp)
set(LSTMOPT_KERNEL_DIR ${CMAKE_CURRENT_LIST_DIR})
set(LSTMOPT_X86_FILES avx2 avx512 avx512_vnni)
set(LSTMOPT_FLAGS_avx2 -mavx2 -mfma)
set(LSTMOPT_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512)
set(LSTMOPT_FLAGS_avx512_vnni ${LSTMOPT_FLAGS_avx512} -mavx512vbmi -mavx512vnni)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT LSTMOPT_PORTABLE)
  set(LSTMOPT_X86 TRUE)
else()
  set(LSTMOPT_X86 FALSE)
endif()

# Adds the kernels to a target, with flags for all files of them.
function(lstmopt_add_kernels target)
  foreach(name ${LSTMOPT_X86_FILES})
    if(LSTMOPT_X86)
      set_source_files_properties(${LSTMOPT_KERNEL_DIR}/${name}.cpp PROPERTIES COMPILE_OPTIONS "${LSTMOPT_FLAGS_${name}}")
    else()
      list(FILTER LSTMOPT_KERNEL_SOURCES EXCLUDE REGEX "/${name}\\.cpp$")
    endif()
  endforeach()
  target_sources(${target} PRIVATE ${LSTMOPT_KERNEL_SOURCES})
  target_include_directories(${target} PUBLIC ${LSTMOPT_KERNEL_DIR})
  target_compile_features(${target} PUBLIC cxx_std_17)
  target_compile_options(${target} PRIVATE -Wall -Wextra -fvisibility=hidden -fno-math-errno -ffp-contract=fast
    -ffile-prefix-map=${LSTMOPT_SOURCE_DIR}=lstmopt
    -Wno-psabi  # vectors go to inlined functions only
    -Wno-unknown-pragmas
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)  # gcc's own intrinsics
  if(LSTMOPT_X86)
    target_compile_definitions(${target} PRIVATE LSTMOPT_X86)
  endif()
endfunction()
