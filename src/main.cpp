#include <fcntl.h>
#include <unistd.h>

#include "cli/cli.h"

namespace {
// A launcher may start a process with standard streams closed. The next file opened would take such a number,
// and progress lines or warnings would be written into a log or a checkpoint.
void open_standard_streams() {
  for (int stream = 0; stream <= 2; ++stream) {
    if (fcntl(stream, F_GETFD) >= 0) continue;
    const int opened = open("/dev/null", stream == 0 ? O_RDONLY : O_WRONLY);
    if (opened > 2) close(opened);
  }
}
}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  return octet::run_command_line(argc, argv);
}
