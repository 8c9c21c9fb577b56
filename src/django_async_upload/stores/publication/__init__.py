"""How finished parts become files of a Django storage: one module for each way."""
