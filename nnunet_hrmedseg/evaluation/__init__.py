"""Compare trained models on the same cases (`comparison`), and benchmark networks on this machine (`benchmark`)."""
