"""Where the bytes of unfinished uploads are kept, and how a finished part reaches its storage."""

from .base import Checkpoint, Part, Position, Store, Writer
from .filesystem import FileSystemStore
from .memory import MemoryStore

__all__ = [
    "Checkpoint",
    "FileSystemStore",
    "MemoryStore",
    "Part",
    "Position",
    "Store",
    "Writer",
]
