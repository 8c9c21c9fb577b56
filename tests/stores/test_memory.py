from pathlib import Path

from django_async_upload.stores import MemoryStore, Store
from django_async_upload.testing.stores import StoreCompliance


class TestMemoryStore(StoreCompliance):
    def make_store(self, tmp_path: Path) -> Store:
        return MemoryStore()
