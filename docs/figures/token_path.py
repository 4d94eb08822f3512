"""Draws docs/figures/token_path_{en,es,zh}.svg: one token's way through the package, the same boxes in three languages.

    python docs/figures/token_path.py

A vector file of plain shapes and text, so that a code host shows it and a diff of it can be read. tests/docs
holds that the files are what this script writes.
"""

from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
WIDTH, HEIGHT = 880, 760
INK, FAINT, PAPER, PANEL, LINE = "#1f2430", "#5d6675", "#ffffff", "#f4f5f8", "#9aa3b2"
# One colour a tensor, whatever the picture: c_kv, k_pe, q, experts.
LATENT, ROPE, QUERY, EXPERTS = "#b35806", "#e0a030", "#5b4b9a", "#2b7a8c"
SANS = "system-ui, 'Segoe UI', 'Noto Sans', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif"
MONO = "ui-monospace, 'SFMono-Regular', Menlo, Consolas, 'DejaVu Sans Mono', monospace"

# One row a label: English, Spanish, Chinese.
LABELS = {
    "title": ("A token's way", "El camino de un token", "一个 token 的旅程"),
    "alt": (
        "From text through tokenizer, scheduler, batch, Transformer and sampler back to text; on the right the inside "
        "of the Transformer: MLA with its latent cache, then gate, dispatch, experts and combination.",
        "Del texto al texto: tokenizador, planificador, lote, Transformer y muestreo; a la derecha, el interior del "
        "Transformer: MLA con su caché latente y, después, compuerta, despacho, expertos y combinación.",
        "从文本经分词器、调度器、批次、Transformer、采样再回到文本；右侧是 Transformer 内部：带潜向量缓存的 MLA，"
        "然后是门控、分发、专家与合并。",
    ),
    "engine": ("engine: one step", "motor: un paso", "引擎：一步"),
    "inside": ("inside the Transformer", "dentro del Transformer", "Transformer 内部"),
    "text": ("text", "texto", "文本"),
    "ids": ("text → token ids", "texto → ids de tokens", "文本 → token id"),
    "encode": ("encode", "codificar", "编码"),
    "schedule": ("schedule", "planificar", "调度"),
    "schedule2": ("who runs, how many tokens", "quién avanza y con cuántos tokens", "谁运行，各多少个 token"),
    "batch": ("build the batch", "formar el lote", "组建批次"),
    "model": ("Transformer", "Transformer", "Transformer"),
    "sample": ("sample, or verify drafts", "muestrear o verificar borradores", "采样，或验证草稿"),
    "detok": ("decode as a stream", "decodificar en flujo", "流式解码"),
    "next": ("next step", "paso siguiente", "下一步"),
    "times": ("× n_layers", "× n_layers", "× n_layers"),
    "dense": (
        "the first n_dense_layers have a plain MLP here",
        "las primeras n_dense_layers capas: un simple MLP",
        "前 n_dense_layers 层在此处是普通 MLP",
    ),
    "mla": ("MLA: attend", "MLA: atender", "MLA：注意力"),
    "cache": ("paged latent cache", "caché latente paginada", "分页潜向量缓存"),
    "gate": ("gate: top K of E", "compuerta: K de E", "门控：E 选 K"),
    "dispatch": ("dispatch", "despacho", "分发"),
    "experts": ("routed experts", "expertos enrutados", "路由专家"),
    "shared": ("shared expert", "experto compartido", "共享专家"),
    "combine": ("combine, add", "combinar y sumar", "合并并相加"),
    "mtp": ("MTP module", "módulo MTP", "MTP 模块"),
    "mtp2": ("drafts token i + 2", "propone el token i + 2", "起草第 i + 2 个 token"),
}


