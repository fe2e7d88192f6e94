// Monotonic time for rates and deadlines, wall time for stamps only.
#pragma once
namespace octet {
double monotonic_seconds();
double wall_seconds();  // since 1970
}  // namespace octet
