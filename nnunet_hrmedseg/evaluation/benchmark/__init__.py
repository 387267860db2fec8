"""`hrmedseg benchmark`: size, memory and speed of HRMedSeg beside other networks, measured in one run."""
