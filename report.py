"""unreel: one page over many runs.

python report.py runs/claims
"""

import argparse
import sys
from pathlib import Path

from unreel.overview import write_overview


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes report.html over all finished runs in a folder.")
    parser.add_argument("runs", type=Path, help="folder of runs, e.g. runs/claims")
    try:
        print(write_overview(parser.parse_args().runs))
    except ValueError as error:
        sys.exit(f"unreel: {error}")


if __name__ == "__main__":
    main()
