"""The sidecar: answers from memory, local disk and the store what a catalog contains; never imports `indexer`."""

__version__ = "0.1.0"
