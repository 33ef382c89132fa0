import pytest

from ugt_composer.importing.action_words import are_actions, is_negative, is_removal


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"like", "dislike"}, True),
        ({"IMPRESSION", "Click", "Add to Cart", ""}, True),
        ({"click", "nan"}, True),
        ({"ad_impression", "video_play", "watch"}, True),
        ({"movie", "show"}, False),
        ({"0", "1"}, False),
        ({"Drama", "War"}, False),
        ({"positive", "negative"}, False),
        ({"", "nan"}, False),
        ({"click", *(f"e{n}" for n in range(60))}, False),
    ],
)
def test_columns_of_actions_are_known_by_their_values(values, expected):
    assert are_actions(values) == expected


def test_words_are_known_with_what_they_concern():
    words = ["Ad Impression", "-1", "Removed From Wishlist", "delete-from-cart", "click", "add_to_cart"]
    assert [word for word in words if is_negative(word)] == words[:2]
    assert [word for word in words if is_removal(word)] == words[2:4]
