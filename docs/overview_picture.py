"""Draws the README's picture, in English and in Chinese: `python docs/overview_picture.py` writes docs/images/*.svg.

The items and their semantic IDs are those of the demo's shop (`ugt_composer.demo.taxonomy`).
"""

import argparse
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from ugt_composer.demo.taxonomy import shop

IMAGES = Path(__file__).resolve().parent / "images"
WIDTH, HEIGHT = 960, 640
HISTORY = ("Bath mat, sturdy, no. 2", "Headlamp, sturdy, no. 2", "Camp stove, bright, no. 4")
NEXT = "Camp stove, light, no. 5"
# Colours of the three levels: Okabe and Ito's palette, which colour-blind readers can tell apart.
STYLE = """
text { font-family: system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'Noto Sans SC', 'PingFang SC',
       'Microsoft YaHei', sans-serif; font-size: 14px; fill: #1f2328 }
.title { font-size: 17px; font-weight: 600 } .small { font-size: 12.5px; fill: #57606a }
.strong { font-weight: 600 }
.code { font-family: ui-monospace, 'SF Mono', Menlo, Consolas, monospace; font-size: 12.5px }
.id { fill: #ffffff; font-weight: 600; font-size: 13px }
.card { fill: #f6f8fa; stroke: #d0d7de } .model { fill: #ddf4ff; stroke: #54aeff }
.arrow { stroke: #57606a; stroke-width: 1.6; fill: none; marker-end: url(#tip) } #tip path { fill: #57606a }
.l1 { fill: #0072b2 } .l2 { fill: #b35900 } .l3 { fill: #007a5a } .page { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .page { fill: #0d1117 }
  .card { fill: #151b23; stroke: #3d444d } .model { fill: #0c2d4a; stroke: #1f6feb }
  .arrow { stroke: #9198a1 } #tip path { fill: #9198a1 }
}
"""
ENGLISH = {
    "alt": "A history of items becomes semantic IDs; the model generates the semantic ID of the next item, level by "
    "level. Three stages train it, each starting from the model of the one before.",
    "generates": "A history goes in, the semantic ID of the next item comes out",
    "history": "history, oldest first",
    "encoder": ("encoder", "pointwise attention", "over the history"),
    "decoder": ("decoder", "mixture of experts,", "one level at a time"),
    "levels": ("category", "attribute", "item"),
    "next": "next item",
    "open": "only IDs of the catalogue",
    "trained": "Three stages train it",
    "stages": ("1  pretrain", "2  multitask", "3  preference"),
    "reads": "reads",
    "rows": ("recommend rows", "preference rows"),
    "learns": "loss",
    "writes": "writes",
    "random": "random weights",
    "reference": "also the reference of DPO",
    "balance": "each stage adds λ3 · balance of the experts",
    "data": "your data",
    "uses": "use it",
}
CHINESE = {
    "alt": "用户历史先变成语义 ID；模型逐级生成下一个物品的语义 ID。训练分三个阶段，每个阶段从上一阶段的模型开始。",
    "generates": "输入用户历史，逐级生成下一个物品的语义 ID",
    "history": "用户历史（从旧到新）",
    "encoder": ("编码器", "逐点注意力", "读取整个历史"),
    "decoder": ("解码器", "混合专家（MoE）", "每步生成一级"),
    "levels": ("大类", "属性", "物品"),
    "next": "下一个物品",
    "open": "只生成物品目录中存在的 ID",
    "trained": "训练分三个阶段",
    "stages": ("1  预训练", "2  多任务微调", "3  偏好对齐"),
    "reads": "读取",
    "rows": ("recommend 样本", "preference 样本"),
    "learns": "损失",
    "writes": "写出",
    "random": "随机权重",
    "reference": "同时是 DPO 的参考模型",
    "balance": "每个阶段都加上 λ3 · 专家负载均衡损失",
    "data": "你的数据",
    "uses": "使用模型",
}
LANGUAGES = {"overview.svg": ENGLISH, "overview.zh-CN.svg": CHINESE}
LOSSES = (("L_ntp",), ("L_ntp + λ1 · InfoNCE",), ("L_ntp + λ1 · InfoNCE", "+ λ2 · DPO"))


