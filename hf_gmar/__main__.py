"""``python -m hf_gmar`` is the command ``hf-gmar``."""

from hf_gmar.cli import main

if __name__ == "__main__":
    main()
