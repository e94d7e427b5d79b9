"""Papers as BibTeX entries, and which options of a method are whose idea."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from netsim_ddp.options import Options


@dataclass(frozen=True)
class Citation:
    """One BibTeX entry; ``fields`` in the order in which they are printed."""

    kind: str
    key: str
    fields: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        lines = "".join(f"  {name} = {{{value}}},\n" for name, value in self.fields)
        return f"@{self.kind}{{{self.key},\n{lines}}}\n"


def paper(key: str, author: str, title: str, venue: str, year: int, *, journal: bool = False) -> Citation:
    """A paper of a conference, or with ``journal`` of a journal."""
    where = ("journal" if journal else "booktitle", venue)
    fields = (("author", author), ("title", title), where, ("year", str(year)))
    return Citation("article" if journal else "inproceedings", key, fields)


NEURIPS = "Advances in Neural Information Processing Systems"
ICML = "International Conference on Machine Learning"
ICLR = "International Conference on Learning Representations"

_KARIMIREDDY = paper(
    "karimireddy2019error",
    "Karimireddy, Sai Praneeth and Rebjock, Quentin and Stich, Sebastian U. and Jaggi, Martin",
    "Error Feedback Fixes {SignSGD} and other Gradient Compression Schemes", ICML, 2019,
)  # fmt: skip
_DGC = paper(
    "lin2018deep", "Lin, Yujun and Han, Song and Mao, Huizi and Wang, Yu and Dally, William J.",
    "Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed Training", ICLR, 2018,
)  # fmt: skip
_DOUBLESQUEEZE = paper(
    "tang2019doublesqueeze", "Tang, Hanlin and Yu, Chen and Lian, Xiangru and Zhang, Tong and Liu, Ji",
    "{DoubleSqueeze}: Parallel Stochastic Gradient Descent with Double-pass Error-Compensated Compression",
    ICML, 2019,
)  # fmt: skip
_ONE_BIT_ADAM = paper(
    "tang2021onebit",
    "Tang, Hanlin and Gan, Shaoduo and Awan, Ammar Ahmad and Rajbhandari, Samyam and Li, Conglong and "
    "Lian, Xiangru and Liu, Ji and Zhang, Ce and He, Yuxiong",
    "1-bit {Adam}: Communication Efficient Large-Scale Training with {Adam}'s Convergence Speed", ICML, 2021,
)  # fmt: skip
_GTOPK = paper(
    "shi2019distributed",
    "Shi, Shaohuai and Wang, Qiang and Zhao, Kaiyong and Tang, Zhenheng and Wang, Yuxin and Huang, Xiang and "
    "Chu, Xiaowen",
    "A Distributed Synchronous {SGD} Algorithm with Global Top-k Sparsification for Low Bandwidth Networks",
    "International Conference on Distributed Computing Systems", 2019,
)  # fmt: skip
_SIDCO = paper(
    "abdelmoniem2021efficient",
    "Abdelmoniem, Ahmed M. and Elzanaty, Ahmed and Alouini, Mohamed-Slim and Canini, Marco",
    "An Efficient Statistical-based Gradient Compression Technique for Distributed Training Systems",
    "Conference on Machine Learning and Systems", 2021,
)  # fmt: skip
_QSGD = paper(
    "alistarh2017qsgd",
    "Alistarh, Dan and Grubic, Demjan and Li, Jerry and Tomioka, Ryota and Vojnovic, Milan",
    "{QSGD}: Communication-Efficient {SGD} via Gradient Quantization and Encoding", NEURIPS, 2017,
)  # fmt: skip


def of_options(options: Options, params: Mapping[str, Any], optimizer: str) -> Iterator[Citation]:
    """The citations of what a method with these ``options`` did, by its ``params``, under ``optimizer``."""
    params = {key: value for key, value in params.items() if key in options}
    if "feedback" in options and params.get("feedback", True) is not False:
        yield _KARIMIREDDY
    if "split" in str(params.get("collective", "")):  # as the cell recorded it
        yield _DOUBLESQUEEZE  # owners compress with error feedback too
        yield _GTOPK  # an owner sends on the largest of the sums, not of each rank's entries
    if params.get("selector") == "sampled" or any(map(params.get, ("momentum", "clip", "warmup_steps"))):
        yield _DGC
    if params.get("selector") == "fitted":
        yield _SIDCO
    if params.get("values") == "int8-stochastic":
        yield _QSGD
    if "feedback" in options and optimizer in ("adam", "adamw"):
        yield _ONE_BIT_ADAM
