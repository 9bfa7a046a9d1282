"""Small text-to-image and text-to-video models: their data, training, weights, checkers, and tuned caches."""
