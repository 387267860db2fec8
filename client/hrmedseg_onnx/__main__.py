"""`python -m hrmedseg_onnx`."""

import sys

from hrmedseg_onnx.cli import main

if __name__ == "__main__":
    sys.exit(main())
