"""A server of bundles: HTTP requests of many clients -> full batches of one engine -> answers."""
