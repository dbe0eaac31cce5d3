"""Builds the page in web/ into app/web/ (``scripts/page``), and looks whether that is built."""

from __future__ import annotations

import argparse
import filecmp
import gzip
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.node import NODE, environment
from tests.support.node_packages import install

REPOSITORY = Path(__file__).parents[2]
SOURCES = REPOSITORY / "web"
BUILT = REPOSITORY / "app" / "web"

MOST_BYTES = 400_000  # of all files together, each compressed
STEP_SECONDS = 300


def build(into: Path, *, types: bool = True) -> None:
    """Build the page into a directory, which is emptied first; with ``types``, check these, too.

    Raises `subprocess.CalledProcessError` for a step that has failed, which has said why.
    """
    packages()
    schema = "src/api/schema.d.ts"
    _run("openapi-typescript/bin/cli.js", "../docs/openapi.json", "--output", schema)
    if types:
        _run("typescript/bin/tsc", "--project", ".")
    _run("vite/bin/vite.js", "build", "--logLevel", "warn", "--outDir", str(into), "--emptyOutDir")


def packages() -> None:
    """Have the packages that the lock of web/ names in web/node_modules."""
    modules = SOURCES / "node_modules"
    installed = install(SOURCES) / "node_modules"
    if not (modules.is_symlink() and modules.resolve() == installed.resolve()):
        if modules.is_symlink():
            modules.unlink()
        elif modules.exists():
            shutil.rmtree(modules)
        modules.symlink_to(installed)


def _run(program: str, *arguments: str) -> None:
    subprocess.run(
        [NODE, SOURCES / "node_modules" / program, *arguments],
        cwd=SOURCES,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        timeout=STEP_SECONDS,
        check=True,
    )


def differences(one: Path, other: Path) -> list[str]:
    """The files that are in one of two directories alone, or are not the same in both."""
    names = {
        str(file.relative_to(directory))
        for directory in (one, other)
        for file in directory.rglob("*")
        if file.is_file()
    }
    _, mismatch, errors = filecmp.cmpfiles(one, other, names, shallow=False)
    return sorted([*mismatch, *errors])


def compressed_size(directory: Path) -> int:
    """Bytes of all files, each compressed by itself, as browsers load them."""
    files = (file for file in directory.rglob("*") if file.is_file())
    return sum(len(gzip.compress(file.read_bytes(), mtime=0)) for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if app/web/ is another one")
    parser.add_argument("--no-types", action="store_true", help="do not check the types")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory) / "web"
        try:
            build(into, types=not options.no_types)
        except subprocess.CalledProcessError as error:
            sys.exit(f"scripts/page: {Path(error.cmd[1]).name} has failed, see above")
        size = compressed_size(into)
        if size > MOST_BYTES:
            sys.exit(f"scripts/page: {size} bytes compressed, where {MOST_BYTES} are allowed")
        if options.check:
            if different := differences(into, BUILT):
                sys.exit(f"scripts/page: app/web/ is not what web/ makes: {', '.join(different)}")
            return
        shutil.rmtree(BUILT, ignore_errors=True)
        shutil.copytree(into, BUILT)
        sys.stderr.write(f"scripts/page: app/web/ has {size / 1000:.1f} kB, compressed\n")


if __name__ == "__main__":
    main()
