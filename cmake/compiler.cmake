# One interface target carries the flags of the house.
add_library(octet_flags INTERFACE)
target_compile_options(octet_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Werror
  # One rounding per written operation on every machine; code that wants a fused multiply-add says so.
  -ffp-contract=off
  -fno-strict-aliasing -fno-math-errno)
target_compile_definitions(octet_flags INTERFACE $<$<CONFIG:Debug>:OCTET_DEBUG>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # False alarm of g++ 12 on std::string (GCC bug 105329).
  target_compile_options(octet_flags INTERFACE -Wno-restrict)
endif()
if(OCTET_SANITIZE)
  target_compile_options(octet_flags INTERFACE -fsanitize=${OCTET_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all -g1
    -Wno-maybe-uninitialized)  # false alarms of instrumented code (GCC documents them)
  target_link_options(octet_flags INTERFACE -fsanitize=${OCTET_SANITIZE})
  # Sanitizer runtimes start after ifunc resolvers run, so function multi-versioning is switched off.
  target_compile_definitions(octet_flags INTERFACE OCTET_SANITIZED)
endif()
find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()
