"""Everything that measures FastCache, alone and beside other caches."""
