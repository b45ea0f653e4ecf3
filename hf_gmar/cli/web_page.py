"""``hf-gmar app``: a web page for explanations."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_gmar.cli.options import command, err, out, quiet
from hf_gmar.models.defaults import BUNDLED


@command
def app(
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="The models that visitors may choose, the first one at the beginning; default: "
            f"{BUNDLED}.",
            metavar="ID_OR_FOLDER...",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help="The first classes of models of image and text; visitors write others.",
            metavar="TEXT...",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 takes visitors from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    seconds: Annotated[
        int, typer.Option(min=1, help="Working time of a request, after which it ends.")
    ] = 60,
) -> None:
    """Run ``hf-gmar app``."""
    from hf_gmar.app.server import gradio_or_error

    gradio_or_error()  # before a model is downloaded
    err.print("Loading the page ...", highlight=False)
    quiet()
    from hf_gmar.app import Limits, serve

    serve(
        models or [BUNDLED],
        host=host,
        port=port,
        device=device,
        prompts=prompts,
        limits=Limits(seconds=seconds),
        ready=lambda address: out.print(
            f"hf-gmar app: {address}  (Ctrl-C ends it)", soft_wrap=True
        ),
    )