class Drawing:
    """SVG elements in drawing order, in one language."""

    def __init__(self, language: int) -> None:
        self.language = language
        self.parts: list[str] = []

    def say(self, key: str) -> str:
        return LABELS[key][self.language]

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str = PAPER, stroke: str = LINE, r: int = 7, dash: str = ""
    ) -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="1.4"{dashed}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 14,
        colour: str = INK,
        font: str = SANS,
        anchor: str = "middle",
        weight: int = 400,
    ) -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-family="{font}" font-size="{size:g}" font-weight="{weight}" '
            f'fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def arrow(self, *points: tuple[float, float], colour: str = FAINT, dash: str = "", head: bool = True) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        marker = ' marker-end="url(#head)"' if head else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dashed}{marker}/>'
        )

    def box(
        self, x: float, y: float, w: float, h: float, title: str, code: str = "", note: str = "", stroke: str = LINE
    ) -> None:
        """A box with a title, a remark, and the file or name that does it."""
        self.rect(x, y, w, h, stroke=stroke)
        lines = [(title, 14, INK, SANS, 600)]
        lines += [(note, 12, FAINT, SANS, 400)] if note else []
        lines += [(code, 12, FAINT, MONO, 400)] if code else []
        top = y + h / 2 - 18 * (len(lines) - 1) / 2 + 5
        for i, (words, size, colour, font, weight) in enumerate(lines):
            self.text(x + w / 2, top + 18 * i, words, size, colour, font, weight=weight)

    def svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            f'role="img" aria-label="{escape(self.say("alt"))}">\n'
            f"<title>{escape(self.say('title'))}</title>\n<desc>{escape(self.say('alt'))}</desc>\n"
            '<defs><marker id="head" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0,0.8 L9,5 L0,9.2 z" fill="{FAINT}"/></marker></defs>\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"


def engine_column(d: Drawing) -> None:
    x, w, mid = 58, 258, 187
    d.rect(20, 116, 310, 548, fill=PANEL, stroke=PANEL)
    d.text(36, 138, d.say("engine"), 13, FAINT, anchor="start", weight=600)
    d.box(x, 20, w, 70, d.say("encode"), "dsv3/tokenizer.py", d.say("ids"))
    d.box(x, 152, w, 78, d.say("schedule"), "dsv3/engine/scheduler.py", d.say("schedule2"))
    d.box(x, 262, w, 78, d.say("batch"), "dsv3/engine/batch.py", "tokens_T, AttnContext")
    d.box(x, 372, w, 78, d.say("model"), "dsv3/model/transformer.py", "tokens_T → logits", stroke=INK)
    d.box(x, 482, w, 70, d.say("sample"), "sampler.py · speculative.py")
    d.box(x, 584, w, 60, d.say("detok"), "Tokenizer.stream()")
    d.text(mid, 712, d.say("text"), 15, INK, weight=600)
    for top, bottom in ((90, 152), (230, 262), (340, 372), (450, 482), (552, 584), (644, 694)):
        d.arrow((mid, top), (mid, bottom - 1))
    d.arrow((x, 517), (45, 517), (45, 191), (x - 1, 191), dash="5 4")
    d.parts.append(
        f'<text transform="translate(38 354) rotate(-90)" font-family="{SANS}" font-size="12" fill="{FAINT}" '
        f'text-anchor="middle">{escape(d.say("next"))}</text>'
    )


