"""A world small enough to train in minutes: rendered scenes, and a diffusion teacher, a scorer and a segmenter of them."""
