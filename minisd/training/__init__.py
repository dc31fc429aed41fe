"""Training for any model: the training loop, and fine-tuning of trained pipelines."""
