"""What is installed here, what this machine can run, and what to do about what does not fit."""
