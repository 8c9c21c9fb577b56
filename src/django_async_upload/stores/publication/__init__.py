"""Publication of finished parts as files of a Django storage: one module for each method."""
