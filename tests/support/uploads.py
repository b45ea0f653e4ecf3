"""What a visitor of the page may send as an image: good files, and those that must be refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from hf_gmar.data import draw_scene

SCENE = draw_scene(18).image


def file_of(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def sent(content: bytes, kind: str = "image/png") -> str:
    """A file as a browser sends it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def header_alone(width: int, height: int) -> bytes:
    """A PNG that says its size and has hardly any pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT" + bytes(20)


def good() -> dict[str, bytes]:
    """Files that must be read."""
    turned = Image.Exif()
    turned[0x0112] = 6
    grey16 = Image.fromarray(np.arange(96 * 96, dtype=np.uint16).reshape(96, 96) * 7)
    return {
        "png": file_of(SCENE),
        "jpeg": file_of(SCENE, "JPEG"),
        "turned jpeg": file_of(SCENE.resize((120, 80)), "JPEG", exif=turned),
        "cmyk jpeg": file_of(SCENE.convert("CMYK"), "JPEG"),
        "webp": file_of(SCENE, "WEBP", lossless=True),
        "gif": file_of(SCENE.convert("P"), "GIF"),
        "animation": file_of(SCENE, "GIF", save_all=True, append_images=[SCENE.rotate(90)]),
        "bmp": file_of(SCENE, "BMP"),
        "tiff": file_of(SCENE, "TIFF"),
        "avif": file_of(SCENE, "AVIF", speed=10),
        "grey": file_of(SCENE.convert("L")),
        "16 bits": file_of(grey16),
        "transparent": file_of(SCENE.convert("RGBA")),
        "one bit": file_of(SCENE.convert("1")),
        "one pixel": file_of(Image.new("RGB", (1, 1))),
        "a line": file_of(Image.new("RGB", (3000, 1))),
        "a wrong name": file_of(SCENE, "JPEG"),
    }


def bad() -> dict[str, Any]:
    """What must be refused, as it is sent."""
    png, svg = file_of(SCENE), b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>"
    return {
        "nothing": "",
        "spaces": "  ",
        "a path": "/etc/passwd",
        "a relative path": "../../etc/passwd",
        "a path of Windows": "C:\\Windows\\win.ini",
        "a file address": "file:///etc/passwd",
        "an address": "http://127.0.0.1:1/image.png",
        "a https address": "https://example.com/cat.png",
        "an address of a cloud": "http://169.254.169.254/latest/meta-data",
        "data of an address": "data:image/png;base64,http://127.0.0.1:1/",
        "data with a path": "data:image/png;base64,/../../../../etc/passwd",
        "data without base64": "data:image/png,abc",
        "plain base64": sent(png).partition(",")[2],
        "no content": "data:image/png;base64,",
        "cut off base64": sent(png)[:-3],
        "letters outside base64": "data:image/png;base64,%%%%",
        "a line break": "data:image/png;base64,\n" + sent(png).partition(",")[2],
        "hidden characters": "data:image/png;base64,\0\0\0\0",
        "a broken example": "example:abc",
        "a negative example": "example:-1",
        "a long example": "example:" + "9" * 5000,
        "an example with more": "example:18/../../x",
        "text": sent(b"hello"),
        "half a png": sent(png[: len(png) // 2]),
        "half a jpeg's header": sent(file_of(SCENE, "JPEG")[:10]),
        "bytes": sent(bytes(range(256))),
        "zeros": sent(bytes(10_000)),
        "html": sent(b"<script>alert(1)</script>", "text/html"),
        "svg": sent(svg, "image/svg+xml"),
        "pdf": sent(b"%PDF-1.7\n1 0 obj"),
        "zip": sent(b"PK\x03\x04" + bytes(100)),
        "a program": sent(b"\x7fELF" + bytes(100)),
        "pickle": sent(b"\x80\x04cos\nsystem\n(S'true'\ntR."),
        "npy": sent(b"\x93NUMPY\x01\x00"),
        "eps": sent(file_of(SCENE, "EPS")),
        "icon": sent(file_of(SCENE, "ICO")),
        "jpeg 2000": sent(file_of(SCENE, "JPEG2000")),
        "a bomb": sent(header_alone(100_000, 100_000)),
        "too many pixels": sent(header_alone(5_000, 4_000)),
        "no pixels": sent(header_alone(0, 5)),
        "too many bytes": sent(png + bytes(9 * 2**20)),
    }


def no_texts() -> dict[str, Any]:
    """What a program may send in place of a text."""
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    return {
        "a number": 7,
        "a list": ["example:18"],
        "a file": file,
        "an address as a file": {**file, "path": "http://127.0.0.1:1/image.png"},
        "a file with an address": {**file, "url": "http://127.0.0.1:1/image.png"},
        "a list of files": [file],
        "truth": True,
    }
