"""`hrmedseg dataset`: an nnU-Net raw dataset out of a folder of images and a folder of masks."""
