"""Entry point of mmseg_unet_lyft/cli/info.py; in a clone the package need not be installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmseg_unet_lyft.cli.info import main

if __name__ == '__main__':
    sys.exit(main())
