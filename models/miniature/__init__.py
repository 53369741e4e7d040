"""A world small enough to train in minutes: rendered scenes, with a teacher, a scorer and a segmenter."""
