"""One file for each API that clients speak: a JSON document -> a JSON document."""
