"""A small reward model that ships with the package, so that every command can be tried without a network."""

import shutil
from importlib import resources
from pathlib import Path

# One question that is not in the training set, with a good, a mediocre and a bad answer, in that order.
DEMO_CHAT: tuple[str, tuple[str, str, str]] = (
    "How do I stop my cat from waking me at five in the morning?",
    (
        "Play with your cat in the evening and feed her late, because a tired cat sleeps longer in the morning. "
        "When your cat wakes you at five, stay in bed and do not feed her, or she learns that it works. "
        "Be patient: it takes about two weeks.",
        "Close the bedroom door, so that your cat stays out in the morning.",
        "Stop wasting my time, genius. Buy the cat a watch.",
    ),
)


def checkpoint_path() -> Path:
    """The folder of the demo checkpoint inside the installed package, in the Hugging Face hub's layout."""
    return Path(str(resources.files("rm_export.demo") / "checkpoint"))


def write_demo(directory: Path) -> Path:
    """Copy the demo checkpoint to `directory`, which is made if needed, and return it.

    Raises FileExistsError when `directory` exists and is not an empty folder.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not an empty folder; give the demo a new folder")
    shutil.copytree(checkpoint_path(), directory, dirs_exist_ok=True)
    return directory
