"""Training that suits any model: the trainer, and fine-tuning of official checkpoints."""
