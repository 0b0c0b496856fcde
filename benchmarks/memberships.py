"""How many memberships a second does the compiler turn into sealed bitmaps?

The input is the indexer's mirror of the world's registry, which has members, facts and the few documents that overrides
are made of in memory; the output are sealed objects in memory. A membership is a member of a query; for each the
compiler also works out what is contained and what is listed. One process, one core. The peer builds the same roaring
bitmaps from arrays that have the finished ordinals already, and serialises them: no closure, no seal.

For information, a whole generation: dictionary, shards and all, as the first one after a start.
"""

import time
from array import array
from typing import Final

from pyroaring import BitMap

from benchmarks.bench import Bench
from benchmarks.rows import Row, interleaved
from indexer.compiler import Compiler, compile_query
from sidecar.contract.objects import HEADER, ObjectType, Sealed
from sidecar.contract.records import Bitmap, open_record

QUESTION: Final = "compiling"
GOAL: Final = 1_000_000.0
PEER: Final = "bitmaps from arrays"


def measure(bench: Bench) -> list[Row]:
    """A row for the goal, one beside the peer, one for a whole generation."""
    mirror, texts = bench.world.read_mirror()
    results = [result for _, result in sorted(mirror.results.items()) if result.members is not None]
    memberships = sum(len(result.members or ()) for result in results)
    sealed = [one for result in results for one in compile_query(mirror, result, texts)[1]]
    arrays = [_ordinals(one) for one in sealed if HEADER.unpack_from(one.data)[2] == ObjectType.BITMAP]

    def compiled() -> float:
        began = time.perf_counter()
        for result in results:
            compile_query(mirror, result, texts)
        return memberships / (time.perf_counter() - began)

    def whole() -> float:
        began = time.perf_counter()
        changes = mirror.everything()
        for _ in Compiler(mirror).update(changes, changes.hashes, texts):
            pass
        return memberships / (time.perf_counter() - began)

    def bare() -> float:
        began = time.perf_counter()
        for ordinals in arrays:
            bitmap = BitMap(ordinals)
            bitmap.run_optimize()
            bitmap.serialize()
        return memberships / (time.perf_counter() - began)

    compiled()
    taken = interleaved(bench.rounds, {"compiler": compiled, "whole": whole, PEER: bare})
    ours, theirs = tuple(taken["compiler"]), tuple(taken[PEER])
    note = f"{memberships:,} memberships of {len(results)} queries"
    return [
        Row(QUESTION, "compile, documents in memory", "memberships/s", "at least", GOAL, ours, note=note),
        Row(QUESTION, "the same beside bare bitmaps", "memberships/s", "at least", None, ours, PEER, theirs),
        Row(QUESTION, "a whole generation", "memberships/s", "at least", None, tuple(taken["whole"])),
    ]


def _ordinals(sealed: Sealed) -> "array[int]":
    bitmap = open_record(sealed.digest, sealed.data, ObjectType.BITMAP)
    assert isinstance(bitmap, Bitmap)
    return array("I", bitmap.ordinals)