def inside(d: Drawing) -> None:
    d.rect(366, 20, 496, 724, fill=PANEL, stroke=PANEL)
    d.text(382, 42, d.say("inside"), 13, FAINT, anchor="start", weight=600)
    d.arrow((316, 398), (342, 398), (342, 56), (365, 56), dash="5 4", head=False)
    d.arrow((316, 424), (352, 424), (352, 726), (365, 726), dash="5 4", head=False)
    mid = 520

    d.box(440, 56, 160, 34, "embed")

    # One block: attention, then the mixture of experts, each with its residual.
    d.rect(384, 112, 462, 490, fill=PAPER, stroke=LINE, r=10)
    d.text(832, 592, d.say("times"), 13, INK, MONO, "end", 600)
    d.arrow((mid, 90), (mid, 133))
    d.box(440, 134, 160, 30, "attn_norm")
    d.arrow((mid, 164), (mid, 189))
    d.box(420, 190, 200, 62, d.say("mla"), "dsv3/layers/mla.py", stroke=QUERY)
    latent_cache(d)
    d.arrow((mid, 252), (mid, 277))
    plus(d, mid, 290)
    d.arrow((mid, 122), (400, 122), (400, 290), (506, 290))
    d.arrow((mid, 303), (mid, 327))
    d.box(440, 328, 160, 30, "ffn_norm")
    d.arrow((mid, 358), (mid, 379))
    d.box(420, 380, 200, 54, d.say("gate"), "dsv3/layers/gate.py", stroke=EXPERTS)
    d.arrow((mid, 434), (mid, 459))
    d.text(mid + 10, 451, d.say("dispatch"), 12, FAINT, anchor="start")
    experts(d)
    d.arrow((mid, 528), (mid, 553))
    d.text(mid + 10, 547, d.say("combine"), 12, FAINT, anchor="start")
    plus(d, mid, 567)
    d.arrow((mid, 316), (400, 316), (400, 567), (506, 567))

    d.arrow((mid, 580), (mid, 627))
    d.box(440, 628, 160, 34, "norm")
    d.arrow((mid, 662), (mid, 683))
    d.box(440, 684, 160, 34, "head")
    d.text(612, 706, "logits", 13, INK, MONO, "start")
    d.rect(672, 628, 174, 54, stroke=LINE, dash="5 4")
    d.text(759, 650, d.say("mtp"), 13, INK, weight=600)
    d.text(759, 669, d.say("mtp2"), 12, FAINT)
    d.arrow((600, 645), (671, 645), dash="5 4")


def latent_cache(d: Drawing) -> None:
    d.rect(676, 164, 156, 112, fill=PANEL)
    d.text(754, 182, d.say("cache"), 12, INK, weight=600)
    for row in range(3):
        y = 192 + 18 * row
        d.rect(690, y, 98, 13, fill=LATENT, stroke=LATENT, r=2)
        d.rect(790, y, 28, 13, fill=ROPE, stroke=ROPE, r=2)
    d.text(739, 263, "c_kv", 12, LATENT, MONO, weight=600)
    d.text(804, 263, "k_pe", 12, INK, MONO, weight=600)
    d.arrow((620, 211), (675, 211))
    d.arrow((676, 234), (621, 234))


def experts(d: Drawing) -> None:
    d.rect(412, 460, 300, 68, stroke=EXPERTS)
    d.text(562, 479, d.say("experts"), 13, INK, weight=600)
    chosen = {1, 4, 5, 10}
    for i in range(12):
        fill = EXPERTS if i in chosen else PAPER
        d.rect(424 + 23.4 * i, 488, 18, 16, fill=fill, stroke=EXPERTS, r=3)
    d.text(562, 521, "dsv3/layers/moe.py", 12, FAINT, MONO)
    d.rect(717, 460, 122, 68, stroke=EXPERTS, dash="5 4")
    d.text(778, 482, d.say("shared"), 11, INK, weight=600)
    d.rect(769, 492, 18, 16, fill=EXPERTS, stroke=EXPERTS, r=3)
    d.arrow((600, 343), (778, 343), (778, 459))
    d.arrow((778, 528), (778, 567), (534, 567))
    d.text(836, 306, d.say("dense"), 11, FAINT, anchor="end")


def plus(d: Drawing, x: float, y: float) -> None:
    d.parts.append(f'<circle cx="{x}" cy="{y}" r="13" fill="{PAPER}" stroke="{INK}" stroke-width="1.4"/>')
    d.text(x, y + 5.5, "+", 17, INK)


def draw(language: int) -> str:
    """The picture as SVG text; ``language`` is the column of LABELS."""
    d = Drawing(language)
    d.rect(0, 0, WIDTH, HEIGHT, fill=PAPER, stroke=PAPER, r=0)
    engine_column(d)
    inside(d)
    return d.svg()


if __name__ == "__main__":
    for column, name in enumerate(("en", "es", "zh")):
        (HERE / f"token_path_{name}.svg").write_text(draw(column), encoding="utf-8")
