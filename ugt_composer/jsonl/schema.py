"""The keys of a JSON Lines row."""

from ugt_composer.vocabulary import LEVELS

COLUMNS = (*(f"l{level + 1}_ids" for level in range(LEVELS)), "positions", "token_types", "mask")
POSITIONS, TOKEN_TYPES, MASK = range(LEVELS, LEVELS + 3)  # where these are in a side's six columns

ENCODER_KEYS = tuple(f"encoder_{column}" for column in COLUMNS)
DECODER_KEYS = tuple(f"decoder_{column}" for column in COLUMNS)
LABEL_KEYS = tuple(f"labels_l{level + 1}" for level in range(LEVELS))
ITEM_KEYS = tuple(f"l{level + 1}_id" for level in range(LEVELS))

RECOMMEND, PREFERENCE = "recommend", "preference"  # kinds of rows
USER, SEQUENCE, CHOSEN, SCORE = "user_id", "user_sequence", "chosen_item", "preference_score"
REJECTED, REJECTED_LIST = "rejected_item", "rejected_items"
EARLIER = "earlier_items"  # optional key of a recommend row: items of the history that are older than those in the row
ENCODER_ACTIONS, ENCODER_TIMES = "encoder_actions", "encoder_times"  # optional, a number for each history token
DECODER_TIMES = "decoder_times"  # optional: when each target is predicted; of a preference row, a single number
ACTIONS_NAME = "actions.json"  # the file with the names of actions, beside the rows
MEMBERS = "target_members"  # optional: each target's number, from 0, among the items that share its semantic ID

RECOMMEND_KEYS = (USER, *ENCODER_KEYS, *DECODER_KEYS, *LABEL_KEYS)
PREFERENCE_KEYS = (USER, SEQUENCE, CHOSEN)  # and one of REJECTED and REJECTED_LIST
