"""Files and directories: read within bounds, written as a whole."""
