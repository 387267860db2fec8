"""Compare trained models of a dataset: statistics, cost, and a report."""
