"""The contract between indexer and sidecar: what a published generation is, byte by byte. No I/O lives here.

1. Words
--------
query hash      md5 of `json.dumps(content_filter, sort_keys=True)` as UTF-8: the hash that enterprise-catalog stores.
content key     course key, course run key, or the uuid of a program or learner pathway, as text.
ordinal         dense unsigned 32-bit number of a content key; given once, never reused or renumbered.
digest          blake2b with 32 bytes of output over all bytes of an object, header included: the object's address.
folded key      content key without case and accents: NFKD, combining characters dropped, casefolded.

Times are whole milliseconds since 1970-01-01T00:00:00Z. Uuids are 16 bytes in payloads. Numbers are unsigned.

2. Objects
----------
An object is a header of 12 bytes, little-endian, and a payload:

    offset  size  field
    0       4     magic, the bytes "ECAT"
    4       1     format version, 1
    5       1     type, section 4
    6       2     flags; bit 0: the payload is one zstd frame that names its content size. Other bits are 0
    8       4     length of the payload as it stands here, in bytes
    12      ...   payload

A reader checks, in this order, each with an error of its own: digest, magic, version, type, flags and length, frame,
payload. Nothing follows the payload. A payload is at most 64 MiB before compression. Writers compress every payload
but bitmaps with zstd level 3 where that makes it smaller and it is 256 bytes or more. Payloads are msgpack (strict
UTF-8, no extension types, every value in its shortest form, no map key twice), except bitmaps. One value has one
encoding: lists of records are sorted by their first field and repeat none, and what is equal is equal byte for byte,
so that it is stored once.

3. Pieces of payloads
---------------------
digests         bin, 32 bytes each, end to end.
fan             bin: a mask of 2 bytes, a little-endian number in which bit n says that there is a child n, then one
                digest for each set bit in the order of n.
branches        what a list is cut into, so that a change of one child moves few digests: branch n is an object of type
                10 that has the children 16n to 16n+15 of the list. Shards are the children of a fan of branches; their
                number is the first byte of the query hash or uuid of their records, so that the branch is the first
                four bits, and the place in it the next four. Dictionary segments and content shards are numbered in
                order of ordinal, without gaps, and their branches are digests.
content set     [members, contained, unlisted]: three digests of bitmaps. Pages list the members that are not in
                `unlisted`, which is small where `listed` would be members once more.

4. Types
--------
1 root          map of "format" (1), "epoch", "generation", "published_at_ms", "clock" (the registry's clock that this
                state covers), "parent" (digest of the root that it replaces, or nil), "ordinals" (how many there are),
                "dictionary" and "content" (digests of branches over segments, and over content shards), "queries",
                "freshness", "catalogs" (fans of branches over shards), "customers" (fan of shards, by the first four
                bits of the uuid), "counts" (map of name to number, sorted) and "producer"; in this order.
2 dictionary segment
                [first ordinal, types (bin, a byte each: 1 course, 2 course run, 3 program, 4 learner pathway), keys,
                parents (ordinal of a run's course, or nil), uuids (16 bytes, or nil)]: four columns of one length.
                A segment holds 1,024 ordinals and is final, but for the rest after the last of these, which lies in
                segments of 256, the last of them shorter.
3 query shard   list of [query hash (16 bytes), integer id, uuid, title or nil, content filter (JSON text),
                content set of /api/v1 or nil (never pulled), content set of /api/v2 or nil (equal to that of v1),
                overrides of v1, overrides of v2 (absent keys: as v1), which are lists of [ordinal, metadata digest]].
                Id and uuid are nil where no catalog query has this filter any more and a catalog still serves it.
4 freshness shard
                list of [query hash, pulled at or nil, state, task id (16 bytes) of the last pull or nil, modified (the
                latest change among the members of /api/v1) or nil (it has none)]; states: 0 due (asked for, not pulled
                yet), 1 fresh (the last pull passed), 2 failing (the last pull failed; what is served is from `pulled
                at`), 3 unpullable (no source can evaluate the filter), 4 quarantined (the last pull found something
                that was refused; what is served is from `pulled at`).
5 catalog shard list of [uuid, creation number, wanted query hash, serving query hash or nil (never pulled), customer
                uuid, customer name, title, course modes (JSON text), audit urls (bool), created, modified].
6 customer shard
                list of [uuid, slug, has a learner portal (bool), name, modified].
7 content shard [first ordinal, metadata digests (a digest or nil each), modified (a time each)]. A shard has 512
                ordinals, the last of them what is left.
8 bitmap        portable roaring bitmap of ordinals, run-optimised (a container is one of runs only where that is
                smaller); two bitmaps of the same set are the same bytes.
9 metadata      [content key, type, parts]: the parts of a JSON document, to be joined in order. A part is bin, or the
                place of what a catalog has a value of its own for: a list, whose bin is UTF-8 text as it stands within
                a JSON string. "Member" is a member of an object with the comma before it, which some readers leave out.
                [1]                       the time of the last change, a JSON string
                [2, plain, head, tail]    marketing_url, a JSON string: head, utm_source, tail; or plain, without utm
                [3, activity]             member xapi_activity_id: the LMS's url of activities, activity
                [4, executive, course, run or nil, target, sku or nil]
                                          member enrollment_url of a course or course run: `executive` education or not;
                                          the course's key; the run as a value of course_run_key; the key to enrol
                                          with where there is no portal; the sku of executive education
                [5, course, run, target]  members enrollment_url and parent_content_key of a run nested in its course
10 branch       [type of the children (2, 3, 4, 5 or 7), children (fan, not empty)].

5. What a reader may rely on
----------------------------
Every ordinal in a bitmap, override or parent column is in the dictionary; a parent is a course; keys are distinct;
every serving and wanted hash has a query record, a serving one with content; every query record has a freshness
record, and the other way round. An index that breaks one of these is refused as a whole (`Malformed`). Objects are
written before the root that needs them, and the root before the pointer: whoever can read a pointer can read all of
its tree.

Modules: `words` (section 1), `objects` (2), `records` (3 and 4), `index` (5: the read-only index in memory), which is
made of `held` (the records of a generation, shared with the one before) and `dictionary` (its keys and ordinals).
"""
