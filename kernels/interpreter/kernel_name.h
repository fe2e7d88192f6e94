// What a message calls a kernel.
#pragma once
#include <string>

#include "kernels/interpreter/interpreter.h"

namespace gpu {
inline namespace interpreted {

// The function's name from the program's symbol table, if that has not been stripped; and the launch's place.
std::string kernel_name(const GridLaunch&);

}  // namespace interpreted
}  // namespace gpu
