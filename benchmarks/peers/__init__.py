"""Time and memory of raymtl beside other libraries."""
