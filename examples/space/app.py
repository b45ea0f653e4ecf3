"""hf_gmar's web page as a Hugging Face Space: the first model is the one to begin with."""

from hf_gmar.app import Limits, serve

MODELS = ["bundled", "google/vit-base-patch16-224"]

if __name__ == "__main__":
    serve(MODELS, host="0.0.0.0", limits=Limits(seconds=120))  # noqa: S104  # a Space is public
