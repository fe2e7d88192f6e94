#include <fcntl.h>
#include <unistd.h>

#include "cli/cli.h"

namespace {
// A launcher may start a process with standard streams closed. The next file opened would take such a number,
// and progress lines or warnings would be written into a log or a checkpoint. Standard output still refuses
// every write, so that what a command could not print shows in its exit code.
void open_standard_streams() {
  for (int stream = 0; stream <= 2; ++stream) {
    if (fcntl(stream, F_GETFD) >= 0) continue;
    const int opened = open("/dev/null", stream == 2 ? O_WRONLY : O_RDONLY);
    if (opened > 2) close(opened);
  }
}
}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  return octet::run_command_line(argc, argv);
}
