"""hf_gmar's web page as a Hugging Face Space: the first model is the one to begin with."""

import os

from hf_gmar.app import Limits, serve

# A variable of the Space, in its settings, may name others.
MODELS = os.environ.get("MODELS", "bundled google/vit-base-patch16-224").split()

if __name__ == "__main__":
    serve(
        MODELS,
        host="0.0.0.0",  # noqa: S104  # a Space is public
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        limits=Limits(seconds=120),
    )
