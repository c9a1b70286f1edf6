"""Wall time and memory of the commands on gpt-2-mini, each as a whole process.

Works in a temporary folder. Conversions of gpt-2 at its true size are measured by convert.py.
"""

import shutil
import tempfile
from pathlib import Path

import measuring
from measuring import Figure


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each command, after one warm-up (default: 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(*command: str) -> Figure:
            return measuring.measure(command, folder)

        def download_anew() -> Figure:
            shutil.rmtree(folder / "public", ignore_errors=True)
            return run("omz_downloader", "--name", "gpt-2-mini")

        def convert_anew() -> Figure:
            measuring.clear(folder / "public" / "gpt-2-mini" / "gpt2-mini")
            return run("omz_converter", "--name", "gpt-2-mini")

        ways = {
            "list all models": lambda: run("omz_downloader", "--print_all"),
            "download": download_anew,
            "download, already there": lambda: run("omz_downloader", "--name", "gpt-2-mini"),
            "convert to FP16 and FP32, with the proof": convert_anew,
        }
        table = measuring.compare("commands on gpt-2-mini", ways, args.runs)
    measuring.write(args.json, "commands", {"tables": [table]})


if __name__ == "__main__":
    main()
