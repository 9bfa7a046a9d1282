"""Command line: each command has `add_arguments(group)`, frozen options, and `main(argv) -> exit code`."""
