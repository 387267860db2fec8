"""Python imports this module at startup from PYTHONPATH. It makes nnU-Net see one core.

The tests run two commands in parallel. Otherwise each would start as many threads as there are cores, and the threads
of both would wait for each other at every step.
"""

import os

os.cpu_count = lambda: 1
