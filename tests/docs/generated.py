"""The files in docs/ that are made from the code; scripts/generate writes them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from app.main import create_app
from app.settings import Settings
from tests.docs import configuration
from tests.support.server import REPOSITORY

DOCS: Final = REPOSITORY / "docs"


def document() -> dict[str, Any]:
    """The OpenAPI document of a server with the default options, whatever the environment.

    Its state directory is none that a server of this user has.
    """
    with tempfile.TemporaryDirectory() as directory:
        return create_app(Settings.model_construct(state_dir=Path(directory))).openapi()


def openapi() -> str:
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


FILES: Final[Mapping[Path, Callable[[], str]]] = {
    DOCS / "openapi.json": openapi,
    DOCS / "configuration.md": configuration.page,
}


def main() -> None:
    for path, make in FILES.items():
        path.write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
