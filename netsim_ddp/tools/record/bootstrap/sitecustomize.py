"""What Python runs at its start, in every process of a program that ``netsim record`` starts: it arranges that the
recorder begins when torch has been imported, and changes nothing else. Standard library only."""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))


def _the_users_own() -> None:
    """Run the ``sitecustomize`` that this one stands before."""
    sys.path[:] = [each for each in sys.path if os.path.abspath(each) != _HERE]
    own = sys.modules.pop("sitecustomize")
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", own)


def _mark(what: str, text: str = "") -> None:
    """Leave word for the command that waits."""
    folder = os.environ["NETSIM_RECORD_TO"]
    try:
        with open(os.path.join(folder, f"{what}-{os.getpid()}"), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return  # the command has ended


def _begin() -> None:
    try:
        recording = importlib.import_module("netsim_ddp.tools.record.child")
        recording.begin()
    except Exception as error:  # noqa: BLE001 - the program must run on
        _mark("failed", f"{type(error).__name__}: {error}")


class _AfterTorch:
    """Finds ``torch`` as it would be found, and begins when it has been executed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch":
            return None
        spec: Any = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_begin(module: Any) -> None:
                execute(module)
                sys.meta_path[:] = [each for each in sys.meta_path if each is not self]
                _begin()

            spec.loader.exec_module = execute_and_begin
        return spec


if "NETSIM_RECORD_TO" in os.environ:
    _mark("python")
    if importlib.util.find_spec("netsim_ddp") is None:
        _mark("without", sys.executable)
    elif "torch" in sys.modules:
        _begin()
    else:
        sys.meta_path.insert(0, _AfterTorch())
_the_users_own()
