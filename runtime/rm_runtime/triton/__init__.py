"""What runs inside a Triton server's Python backend; `rm-export triton` writes the model folders that import it."""
