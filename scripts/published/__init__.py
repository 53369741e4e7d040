"""Published models with random weights, in the layouts that people meet."""
