"""Training of the embedded model: autoencoder, text encoder, UNet, CLIP, and task variants."""
