// The command line: one small file a sub-command, each adding itself to the parser.
#pragma once

namespace octet {
int run_command_line(int argc, char** argv);
}
