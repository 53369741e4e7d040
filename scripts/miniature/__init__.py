"""Training of the miniature's models, from the rendered scenes alone."""
