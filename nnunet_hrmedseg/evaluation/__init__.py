"""Evaluation: `comparison` of trained models on the same cases, `benchmark` of networks on this machine."""
