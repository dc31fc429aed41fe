"""What `minisd bench` measures: minisd beside diffusers, with the same weights and inputs, in one run."""
