"""rm-runtime bench: how fast a bundle is, on which engine, and against what. measure.bench is the whole of it."""
