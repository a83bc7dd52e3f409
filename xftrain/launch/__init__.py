"""The command line: arguments, help, processes and exit codes."""
