"""Everything that is read from or written to a local folder or an object store."""
