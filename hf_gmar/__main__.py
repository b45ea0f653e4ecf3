"""``python -m hf_gmar`` is the command ``hf-gmar``."""

from hf_gmar.cli.main import app

if __name__ == "__main__":
    app()
