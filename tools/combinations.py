"""docs/combinations.md: what goes with what, tried out.

python tools/combinations.py            print it
python tools/combinations.py --write    write docs/combinations.md
"""

import sys
from pathlib import Path

from mapformers.report.combinations import as_markdown, combinations

PAGE = Path(__file__).resolve().parents[1] / "docs" / "combinations.md"
HEAD = """# What goes with what

Made by `make readme`: a small layer of each mechanism is built with each entry of the other ports and run in
training, with `causal=True` where it takes that. *ok*: it runs, and `tests/contract/test_product.py` and
`tests/contract/test_ports.py` hold it against the dense reference. *refuses*: one error that names both.

"""


def written() -> str:
    """The page as it should read."""
    return HEAD + as_markdown(combinations())


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(written(), encoding="utf-8")
    else:
        print(written(), end="")
