"""Files that no failure leaves half written: atomic writes, fences, formats."""
