"""Measure FastCache, alone and beside other caches."""
