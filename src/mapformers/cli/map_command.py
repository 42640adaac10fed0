"""mapformers map."""

from pathlib import Path
from typing import Annotated

import typer


def map_(
    output: Annotated[Path, typer.Option(help="the folder to make", metavar="DIR")] = Path("site"),
) -> None:
    """The map of the catalogue as a page: families, places, what derives from what, measured and proven.

    One file that opens from disk and needs no network: search it, open a place's card, put places side by
    side, let it choose. Everything in it comes from cards and from the results of this package.

    \b
    Examples:
      mapformers map
      mapformers map --output docs/site
    """
    from mapformers.site.page import write_map

    path = write_map(output)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB; open it in a browser, it needs no network")
