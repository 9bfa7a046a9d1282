"""Learning while serving: the first requests are recorded, and the next ones planned and fitted by them."""
