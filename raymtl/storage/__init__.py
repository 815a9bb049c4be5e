"""Files that a failure never leaves half written: atomic writes, fences, formats."""
