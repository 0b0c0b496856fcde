"""The indexer: pulls content, evaluates every catalog query over it, and publishes the compiled answers.

The rule for imports: of `sidecar`, modules here import `contract`, `store`, `settings`, `errors`, `clock`, `log` and
`sockets`, which say nothing of how a sidecar answers. The arrow points one way: `sidecar` never imports `indexer`.
"""
