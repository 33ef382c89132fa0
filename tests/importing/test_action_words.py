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
        ({"点击", "购买", "加入购物车", "浏览"}, True),
        ({"曝光", "点击 (click)"}, True),
        ({"是", "否"}, False),
        ({"喜剧", "动作", "爱情"}, False),
        ({"click", *(f"e{n}" for n in range(60))}, False),
    ],
)
def test_columns_of_actions_are_known_by_their_values(values, expected):
    assert are_actions(values) == expected


def test_words_are_known_with_what_they_concern():
    words = ["Ad Impression", "-1", "Removed From Wishlist", "delete-from-cart", "click", "add_to_cart"]
    assert [word for word in words if is_negative(word)] == words[:2]
    assert [word for word in words if is_removal(word)] == words[2:4]


def test_chinese_words_are_known():
    words = ["曝光", "广告曝光", "不感兴趣", "取消收藏", "移出购物车", "退货", "点击", "收藏"]
    assert [word for word in words if is_negative(word)] == words[:3]
    assert [word for word in words if is_removal(word)] == words[3:6]
    assert is_negative("曝光_pv")
    assert is_removal("取消收藏 (fav)")
    assert not is_negative("点击 0")
