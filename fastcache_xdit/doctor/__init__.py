"""Examine what is installed here and what this machine can run, and advise on what does not fit."""
