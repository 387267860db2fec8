"""TinyHRMedSeg that waits after its first epoch until the file exists that the environment variable GO_ON names."""

import os
import time

from tiny_hrmedseg import TinyHRMedSeg


class WaitingHRMedSeg(TinyHRMedSeg):
    def on_epoch_end(self):
        super().on_epoch_end()
        while not os.path.exists(os.environ["GO_ON"]):
            time.sleep(0.1)
