# kernels/*.cu exist as two libraries: octet_kernels_interpreted, compiled by the host compiler with the interpreter, which
# is always there, and octet_kernels_cuda, compiled by nvcc. Both define OCTET_GPU for their users (kernels/namespace.h).
set(OCTET_CUDA AUTO CACHE STRING "compile the kernels for NVIDIA GPUs: ON, OFF, or AUTO (if a toolkit is found)")
set(OCTET_CUDA_ARCHITECTURES "90a" CACHE STRING "GPU architectures, for example 80;89;90a;100f;120f;120-virtual (PTX)")

file(GLOB kernel_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/*.cu)
file(GLOB interpreter_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/interpreter/*.cpp)

# CUDA source as C++: the pragmas are nvcc's.
set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
# The thread sanitizer must see the kernels only (kernels/interpreter/race_check.h).
set_source_files_properties(${interpreter_sources} PROPERTIES COMPILE_OPTIONS "-fno-sanitize=thread")
add_library(octet_kernels_interpreted STATIC ${kernel_sources} ${interpreter_sources})
target_include_directories(octet_kernels_interpreted PUBLIC ${PROJECT_SOURCE_DIR})
target_compile_definitions(octet_kernels_interpreted PUBLIC OCTET_GPU=interpreted)
target_compile_options(octet_kernels_interpreted PUBLIC -Wno-unknown-pragmas)
target_link_libraries(octet_kernels_interpreted PUBLIC octet_numerics Threads::Threads ${CMAKE_DL_LIBS})
if(OCTET_SANITIZE MATCHES "thread")
  target_compile_definitions(octet_kernels_interpreted PRIVATE OCTET_RACE_CHECK)
endif()

# nvcc is called directly: the CMake of Debian 12 and Ubuntu 22.04 knows neither C++20 in CUDA nor today's architectures.
set(cuda_missing "")
find_program(OCTET_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(OCTET_CUDA STREQUAL "AUTO" AND OCTET_SANITIZE)
  set(cuda_missing "sanitized builds have no use for it")
elseif(NOT OCTET_NVCC)
  set(cuda_missing "nvcc not found; set CUDA_HOME or put it on the PATH")
else()
  execute_process(COMMAND ${OCTET_NVCC} --version OUTPUT_VARIABLE nvcc_says ERROR_VARIABLE nvcc_says)
  string(REGEX MATCH "V([0-9]+\\.[0-9]+\\.[0-9]+)" _ "${nvcc_says}")
  set(OCTET_NVCC_VERSION "${CMAKE_MATCH_1}")
  get_filename_component(nvcc_real ${OCTET_NVCC} REALPATH)
  get_filename_component(OCTET_CUDA_ROOT ${nvcc_real}/../.. ABSOLUTE)
  find_path(OCTET_CUDA_RUNTIME_INCLUDE cuda_runtime.h HINTS ${OCTET_CUDA_ROOT} ENV CUDA_HOME PATHS /usr/local/cuda
    PATH_SUFFIXES include targets/x86_64-linux/include targets/sbsa-linux/include)
  find_library(OCTET_CUDART cudart_static HINTS ${OCTET_CUDA_ROOT} ENV CUDA_HOME PATHS /usr/local/cuda
    PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib targets/sbsa-linux/lib)
  if(NOT OCTET_NVCC_VERSION VERSION_GREATER_EQUAL 12.8)
    set(cuda_missing "${OCTET_NVCC} is version ${OCTET_NVCC_VERSION}, at least 12.8 is needed")
  elseif(NOT OCTET_CUDA_RUNTIME_INCLUDE OR NOT OCTET_CUDART)
    set(cuda_missing "${OCTET_NVCC} has no cuda_runtime.h or libcudart_static.a beside it; install the CUDA runtime's development package")
  endif()
endif()
set(OCTET_CUDA_FOUND FALSE)
if(OCTET_CUDA STREQUAL "AUTO" AND cuda_missing)
  message(STATUS "CUDA kernels: not built (${cuda_missing})")
elseif(OCTET_CUDA AND cuda_missing)
  message(FATAL_ERROR "OCTET_CUDA=ON, but ${cuda_missing}. Or configure with -DOCTET_CUDA=OFF.")
elseif(OCTET_CUDA)
  set(OCTET_CUDA_FOUND TRUE)
  message(STATUS "CUDA kernels: nvcc ${OCTET_NVCC_VERSION}, architectures ${OCTET_CUDA_ARCHITECTURES}")
endif()

# octet_compile_kernels(OBJECTS SOURCE...): a list of object files made by nvcc.
function(octet_compile_kernels objects)
  set(flags -std=c++20 -O3 --Werror all-warnings --display-error-number -ccbin ${CMAKE_CXX_COMPILER}
    # One rounding per written operation, as on the CPU (cmake/compiler.cmake); division and square root are exact by default.
    --fmad=false -lineinfo
    -Xcompiler=-Wall,-Wextra,-fPIC,-fno-strict-aliasing
    -DOCTET_GPU=cuda -I${PROJECT_SOURCE_DIR} -I${PROJECT_SOURCE_DIR}/src
    -isystem=${OCTET_CUDA_RUNTIME_INCLUDE})
  list(LENGTH OCTET_CUDA_ARCHITECTURES count)
  if(count GREATER 1)
    list(APPEND flags --threads=2 --compress-mode=size)
  endif()
  foreach(architecture IN LISTS OCTET_CUDA_ARCHITECTURES)
    if(architecture MATCHES "^(.*)-virtual$")
      list(APPEND flags -gencode=arch=compute_${CMAKE_MATCH_1},code=compute_${CMAKE_MATCH_1})
    else()
      list(APPEND flags -gencode=arch=compute_${architecture},code=sm_${architecture})
    endif()
  endforeach()
  set(made "")
  foreach(source IN LISTS ARGN)
    file(RELATIVE_PATH name ${PROJECT_SOURCE_DIR} ${source})
    set(object ${PROJECT_BINARY_DIR}/nvcc/${name}.o)
    get_filename_component(folder ${object} DIRECTORY)
    file(MAKE_DIRECTORY ${folder})
    add_custom_command(OUTPUT ${object} DEPENDS ${source} DEPFILE ${object}.d VERBATIM
      COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} ${OCTET_NVCC} ${flags} -MD -MF ${object}.d -c ${source} -o ${object}
      COMMENT "nvcc ${name}")
    list(APPEND made ${object})
  endforeach()
  set(${objects} ${made} PARENT_SCOPE)
endfunction()

if(OCTET_CUDA_FOUND)
  octet_compile_kernels(cuda_objects ${kernel_sources})
  add_library(octet_kernels_cuda STATIC ${cuda_objects})
  set_target_properties(octet_kernels_cuda PROPERTIES LINKER_LANGUAGE CXX)
  target_include_directories(octet_kernels_cuda INTERFACE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(octet_kernels_cuda INTERFACE OCTET_GPU=cuda)
  target_link_libraries(octet_kernels_cuda INTERFACE octet_numerics ${OCTET_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt)
endif()
