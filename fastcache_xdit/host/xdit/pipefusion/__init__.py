"""Parts for PipeFusion beyond one cache per stage: skipped steps on one stage, and keys and values kept up to date."""
