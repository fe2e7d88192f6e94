# src/device/gpu is compiled once for each kind of kernels: a device on the interpreter, which is always there, and the CUDA
# device (src/device/cuda), where there is a toolkit.
file(GLOB gpu_device_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/device/gpu/*.cpp)
file(GLOB interpreted_device_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/device/gpu/interpreted/*.cpp)
file(GLOB cuda_device_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/device/cuda/*.cpp)

add_library(octet_device_interpreted STATIC ${gpu_device_sources} ${interpreted_device_sources})
target_link_libraries(octet_device_interpreted PUBLIC octet_device PRIVATE octet_kernels_interpreted)

include(cmake/cuda_libraries.cmake)
if(OCTET_CUDA_DEVICE)
  add_library(octet_device_cuda STATIC ${gpu_device_sources} ${cuda_device_sources})
  target_link_libraries(octet_device_cuda PUBLIC octet_device PRIVATE octet_kernels_cuda)
  octet_use_cuda_libraries(octet_device_cuda)
  target_compile_definitions(octet_device_cuda INTERFACE OCTET_HAS_CUDA)
endif()
