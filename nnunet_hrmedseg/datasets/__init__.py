"""Make nnU-Net raw datasets from folders of images and masks."""
