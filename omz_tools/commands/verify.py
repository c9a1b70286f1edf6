"""omz_verify: is a converted model still what its manifest says?"""

import sys
from collections.abc import Sequence
from pathlib import Path

from omz_tools.commands import jobs
from omz_tools.commands.arguments import Parser, run
from omz_tools.errors import ManifestError, context
from omz_tools.progress import reporters
from omz_tools.progress.reporting import files_text
from omz_tools.proof import audit, manifest, provenance
from omz_tools.proof.audit import Found
from omz_tools.proof.manifest import Manifest
from omz_tools.system.files import disk_errors, replacing
from omz_tools.system.workers import Workers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 with a FAILED list, or 2 for wrong usage."""
    parser = Parser(
        "Check converted models against the manifests that lie beside them: every file is hashed again. Nothing is "
        "fetched."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder with manifests in it or below it")
    parser.add_argument(
        "-d", "--download_dir", type=Path, metavar="DIR",
        help="where the downloaded models are, if they are not beside the converted ones",
    )  # fmt: skip
    parser.add_argument("--replay", action="store_true", help="compare the models with PyTorch again, too")
    parser.add_argument(
        "--provenance", type=Path, metavar="FILE",
        help="write an in-toto statement with SLSA provenance about the model, if all is right; to be signed",
    )  # fmt: skip
    args = parser.parse(argv)
    reporter = reporters.reporter()

    def check(found: Found) -> None:
        with reporter.on(found.name), context(f"model {found.name}"):
            made = manifest.load(found.path)
            reporter.heading(f"Verifying {made.model}")
            sources = _sources(found.path, made, args.download_dir)
            audit.check(found.path, made, sources)
            reporter.note(_summary(made, with_sources=bool(sources)))
            if args.replay:
                if not sources:
                    raise ManifestError("the downloaded files are needed for this", hint="Say where they are: -d DIR.")
                reporter.section("Comparing with PyTorch")
                audit.replay(found.path, made, sources, workers, reporter.note)
            if target := args.provenance:
                with disk_errors("Writing", target), replacing(target.resolve()) as temporary:
                    temporary.write_text(provenance.dump(made), encoding="utf-8")

    workers = Workers()

    def work() -> int:
        found = audit.find(args.folder)
        if args.provenance and len(found) > 1:
            parser.error(f"--provenance is of one model, and there are {len(found)} in {args.folder}")
        with reporter.running():
            failed = jobs.in_threads(found, check, 1, reporter, workers.stop)
        if failed:
            reporter.failed(failed)
        return 1 if failed else 0

    return run(work, reporter)


def _sources(path: Path, made: Manifest, download_dir: Path | None) -> Path | None:
    """The folder of downloaded files; None if the outputs do not need them and nobody says where they are."""
    if download_dir:
        return download_dir / made.subdirectory
    return None if made.self_contained else path.parent


def _summary(made: Manifest, *, with_sources: bool) -> str:
    lines = [f"{files_text(sum(len(output.files) for output in made.outputs))} converted: as the manifest says"]
    seen = "as the manifest says" if with_sources else "not looked at; -d says where they are"
    lines.append(f"{files_text(len(made.sources))} downloaded: {seen}")
    lines += [f"{output.what}: was not compared with PyTorch" for output in made.outputs if not output.proof]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
