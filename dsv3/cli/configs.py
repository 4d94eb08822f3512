"""Configurations by name: ``config_16B`` is found in the source tree and in an installed package alike."""

from pathlib import Path

from dsv3.config import ModelConfig
from dsv3.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries the files inside the package; a source tree has them beside it, where readers look for them.
DIRECTORIES = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def named_configs() -> dict[str, Path]:
    """Name -> file of the model configurations that come with dsv3, sorted by name."""
    found = {path.stem: path for directory in DIRECTORIES for path in directory.glob("config_*.json")}
    return dict(sorted(found.items()))


def load_config(name_or_path: str) -> ModelConfig:
    """The configuration in a file, in the ``config.json`` of a checkpoint's directory, or with a name like config_16B.

    A file wins over a name. Raises ConfigError that lists the names when there is neither.
    """
    path, named = Path(name_or_path), named_configs()
    if path.is_dir():
        return ModelConfig.from_json(path / "config.json")
    if not path.exists():
        name = name_or_path.removesuffix(".json")
        if name not in named:
            raise ConfigError(
                f"no configuration {name_or_path!r}: there is no such file, and the names are {', '.join(named)}"
            )
        path = named[name]
    return ModelConfig.from_json(path)
