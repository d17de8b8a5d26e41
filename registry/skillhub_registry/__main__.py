"""``python -m skillhub_registry``."""

from skillhub_registry.cli import main

if __name__ == "__main__":
    main()
