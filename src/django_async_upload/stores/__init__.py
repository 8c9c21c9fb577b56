"""Stores, which keep the bytes of unfinished uploads, and the publication of finished parts."""

from .base import Checkpoint, Part, Piece, Position, Seal, Store, Writer
from .filesystem import FileSystemStore
from .memory import MemoryStore

__all__ = [
    "Checkpoint",
    "FileSystemStore",
    "MemoryStore",
    "Part",
    "Piece",
    "Position",
    "Seal",
    "Store",
    "Writer",
]
