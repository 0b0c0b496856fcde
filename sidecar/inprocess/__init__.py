"""Asking inside the worker, without a request: CatalogIndex over a sidecar's disk copy. Nothing of the sidecar itself.

    copy       the one door to the file
    lazy       an index whose bitmaps are fetched when they are asked for; no I/O
    index      CatalogIndex: the questions, and following the sidecar's generations

`pip install 'catalog-sidecar[inprocess]'` is enough for it. It answers whoever may read the file: there are no roles.
"""

from sidecar.errors import CatalogError, NotPulledYet, NotReady, StoreError, UnknownCatalog
from sidecar.inprocess.index import CatalogIndex

__all__ = ["CatalogError", "CatalogIndex", "NotPulledYet", "NotReady", "StoreError", "UnknownCatalog"]
