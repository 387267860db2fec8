"""TinyHRMedSeg that waits after its first epoch until the file exists that is set in the variable CONTINUE."""

import os
import time

from tiny_hrmedseg import TinyHRMedSeg


class WaitingHRMedSeg(TinyHRMedSeg):
    def on_epoch_end(self):
        super().on_epoch_end()
        while not os.path.exists(os.environ["CONTINUE"]):
            time.sleep(0.1)
