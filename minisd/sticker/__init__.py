"""The embedded model: the images that it is trained on, its training, and its evaluation."""
