"""When modules are imported, and what libraries learn of them then."""
