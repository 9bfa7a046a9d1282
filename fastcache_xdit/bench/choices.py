"""What can be chosen of benchmarks on a command line; kept apart, because `--help` imports no torch."""

SETTINGS = ("text", "edit")  # of bench tokens
BUDGETS = (1 / 1.5, 1 / 2, 1 / 2.5)  # of bench tokens: shares of block FLOPs
