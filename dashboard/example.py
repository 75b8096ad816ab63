"""Where the recorded runs are that ship with the package.

They are made by `examples/make_example_runs.py`. Not covered: what is in them; the script says that.
"""

from pathlib import Path

from ..runfile.layout import RunFileError


def example_runs() -> Path:
    """Return the folder of the recorded runs.

    Raises:
        RunFileError: They were left out of this installation.

    >>> sorted(path.stem for path in example_runs().glob("*.h5"))[0]
    'addition-lr0.05'
    """
    folder = Path(__file__).with_name("recorded")
    if not any(folder.glob("*.h5")):
        raise RunFileError(f"{folder}: holds no run; make them with examples/make_example_runs.py, or train some")
    return folder
