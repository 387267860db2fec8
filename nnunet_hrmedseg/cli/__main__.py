"""`python -m nnunet_hrmedseg.cli`: the command `hrmedseg`."""

import sys

from nnunet_hrmedseg.cli import main

sys.exit(main())
