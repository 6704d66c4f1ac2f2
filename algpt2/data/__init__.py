"""Text to tokens to blocks."""

# Of a text without a held-out part of its own, one part in this many is held out.
HELD_OUT_PART = 20
# The file of a directory of TFRecords that says what they are.
TFRECORDS_FILE = "tfrecords.json"
