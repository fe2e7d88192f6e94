#include "cli/cli.h"

int main(int argc, char** argv) { return octet::run_command_line(argc, argv); }
