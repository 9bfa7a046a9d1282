"""What each command takes, for `--help` and for parsing; these modules import neither torch nor xDiT."""
