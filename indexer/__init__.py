"""The indexer: pulls content, evaluates every catalog query over it, and publishes the compiled answers.

The rule for imports: modules here may import `sidecar.contract`, `sidecar.store` and `sidecar.settings`, and nothing
else of `sidecar`. The arrow points one way: `sidecar` never imports `indexer`.
"""
