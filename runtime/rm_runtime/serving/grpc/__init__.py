"""The Open Inference Protocol over gRPC: messages, what its methods answer, and the server."""
