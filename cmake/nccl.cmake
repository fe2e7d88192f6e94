# Collectives between GPUs (src/comm/nccl), where the CUDA device and NCCL's header are. The library itself is opened when it
# is used.
if(OCTET_CUDA_DEVICE)
  if(OCTET_NCCL_INCLUDE)
    file(GLOB nccl_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/comm/nccl/*.cpp)
    add_library(octet_comm_nccl STATIC ${nccl_sources})
    target_link_libraries(octet_comm_nccl PUBLIC octet_comm octet_device_cuda)
    octet_use_nccl(octet_comm_nccl)
    target_compile_definitions(octet_comm_nccl INTERFACE OCTET_HAS_NCCL)
  else()
    message(STATUS "NCCL: not built, nccl.h (apt: libnccl-dev) not found; GPU ranks talk through the host")
  endif()
endif()
