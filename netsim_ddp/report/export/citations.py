"""Whom to cite: a BibTeX entry for every method, and each of its options, that a result used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netsim_ddp.report.collection import Collection
from netsim_ddp.results.record import Cell


@dataclass(frozen=True)
class Entry:
    """One BibTeX entry; ``fields`` in the order in which they are printed."""

    kind: str
    key: str
    fields: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        lines = "".join(f"  {name} = {{{value}}},\n" for name, value in self.fields)
        return f"@{self.kind}{{{self.key},\n{lines}}}\n"


def _paper(key: str, author: str, title: str, venue: str, year: int, *, journal: bool = False) -> Entry:
    where = ("journal" if journal else "booktitle", venue)
    fields = (("author", author), ("title", title), where, ("year", str(year)))
    return Entry("article" if journal else "inproceedings", key, fields)


_NEURIPS = "Advances in Neural Information Processing Systems"
_ICML = "International Conference on Machine Learning"
_ICLR = "International Conference on Learning Representations"

_STICH = _paper(
    "stich2018sparsified", "Stich, Sebastian U. and Cordonnier, Jean-Baptiste and Jaggi, Martin",
    "Sparsified {SGD} with Memory", _NEURIPS, 2018,
)  # fmt: skip
_KARIMIREDDY = _paper(
    "karimireddy2019error",
    "Karimireddy, Sai Praneeth and Rebjock, Quentin and Stich, Sebastian U. and Jaggi, Martin",
    "Error Feedback Fixes {SignSGD} and other Gradient Compression Schemes", _ICML, 2019,
)  # fmt: skip
_DGC = _paper(
    "lin2018deep", "Lin, Yujun and Han, Song and Mao, Huizi and Wang, Yu and Dally, William J.",
    "Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed Training", _ICLR, 2018,
)  # fmt: skip
_DOUBLESQUEEZE = _paper(
    "tang2019doublesqueeze", "Tang, Hanlin and Yu, Chen and Lian, Xiangru and Zhang, Tong and Liu, Ji",
    "{DoubleSqueeze}: Parallel Stochastic Gradient Descent with Double-pass Error-Compensated Compression",
    _ICML, 2019,
)  # fmt: skip
_POWERSGD = _paper(
    "vogels2019powersgd", "Vogels, Thijs and Karimireddy, Sai Praneeth and Jaggi, Martin",
    "{PowerSGD}: Practical Low-Rank Gradient Compression for Distributed Optimization", _NEURIPS, 2019,
)  # fmt: skip
_ONE_BIT_ADAM = _paper(
    "tang2021onebit",
    "Tang, Hanlin and Gan, Shaoduo and Awan, Ammar Ahmad and Rajbhandari, Samyam and Li, Conglong and "
    "Lian, Xiangru and Liu, Ji and Zhang, Ce and He, Yuxiong",
    "1-bit {Adam}: Communication Efficient Large-Scale Training with {Adam}'s Convergence Speed", _ICML, 2021,
)  # fmt: skip
_GTOPK = _paper(
    "shi2019distributed",
    "Shi, Shaohuai and Wang, Qiang and Zhao, Kaiyong and Tang, Zhenheng and Wang, Yuxin and Huang, Xiang and "
    "Chu, Xiaowen",
    "A Distributed Synchronous {SGD} Algorithm with Global Top-k Sparsification for Low Bandwidth Networks",
    "International Conference on Distributed Computing Systems", 2019,
)  # fmt: skip
_SIDCO = _paper(
    "abdelmoniem2021efficient",
    "Abdelmoniem, Ahmed M. and Elzanaty, Ahmed and Alouini, Mohamed-Slim and Canini, Marco",
    "An Efficient Statistical-based Gradient Compression Technique for Distributed Training Systems",
    "Conference on Machine Learning and Systems", 2021,
)  # fmt: skip
_QSGD = _paper(
    "alistarh2017qsgd",
    "Alistarh, Dan and Grubic, Demjan and Li, Jerry and Tomioka, Ryota and Vojnovic, Milan",
    "{QSGD}: Communication-Efficient {SGD} via Gradient Quantization and Encoding", _NEURIPS, 2017,
)  # fmt: skip
_MIXED = _paper(
    "micikevicius2018mixed",
    "Micikevicius, Paulius and Narang, Sharan and Alben, Jonah and Diamos, Gregory and Elsen, Erich and "
    "Garcia, David and Ginsburg, Boris and Houston, Michael and Kuchaiev, Oleksii and Venkatesh, Ganesh and Wu, Hao",
    "Mixed Precision Training", _ICLR, 2018,
)  # fmt: skip
_RING = _paper(
    "patarasuk2009bandwidth", "Patarasuk, Pitch and Yuan, Xin",
    "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations",
    "Journal of Parallel and Distributed Computing", 2009, journal=True,
)  # fmt: skip
_DDP = _paper(
    "li2020pytorch",
    "Li, Shen and Zhao, Yanli and Varma, Rohan and Salpekar, Omkar and Noordhuis, Pieter and Li, Teng and "
    "Paszke, Adam and Smith, Jeff and Vaughan, Brian and Damania, Pritam and Chintala, Soumith",
    "{PyTorch} Distributed: Experiences on Accelerating Data Parallel Training",
    "Proceedings of the VLDB Endowment", 2020, journal=True,
)  # fmt: skip

_METHODS: dict[str, tuple[Entry, ...]] = {
    "dense": (_RING,),
    "fp16": (_RING, _MIXED),
    "bf16": (_RING, _MIXED),
    "powersgd": (_POWERSGD,),
    "topk": (_STICH,),
    "topk-allgather": (_STICH,),
    "topk-dense": (_STICH,),
}
"""What each built-in method is, beside what its options add; a user's own method has its own author."""


def bibliography(collection: Collection) -> str:
    """The entries of all that appears, each once, as a BibTeX file; and netsim itself."""
    found: dict[str, Entry] = {}
    for source in collection.sources:
        trained = str(source.result.scenario.get("optimizer", "")).lower()
        for cell in source.result.cells:
            for entry in _of(cell, trained):
                found[entry.key] = entry
    netsim = Entry("software", "netsim", (("title", "netsim: what gradient compression really buys on a slow network"),
                   ("author", "{The netsim authors}"), ("year", "2026")))  # fmt: skip
    return "\n".join(entry.text for entry in [*found.values(), netsim])


def _of(cell: Cell, optimizer: str) -> Iterator[Entry]:
    params = cell.params
    yield from _METHODS.get(cell.method, ())
    if cell.overlap:
        yield _DDP
    compressed = cell.method.startswith("topk") or cell.method == "powersgd"
    if compressed and params.get("feedback", True) is not False:
        yield _KARIMIREDDY
    if cell.method == "topk" and "split" in str(params.get("collective", "")):  # as the cell recorded it
        yield _DOUBLESQUEEZE  # owners compress with error feedback too
        yield _GTOPK  # what is kept is the largest of the sums, not of each rank's entries
    if (
        params.get("momentum")
        or params.get("clip")
        or params.get("warmup_steps")
        or params.get("selector") == "sampled"
    ):
        yield _DGC
    if params.get("selector") == "fitted":
        yield _SIDCO
    if params.get("values") == "int8-stochastic":
        yield _QSGD
    if compressed and optimizer in ("adam", "adamw"):
        yield _ONE_BIT_ADAM
