"""What the test vectors hold, as records, and how the files are written: `python -m tests.vectors.make`.

The records are the truth and the files are golden: a change of a file that is not a change of the contract is a defect.
The uncompressed vectors are one complete generation, whose root is root.bin, and a few objects beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.contract.objects import FORMAT_VERSION, HEADER, MAGIC, ObjectType, Sealed, digest_of
from sidecar.contract.records import (
    Activity,
    Bitmap,
    CatalogRecord,
    CatalogShard,
    ContentSet,
    ContentShard,
    CustomerRecord,
    CustomerShard,
    Enrollment,
    Freshness,
    FreshnessShard,
    Marketing,
    Metadata,
    Modified,
    QueryRecord,
    QueryShard,
    Record,
    Root,
    RunEnrollment,
    Segment,
    branches_of,
    open_record,
    seal_record,
)
from sidecar.contract.words import ContentType, PullState, query_hash
from sidecar.errors import ContractError

HERE: Final = Path(__file__).parent
DAY_MS: Final = 86_400_000
PUBLISHED_MS: Final = 1_790_000_000_000


class Vector(NamedTuple):
    """A file, the record in it, what it shows, and whether its payload is compressed."""

    record: Record
    shows: str
    compressed: bool = False


def uncompressed(record: Record) -> Sealed:
    """The object of a writer that never compresses: the same bytes whatever the version of zstd."""
    payload = record.encode()
    data = HEADER.pack(MAGIC, FORMAT_VERSION, record.TYPE, 0, len(payload)) + payload
    return Sealed(digest_of(data), data)


def data_of(vector: Vector) -> bytes:
    return (seal_record if vector.compressed else uncompressed)(vector.record).data


def _uuid(first: int, last: int) -> bytes:
    return bytes([first, *range(1, 15), last])


def _vectors() -> dict[str, Vector]:
    vectors: dict[str, Vector] = {}

    def add(name: str, record: Record, shows: str) -> bytes:
        vectors[name] = Vector(record, shows)
        return uncompressed(record).digest

    def branches(field: str, kind: ObjectType, children: Mapping[int, bytes]) -> dict[int, bytes]:
        return {
            number: add(
                f"branch_{field}_{number:x}",
                branch,
                f"of {field}: {', '.join(f'{16 * number + place:#04x}' for place in branch.children)}",
            )
            for number, branch in branches_of(kind, children).items()
        }

    segment = add(
        "segment",
        Segment(
            first=0,
            types=bytes([ContentType.COURSE, ContentType.COURSE_RUN, ContentType.COURSE_RUN, 3, 4, ContentType.COURSE]),
            keys=(
                "edX+DemoX",
                "course-v1:edX+DemoX+2026_T1",
                "course-v1:edX+DemoX+2026_T2",
                "2f1b9f9c-5d0e-4c8e-9d57-3b9f0f6f0001",
                "2f1b9f9c-5d0e-4c8e-9d57-3b9f0f6f0002",
                "École+Été",
            ),
            parents=(None, 0, 0, None, None, None),
            uuids=(_uuid(0xA0, 0), None, _uuid(0xA0, 2), _uuid(0xA0, 3), _uuid(0xA0, 4), None),
        ),
        "six ordinals: a course and its two runs, a program, a pathway, a course with accents",
    )
    metadata = add(
        "metadata",
        Metadata("edX+DemoX", ContentType.COURSE, (b'{"key":"edX+DemoX","url":"', b'","title":"D\xc3\xa9mo"}')),
        "a document in two parts",
    )
    own = add(
        "metadata_override",
        Metadata("edX+DemoX", ContentType.COURSE, (b'{"key":"edX+DemoX","runs":3}',)),
        "a document in one part, which one query has instead of metadata.bin",
    )
    places = add(
        "metadata_places",
        Metadata(
            "edX+DemoX",
            ContentType.COURSE,
            (
                b'{"content_last_modified":',
                Modified(),
                b',"marketing_url":',
                Marketing(b"/d?z=1", b"/d?utm_medium=enterprise&utm_source=", b"&z=1"),
                b',"course_runs":[{"key":"run+1"',
                RunEnrollment(b"edX+DemoX", b"run%2B1", b"run+1"),
                b"}]",
                Activity(b"course/edX+DemoX"),
                Enrollment(False, b"edX+DemoX", None, b"run+1", None),
                b"}",
            ),
        ),
        "a course with every kind of place",
    )
    of_run = add(
        "metadata_places_run",
        Metadata(
            "course-v1:edX+DemoX+2026_T1",
            ContentType.COURSE_RUN,
            (
                b'{"content_last_modified":',
                Modified(),
                Enrollment(
                    False, b"edX+DemoX", b"course-v1%3AedX%2BDemoX%2B2026_T1", b"course-v1:edX+DemoX+2026_T1", None
                ),
                b"}",
            ),
        ),
        "a course run, whose link is of its course where there is a portal",
    )
    executive = add(
        "metadata_places_executive",
        Metadata(
            "École+Été",
            ContentType.COURSE,
            (
                b'{"content_last_modified":',
                Modified(),
                Enrollment(True, "École+Été".encode(), None, b'run \\"1\\"', b"SKU+1"),
                b"}",
            ),
        ),
        "executive education with a sku, and quotes that are escaped as in JSON",
    )
    content = add(
        "content",
        ContentShard(
            first=0,
            metadata=(metadata, None, None, None, None, None),
            modified_ms=(PUBLISHED_MS - DAY_MS, 0, 0, 1, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF),
        ),
        "six ordinals, of which one has a document; times of every width",
    )
    empty = add("bitmap_empty", Bitmap.of([]), "the empty set")
    array = add("bitmap_array", Bitmap.of([0, 2, 5]), "0, 2, 5: a container of an array")
    runs = add("bitmap_runs", Bitmap.of(range(6)), "0 to 5: a container of runs")
    add("bitmap_tie", Bitmap.of([1, 2, 3]), "1, 2, 3, as small as runs as it is as an array: it is the latter")
    add("bitmap_bitset", Bitmap.of(range(0, 16_384, 3)), "every third number below 16,384: a container of bits")
    add(
        "bitmap_wide",
        Bitmap.of([0, 65_535, 65_536, 0x7FFF_FFFF, 0xFFFF_FFFF, *range(131_072, 131_172)]),
        "containers of both kinds up to the greatest ordinal",
    )
    everything, one = {"content_type": "course"}, {"content_type": "course", "aggregation_key": ["course:edX+DemoX"]}
    pulled, due = query_hash(everything), query_hash(one)
    never = QueryRecord(due, None, None, None, json.dumps(one), None, None)
    queries = {
        pulled[0]: add(
            "queries",
            QueryShard(
                (
                    QueryRecord(
                        hash=pulled,
                        id=7,
                        uuid=_uuid(0xB0, 1),
                        title="Everything",
                        content_filter=json.dumps(everything),
                        v1=ContentSet(array, runs, empty),
                        v2=ContentSet(runs, runs, array),
                        overrides_v1=((0, own),),
                        overrides_v2=((0, places), (1, of_run), (5, executive)),
                    ),
                )
            ),
            "a pulled query with everything that a record can have",
        ),
        due[0]: add("queries_never_pulled", QueryShard((never,)), "a query that nobody owns and that was never pulled"),
    }
    freshness = {
        pulled[0]: add(
            "freshness",
            FreshnessShard(
                (
                    Freshness(
                        pulled, PUBLISHED_MS - DAY_MS, PullState.FAILING, _uuid(0xC0, 1), PUBLISHED_MS - 2 * DAY_MS
                    ),
                )
            ),
            "a query whose last pull failed",
        ),
        due[0]: add(
            "freshness_due",
            FreshnessShard((Freshness(due, None, PullState.DUE, None, None),)),
            "a query that is to be pulled",
        ),
    }
    customer = _uuid(0x1F, 9)
    catalogs = {
        0x10: add(
            "catalogs",
            CatalogShard(
                (
                    CatalogRecord(
                        uuid=_uuid(0x10, 1),
                        number=1,
                        wanted=due,
                        serving=pulled,
                        customer=customer,
                        customer_name="Université Ouverte",
                        title="All of it",
                        course_modes='["verified", "audit"]',
                        audit_urls=True,
                        created_ms=PUBLISHED_MS - 2 * DAY_MS,
                        modified_ms=PUBLISHED_MS - DAY_MS,
                    ),
                    CatalogRecord(_uuid(0x10, 2), 2, due, None, customer, "", "", "[]", False, 0, 0),
                )
            ),
            "a catalog that serves one query and wants another, and one that never had content",
        )
    }
    customers = {
        0x1: add(
            "customers",
            CustomerShard((CustomerRecord(customer, "ouverte", True, "Université Ouverte", PUBLISHED_MS),)),
            "a customer, in the shard of the first four bits of its uuid",
        )
    }
    counts = {"catalogs": 2, "content": 6, "customers": 1, "queries": 2}
    nothing = Root(1, 1, 0, 0, None, 0, (), (), {}, {}, {}, {}, {}, "")
    parent = add("root_empty", nothing, "the first generation of an empty registry")
    add(
        "root",
        Root(
            epoch=3,
            generation=2,
            published_at_ms=PUBLISHED_MS,
            clock=41,
            parent=parent,
            ordinals=6,
            dictionary=tuple(branches("dictionary", ObjectType.SEGMENT, {0: segment}).values()),
            content=tuple(branches("content", ObjectType.CONTENT, {0: content}).values()),
            queries=branches("queries", ObjectType.QUERIES, queries),
            freshness=branches("freshness", ObjectType.FRESHNESS, freshness),
            catalogs=branches("catalogs", ObjectType.CATALOGS, catalogs),
            customers=customers,
            counts=counts,
            producer="tests/vectors",
        ),
        "the second generation: every other object that stands in section 4, by its digest",
    )
    for name in ("root", "queries"):
        vectors[f"{name}_compressed"] = Vector(vectors[name].record, f"{name}.bin with a compressed payload", True)
    runs_of_two = [f"course-v1:edX+Demo{course}+2026_T{term}" for course in range(8) for term in (1, 2)]
    many = Segment(
        first=1024,
        types=bytes([ContentType.COURSE_RUN] * len(runs_of_two)),
        keys=tuple(runs_of_two),
        parents=tuple(900 + n // 2 for n in range(len(runs_of_two))),
        uuids=(None,) * len(runs_of_two),
    )
    vectors["segment_compressed"] = Vector(many, "sixteen course runs from ordinal 1,024 on, compressed", True)
    text = b'{"key":"edX+DemoX","description":"' + b"A course about courses. " * 40 + b'"}'
    document = Metadata("edX+DemoX", ContentType.COURSE, (text[:500], b"", text[500:]))
    vectors["metadata_compressed"] = Vector(
        document, "a longer document in three parts, one of them empty, compressed", True
    )
    return dict(sorted(vectors.items()))


VECTORS: Final[Mapping[str, Vector]] = _vectors()


def readme(files: Mapping[str, bytes]) -> str:
    """The README of these files."""
    rows = [
        f"| `{name}.bin` | {VECTORS[name].record.TYPE.name.lower()} | {len(data)} | {VECTORS[name].shows} "
        f"| `{digest_of(data).hex()}` |"
        for name, data in files.items()
    ]
    return "\n".join(
        [
            "# Golden bytes of the contract",
            "",
            "One object a file, header included, as `sidecar/contract/__init__.py` specifies them. The records in them",
            "are spelled out in `make.py`, which wrote the files and this page: `python -m tests.vectors.make`.",
            "It leaves a compressed file alone as long as that opens to its record: zstd may change what it writes.",
            "The uncompressed files are one complete generation, whose root is `root.bin`, and some objects beside it.",
            "`tests/sidecar/contract/test_vectors.py` reads and writes all of them.",
            "",
            "A reader in another language should open every file to the record in `make.py`, and refuse it after any",
            "change of any byte.",
            "",
            "| file | type | bytes | shows | digest (blake2b-256) |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _is_current(vector: Vector, path: Path) -> bool:
    try:
        data = path.read_bytes()
        return open_record(digest_of(data), data, ObjectType(vector.record.TYPE)) == vector.record
    except (FileNotFoundError, ContractError):
        return False


def main() -> None:
    files: dict[str, bytes] = {}
    for name, vector in VECTORS.items():
        path = HERE / f"{name}.bin"
        if not (vector.compressed and _is_current(vector, path)):
            path.write_bytes(data_of(vector))
        files[name] = path.read_bytes()
    (HERE / "README.md").write_text(readme(files), encoding="utf-8")


if __name__ == "__main__":
    main()
