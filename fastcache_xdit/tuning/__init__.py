"""Calibration and tuning of a model: recording, fitting, planning masks and searching for them."""
