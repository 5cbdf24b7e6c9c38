"""rm-export triton: a bundle -> a Triton model repository."""
