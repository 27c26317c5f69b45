"""``python -m medmtl``, which torchrun starts."""

from medmtl.cli import main

if __name__ == "__main__":
    main()
