"""Reading and writing: one place each for files, images, cases, checkpoints and devices."""
