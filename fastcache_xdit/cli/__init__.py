"""Command line: each command is `add_arguments(parser)` and `main(args) -> int`."""
