"""Training from scratch: the vocabulary, the autoencoder, then the UNet together with its text encoder."""
