"""The file of a recording: an uncompressed zip archive of ``recording.json`` and one NumPy array for each set of
gradients. Nothing in it is code, and nothing needs torch: ``zipfile``, ``json`` and ``numpy.load`` read it.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from netsim_ddp import reading
from netsim_ddp.errors import UsageError
from netsim_ddp.reading import one_line
from netsim_ddp.results.fields import validated
from netsim_ddp.results.files import replacing
from netsim_ddp.results.recording import SCHEMA_VERSION, Recording

if TYPE_CHECKING:
    import numpy as np

_JSON = "recording.json"
MAX_JSON_BYTES = 64 << 20
MAX_BYTES = 8 << 30
_HINT = "name a file of netsim record"
_JSON_INSTEAD = "is JSON, not a recording"


def _member(number: int) -> str:
    return f"gradients/{number}.npy"


def is_recording(path: Path) -> bool:
    """Whether ``path`` is to be read as a recording, by its name or its first bytes; a file that is not there is none,
    nor is a pipe, which can be read only once."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return path.suffix == ".netsim" or file.read(2) in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
    except (OSError, ValueError):
        return False


def write(path: Path, recording: Recording, sets: Sequence[np.ndarray]) -> None:
    """Write ``recording`` with its gradients, atomically.

    Args:
        sets: for each of ``recording.gradients.steps`` one array, float16 [sum of ``kept``].

    Raises:
        UsageError: the folder is missing or cannot be written.
        EnvironmentFault: the disk is full, or a quota.
    """
    import numpy as np

    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_JSON, recording.model_dump_json())
        for number, values in enumerate(sets):
            with archive.open(_member(number), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def read(path: Path) -> Recording:
    """What ``path`` says, without its gradients.

    Raises:
        UsageError: unreadable, truncated, something else, a newer schema, or a recording that contradicts itself.
    """
    with _Open(path) as archive:
        return archive.recording()


def read_gradients(path: Path) -> tuple[Recording, list[np.ndarray]]:
    """What ``path`` says, and its sets of gradients, each float16 [sum of ``gradients.kept``], as the file holds them.

    Raises:
        UsageError: as :func:`read`, or a set is missing, damaged, of another size, or not finite.
    """
    return read(path), list(gradient_sets(path))


def gradient_sets(path: Path) -> Iterator[np.ndarray]:
    """The sets of :func:`read_gradients` one after the other, so that no more than one is held.

    Raises:
        UsageError: as :func:`read_gradients`.
    """
    with _Open(path) as archive:
        recording = archive.recording()
        for number in range(len(recording.gradients.steps)):
            yield archive.array(number, sum(recording.gradients.kept))


class _Open:
    """A recording's archive, open, whatever it turns out to be."""

    def __init__(self, path: Path) -> None:
        self._path, self._shown = path, one_line(str(path))

    def __enter__(self) -> _Open:
        self._file = self._opened()
        try:
            self._archive = zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            with self._file as file:
                file.seek(0)
                raise self._refused(self._instead(file.read(64))) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._file.close()

    def _opened(self) -> IO[bytes]:
        try:
            if not self._path.is_file():  # a pipe or a device has no end to look at first
                os.stat(self._path)
                raise UsageError(f"{self._shown} is no file", hint=_HINT)
            if (size := self._path.stat().st_size) > MAX_BYTES:
                raise self._refused(f"is {size >> 30} GiB, and a recording at most {MAX_BYTES >> 30}")
            return self._path.open("rb")
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or "no file has such a name"
            raise UsageError(f"cannot read {self._shown}: {problem}", hint=_HINT) from None

    def _refused(self, what: str) -> UsageError:
        hint = f"a result is measured again by --config {self._shown}" if what == _JSON_INSTEAD else _HINT
        return UsageError(f"{self._shown} {what}", hint=hint)

    def _instead(self, begin: bytes) -> str:
        if not begin:
            return "is empty"
        if begin.startswith(b"PK\x03\x04"):
            return "is no whole recording: its end is missing, as after a copy that was cut off"
        if begin[:1] == b"\x80" and begin[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            return "is a pickle, which can run any code and is not opened"
        if begin.lstrip()[:1] in (b"{", b"["):
            return _JSON_INSTEAD
        return "is not a recording"

    def _content(self, name: str, limit: int) -> bytes:
        """The member ``name``, which may have ``limit`` bytes."""
        try:
            entry = self._archive.getinfo(name)
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise self._refused(f"is not a recording: {name} in it is compressed or encrypted")
            if entry.file_size > limit:
                raise self._refused(f"is not a recording: {name} in it has {entry.file_size} bytes")
            return self._archive.read(entry)
        except KeyError:
            other = any(each.endswith("data.pkl") for each in self._archive.namelist())
            what = "a file of torch.save" if other else f"a zip archive without {name}"
            raise self._refused(f"is {what}, not a recording") from None
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
            raise self._refused(f"is damaged: {name}: {one_line(str(error))}") from None

    def recording(self) -> Recording:
        content = self._content(_JSON, MAX_JSON_BYTES)
        text = reading.decode_text(content, source=f"{self._shown}, {_JSON}", hint=_HINT)
        data = reading.parse_json(text, source=f"{self._shown}, {_JSON}", hint=_HINT)
        if not isinstance(data, dict) or data.get("kind") != "recording":
            raise self._refused(f"is not a recording: its {_JSON} does not say so")
        version = data.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise UsageError(
                f"{self._shown} has schema version {version} of recordings; this netsim reads up to {SCHEMA_VERSION}",
                hint="upgrade netsim",
            )
        return validated(Recording, data, source=self._shown, hint=_HINT)

    def array(self, number: int, wanted: int) -> np.ndarray:
        import numpy as np

        name = _member(number)
        content = self._content(name, 2 * wanted + 4096)
        try:
            values: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise self._refused(f"is damaged: {name}: {one_line(str(error))}") from None
        if values.dtype != np.float16 or values.shape != (wanted,):
            raise self._refused(
                f"is damaged: {name} is {values.dtype} {values.shape}, not float16 ({wanted},)"
            )
        if not np.isfinite(values).all():
            raise self._refused(f"holds gradients that are not finite, in {name}: record steps without any")
        return values
