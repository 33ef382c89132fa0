"""Special ids and token types: the constants shared by the data format, the model and generation."""

LEVELS = 3

# Special ids, the same at every level of a semantic ID.
PAD, CLS, SEP, MASK, UNK = range(5)
BOS = CLS  # the decoder's first input
NUM_SPECIAL_IDS = 5

# Token types.
USER, ITEM, ACTION, CONTEXT = range(4)
NUM_TOKEN_TYPES = 4

IGNORE_INDEX = -100  # a label that losses ignore

LARGEST_ACTION = 0xFFFE  # what a user did with a token, from 1; fits into both integer widths of the shards

DEFAULT_CODEBOOK_SIZES = (1024, 4096, 16384)
MAX_HISTORY = 512
MAX_TARGET = 128
MAX_POSITIONS = 1024
