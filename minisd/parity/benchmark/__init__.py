"""Speed, memory and accuracy of minisd and diffusers with the same weights and inputs, for `minisd bench`."""
