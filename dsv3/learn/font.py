"""Make the Chinese font that the figures use: a subset of Noto Sans SC under another family name.

    pip install pylopdf-fonts-zh-cn          # carries NotoSansSC-Regular.otf
    python -m dsv3.learn.font                # or: python -m dsv3.learn.font path/to/NotoSansSC-Regular.otf

A developer's command, for when the tests say that a label needs a character that the subset lacks. That is rare: it
holds the characters of every Chinese catalogue and of the glossary, and the 3,755 common ones of GB 2312, so that not
every new label makes a new file of it.
Noto Sans SC stands under the SIL Open Font License, which lets a changed version be shared under the same licence and
another name; the licence lies beside the font. Latin letters are not in it: figures take them from matplotlib's own.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib import resources, util
from io import BytesIO
from pathlib import Path
from typing import Any

import polib
from fontTools import subset
from fontTools.ttLib import TTFont, TTLibError

from dsv3.errors import Dsv3Error, RequestError
from dsv3.learn import glossary, labels
from dsv3.learn.pages import write_bytes

FAMILY = "dsv3 Sans SC"
SOURCE_PACKAGE, SOURCE_FILE = "pylopdf_fonts_zh_cn", "NotoSansSC-Regular.otf"
PUNCTUATION = "，。、；：？！（）《》〈〉「」『』【】·—…“”‘’％＋－＝／～"
FONT_BYTES = 1_000_000


def wanted_characters(root: Path) -> set[str]:
    """Common characters and those of the labels, of the chapters' catalogues under ``root`` and of the glossary."""
    texts = [
        *labels.catalogue("zh").values(),
        *(term.zh for term in glossary.terms()),
        PUNCTUATION,
        common_characters(),
    ]
    for path in sorted((root / "locales" / "zh").glob("*.po")):
        texts += [entry.msgstr for entry in polib.pofile(path.read_text(encoding="utf-8"))]
    return {character for text in texts for character in text if _is_chinese(character)}


def common_characters() -> str:
    """Level 1 of GB 2312, rows 16 to 55: by how often they are used, in the order of their sounds."""
    cells = (bytes((0xA0 + row, 0xA0 + cell)) for row in range(16, 56) for cell in range(1, 95))
    return b"".join(cells).decode("gb2312", errors="ignore")


def _is_chinese(character: str) -> bool:
    return character in PUNCTUATION or 0x2E80 <= ord(character) <= 0x9FFF or 0xFF00 <= ord(character) <= 0xFFEF


def has_characters(font: Path, characters: Iterable[str]) -> set[str]:
    """Those of ``characters`` that ``font`` can draw."""
    with TTFont(font, lazy=True) as opened:
        known: Any = opened.getBestCmap()
        return {character for character in characters if ord(character) in known}


def make(source: Path, characters: set[str]) -> bytes:
    """The subset as an OpenType file, the same bytes for the same input. Raises RequestError for an unfit source."""
    try:
        font = TTFont(source, recalcTimestamp=False)
    except (OSError, TTLibError) as error:
        raise RequestError(f"cannot read the font {source}: {error}; give an OpenType file of Noto Sans SC") from None
    cmap: Any = font.getBestCmap()
    if absent := sorted(character for character in characters if ord(character) not in cmap):
        raise RequestError(f"{source.name} has no {''.join(absent)}; give a font that covers simplified Chinese")
    options = subset.Options(
        layout_features=[], name_IDs=[0, 13, 14], notdef_outline=True, hinting=False, desubroutinize=False
    )
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[ord(character) for character in characters])
    subsetter.subset(font)
    _rename(font)
    buffer = BytesIO()
    font.save(buffer)
    return buffer.getvalue()


def _rename(font: Any) -> None:
    """The licence asks that a changed version does not use the reserved name."""
    name = font["name"]
    postscript = FAMILY.replace(" ", "-")
    for name_id, text in {
        1: FAMILY,
        2: "Regular",
        3: f"{postscript} 1",
        4: FAMILY,
        5: "Version 1.0",
        6: postscript,
    }.items():
        name.setName(text, name_id, 3, 1, 0x409)
    if "CFF " in font:
        cff = font["CFF "].cff
        cff.fontNames[0] = postscript
        cff.topDictIndex[0].FullName = cff.topDictIndex[0].FamilyName = FAMILY


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dsv3.learn.font", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "source", nargs="?", type=Path, help=f"{SOURCE_FILE} (default: from the package {SOURCE_PACKAGE})"
    )
    parser.add_argument("--root", type=Path, default=Path("."), help="the project's folder (default: this one)")
    args = parser.parse_args(arguments)
    try:
        contents = make(args.source or _installed(), wanted_characters(args.root))
        if len(contents) > FONT_BYTES:
            raise RequestError(f"the subset has {len(contents):,} bytes; at most {FONT_BYTES:,}: use fewer characters")
        target = Path(str(resources.files("dsv3"))) / "assets" / "fonts" / "dsv3-sans-sc.otf"
        write_bytes(target, contents)
    except Dsv3Error as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{target.name}: {len(contents):,} bytes", file=sys.stderr)
    return 0


def _installed() -> Path:
    spec = util.find_spec(SOURCE_PACKAGE)
    if spec is None or spec.origin is None:
        raise RequestError(
            f"no font given, and {SOURCE_PACKAGE} is not installed: pip install {SOURCE_PACKAGE.replace('_', '-')}, or "
            f"give the path of {SOURCE_FILE}"
        )
    return Path(spec.origin).parent / SOURCE_FILE


if __name__ == "__main__":
    sys.exit(main())
