"""Resize raw cases to the canvas of a plan: the preprocessor, and the data folder that training reads."""