@dataclass
class Drawing:
    elements: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, content: str, style: str = "", anchor: str = "start") -> None:
        self.elements.append(f'<text x="{x}" y="{y}" class="{style}" text-anchor="{anchor}">{escape(content)}</text>')

    def box(self, x: float, y: float, width: float, height: float, style: str = "card", radius: int = 8) -> None:
        self.elements.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" class="{style}"/>')

    def arrow(self, *points: tuple[float, float]) -> None:
        self.elements.append(f'<path class="arrow" d="M{" L".join(f"{x},{y}" for x, y in points)}"/>')

    def semantic_id(self, x: float, y: float, ids: tuple[int, int, int]) -> None:
        for level, number in enumerate(ids, 1):
            self.box(x, y, 44, 22, f"l{level}", 5)
            self.text(x + 22, y + 16, str(number), "id", "middle")
            x += 50

    def svg(self, description: str) -> str:
        tip = '<marker id="tip" markerWidth="9" markerHeight="8" refX="7" refY="4" orient="auto">'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
                f"<title>{escape(description)}</title>",
                f"<style>{STYLE}</style>",
                f'<defs>{tip}<path d="M0,0 L8,4 L0,8 z"/></marker></defs>',
                f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="12"/>',
                *self.elements,
                "</svg>\n",
            ]
        )


def overview(words: dict) -> str:
    items = shop()
    ids = dict(zip(items.names, items.semantic_ids(), strict=True))
    drawing = Drawing()
    _generation(drawing, words, ids)
    _stages(drawing, words)
    return drawing.svg(words["alt"])


def _generation(drawing: Drawing, words: dict, ids: dict[str, tuple[int, int, int]]) -> None:
    drawing.text(28, 40, words["generates"], "title")
    drawing.text(28, 70, words["history"], "small")
    for row, name in enumerate(HISTORY):
        top = 82 + 62 * row
        drawing.box(28, top, 236, 54)
        drawing.text(40, top + 19, name)
        drawing.semantic_id(40, top + 27, ids[name])
    drawing.arrow((268, 171), (302, 171))
    for left, key in ((306, "encoder"), (478, "decoder")):
        drawing.box(left, 122, 140, 98, "model")
        name, *rest = words[key]
        drawing.text(left + 70, 152, name, "strong", "middle")
        for line, content in enumerate(rest):
            drawing.text(left + 70, 176 + 19 * line, content, "small", "middle")
    drawing.arrow((448, 171), (474, 171))
    drawing.arrow((620, 171), (646, 171))
    drawing.box(650, 82, 282, 178)
    drawing.text(666, 108, words["next"], "strong")
    for level, (label, number) in enumerate(zip(words["levels"], ids[NEXT], strict=True), 1):
        left = 666 + 88 * (level - 1)
        drawing.box(left, 126, 60, 34, f"l{level}", 6)
        drawing.text(left + 30, 148, str(number), "id", "middle")
        drawing.text(left + 30, 180, f"L{level} {label}", "small", "middle")
        if level < 3:
            drawing.arrow((left + 62, 143), (left + 85, 143))
    drawing.text(666, 216, NEXT, "strong")
    drawing.text(666, 240, words["open"], "small")


def _stages(drawing: Drawing, words: dict) -> None:
    drawing.text(28, 314, words["trained"], "title")
    drawing.text(WIDTH - 28, 314, words["balance"], "small", "end")
    recommend, preference = words["rows"]
    reads = (
        [(recommend, ""), (words["random"], "small")],
        [(recommend, ""), ("checkpoints/stage1/best", "code")],
        [(preference, ""), (recommend, ""), ("checkpoints/stage2/best", "code"), (words["reference"], "small")],
    )
    for number in range(3):
        left = 28 + 312 * number
        drawing.box(left, 332, 280, 224)
        drawing.text(left + 16, 360, words["stages"][number], "strong")
        _labelled(drawing, left, 390, words["reads"], reads[number])
        _labelled(drawing, left, 474, words["learns"], [(line, "") for line in LOSSES[number]])
        _labelled(drawing, left, 518, words["writes"], [(f"checkpoints/stage{number + 1}/best", "code")])
        drawing.text(left + 72, 538, "metrics.jsonl, ba*.pt", "code")
        if number < 2:
            drawing.arrow((left + 282, 444), (left + 308, 444))
    drawing.text(28, 590, words["data"], "strong")
    drawing.text(28, 614, "ratings.csv → ugt import → ugt convert → mds/", "code")
    drawing.text(WIDTH - 28, 590, words["uses"], "strong", "end")
    drawing.text(WIDTH - 28, 614, "stage3/best → ugt recommend · evaluate · export", "code", "end")


def _labelled(drawing: Drawing, left: int, top: int, label: str, lines: list[tuple[str, str]]) -> None:
    drawing.text(left + 16, top, label, "small")
    for line, (content, style) in enumerate(lines):
        drawing.text(left + 72, top + 19 * line, content, style)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder (default: docs/images)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, words in LANGUAGES.items():
        (out / name).write_text(overview(words), encoding="utf-8")
        print(out / name)


if __name__ == "__main__":
    main()
