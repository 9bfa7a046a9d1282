"""From a model and an hour to a calibration and a config: recording, fitting on policy, planning, searching."""
