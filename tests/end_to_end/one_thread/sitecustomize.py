"""Python imports this by itself at its start, from PYTHONPATH: a machine of one core, as nnU-Net sees it.

The tests run two commands side by side. Each would start as many threads as there are cores, and those of one would
wait for the other's at every step.
"""

import os

os.cpu_count = lambda: 1
