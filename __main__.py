"""``python -m loopscope``: the same command as ``loopscope``."""

from .cli import main

if __name__ == "__main__":
    main()
