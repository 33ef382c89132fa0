"""Chinese pages have the headings and the code of the English ones."""

import re

import pytest

from tests.docs.pages import NOT_WRITTEN, ROOT, Block, blocks, headings, pages, prose, slug, text_of

CHINESE = [page for page in pages() if page.startswith("docs/zh/") or page == "README.zh-CN.md"]


def english_of(page: str) -> str:
    return page.replace("docs/zh/", "docs/").replace("README.zh-CN.md", "README.md")


@pytest.fixture(params=CHINESE)
def page(request) -> str:
    page: str = request.param
    assert (ROOT / english_of(page)).exists(), f"{page} translates {english_of(page)}, which does not exist"
    if NOT_WRITTEN in text_of(page):
        pytest.skip("not written yet")
    return page


def test_headings_are_those_of_the_english_page(page):
    found, wanted = headings(page), headings(english_of(page))
    assert [level for level, _ in found] == [level for level, _ in wanted], f"{found} {wanted}"


def test_anchors_are_those_of_the_english_page(page):
    """A link to a section is the same in both languages, on the site and on GitHub."""
    if page == "README.zh-CN.md":
        pytest.skip("has its own anchors")
    names = re.findall(r"^##+ (?:<a id=\"([^\"]*)\"></a>)?", prose(page), re.M)
    assert names == [slug(text) for level, text in headings(english_of(page)) if level > 1]


def test_code_is_that_of_the_english_page(page):
    found, wanted = blocks(page), blocks(english_of(page))
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.language, ours.title, ours.is_output) == (theirs.language, theirs.title, theirs.is_output), (
            ours.place
        )
        assert (ours.not_run is None) == (theirs.not_run is None), ours.place
        assert code_without_comments(ours) == code_without_comments(theirs), ours.place


def code_without_comments(block: Block) -> list[str]:
    """Lines without their comments, which are translated, and without the blanks before these."""
    if block.language not in ("bash", "yaml", "python", "toml", "dockerfile"):
        return block.text.splitlines()
    lines = (re.sub(r"(?:^|\s+)#.*", "", line).rstrip() for line in block.text.splitlines())
    return [line for line in lines if line]


def test_only_comments_may_be_translated():
    def block(text: str) -> Block:
        return Block("p.md", 1, "bash", None, text, None, False)

    ours, theirs = (
        block("# 训练\ncomposer train.py a.yaml  # 第一步\n"),
        block("composer train.py a.yaml # the first\n"),
    )
    assert code_without_comments(ours) == code_without_comments(theirs)
    assert code_without_comments(ours) != code_without_comments(block("composer train.py b.yaml\n"))
