"""Size, memory and speed of networks, measured in one run on this machine."""
