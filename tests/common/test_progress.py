import ctypes
import subprocess
import sys
from pathlib import Path

from colbert_diffusion.common.progress import note, only_our_output


def test_everything_but_our_own_lines_goes_to_the_log(tmp_path: Path) -> None:
    script = (
        "import ctypes, os, sys\n"
        "from pathlib import Path\n"
        "from colbert_diffusion.common.progress import note, only_our_output\n"
        "with only_our_output(Path(sys.argv[1])):\n"
        "    print('python')\n"
        "    os.write(2, b'descriptor\\n')\n"
        "    ctypes.CDLL(None).puts(b'stdio')\n"  # as faiss prints: buffered in C
        "    note('ours')\n"
        "print('result')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"
    assert done.stderr == "ours\n"
    assert sorted((tmp_path / "log").read_text().split()) == ["descriptor", "python", "stdio"]


def test_output_comes_back_after_an_error(tmp_path: Path, capfd: object) -> None:
    try:
        with only_our_output(tmp_path / "log"):
            raise RuntimeError
    except RuntimeError:
        note("back")
    assert ctypes.CDLL(None).fflush(None) == 0
    assert capfd.readouterr().err == "back\n"  # type: ignore[attr-defined]
