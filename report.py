"""unreel: one page over many runs.

python report.py runs/claims
"""

import argparse
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes report.html over all finished runs in a folder.")
    parser.add_argument("runs", type=Path, help="folder of runs, e.g. runs/claims")
    runs = parser.parse_args().runs
    try:
        if not runs.is_dir():
            raise ValueError(f"{runs} is no folder: expected a folder of runs, e.g. runs/claims")
        from unreel.overview import write_overview  # with plots and statistics: seconds

        print(write_overview(runs))
    except (ValueError, OSError) as error:
        sys.exit(f"unreel: {error}")


if __name__ == "__main__":
    main()
