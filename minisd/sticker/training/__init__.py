"""Train the embedded model from scratch: vocabulary, autoencoder, text encoder, UNet, CLIP, task variants."""
