"""``python -m skillhub``: the same as the command ``skillhub``."""

from skillhub.cli import main

main()
