"""Recall documents: a fact is stated, other text follows, the fact is asked. For training, and as a test of memory.

To tell whether a model uses its whole context, hide a *needle* in a *haystack*: one sentence that nothing else in the
text hints at ("The secret word of the baker is amber.") in a long text of another matter, then ask for it. Right
answers over lengths and depths make the usual map. A small model that has read only novels fails everywhere, since
novels hardly ever reward looking up one word a thousand tokens back; two or three rows in a hundred that do are enough
for it to learn.

What makes such a text a fair lesson and a fair test:

- *Only recall helps.* Answers are drawn uniformly, and all answers of one kind of fact fit all holders.
- *Induction is enough.* The question repeats the statement's words up to the answer, so "find what came after these
  words before" solves it. Facts of the same kind about other holders stand in the same text; the word last seen after
  "is" would be the wrong one.
- *The test is not in the training data.* A tenth of the pairs (holder, answer) of each kind, the same ones in every
  language, occurs in no training document (`is_reserved`); a needle takes only these.
- *Every distance.* From a question that follows at once to one at the other end of the row.

    row | BOS novel | statement A | novel ... | statement B | question B, answer | ... | question A, answer | novel ...

The text around the facts is a run of paragraphs of one real document, already tokenised. Facts are paragraphs of
their own, so pieces of ids meet only after a line end, where a tokeniser that keeps line ends apart from the next word
(the embedded one, DeepSeek's, Llama 3's) would cut anyway: the ids are those of the joint text.
"""

import hashlib
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np

from dsv3.errors import ConfigError
from dsv3.tokenizer import Tokenizer
from dsv3.train.corpus import Documents, TokenStore, Workers, join

LANGUAGES = ("en", "es", "zh")
MIN_LENGTH = 128  # tokens of a training document; two facts with their questions take about half of it
_MIN_DISTANCE = 20  # tokens from a statement to a question that follows at once, roughly
_ASKED_TWICE = 0.3  # share of the facts that are asked a second time
_RESERVED_OF_256 = 26
_TRIES = 100
_CLOSE_ENOUGH = 0.02  # of a needle's depth to the one asked for, unless many tries find none so close

# Each entry is said in the three languages: English/Spanish/Chinese. The English one names it in `is_reserved`.
_HOLDERS = """
baker/el panadero/面包师; queen/la reina/王后; king/el rey/国王; old sailor/el viejo marinero/老水手;
widow/la viuda/寡妇; miller/el molinero/磨坊主; blacksmith/el herrero/铁匠; fisherman/el pescador/渔夫;
hunter/el cazador/猎人; judge/el juez/法官; shepherd/el pastor/牧羊人; captain/el capitán/船长; doctor/el médico/医生;
monk/el monje/修士; nun/la monja/修女; bishop/el obispo/主教; young soldier/el joven soldado/年轻的士兵;
general/el general/将军; prince/el príncipe/王子; princess/la princesa/公主; duchess/la duquesa/公爵夫人;
count/el conde/伯爵; gardener/el jardinero/园丁; cook/la cocinera/厨娘; tailor/el sastre/裁缝;
shoemaker/el zapatero/鞋匠; carpenter/el carpintero/木匠; weaver/la tejedora/织布女; painter/el pintor/画家;
poet/el poeta/诗人; musician/el músico/乐师; beggar/el mendigo/乞丐; merchant/el mercader/商人;
innkeeper/el posadero/店主; coachman/el cochero/车夫; notary/el notario/公证人; governess/la institutriz/女教师;
student/el estudiante/学生; nurse/la nodriza/奶妈; grandmother/la abuela/祖母; orphan/el huérfano/孤儿;
hermit/el ermitaño/隐士; pirate/el pirata/海盗; thief/el ladrón/小偷; old witch/la vieja bruja/老巫婆;
magician/el mago/魔法师; governor/el gobernador/总督; ferryman/el barquero/船夫; night watchman/el sereno/更夫;
washerwoman/la lavandera/洗衣妇; woodcutter/el leñador/樵夫; tall stranger/el alto forastero/高个子陌生人
"""
_WORDS = """
amber/ámbar/琥珀; lantern/farol/灯笼; river/río/河流; thunder/trueno/雷声; silver/plata/白银; garden/jardín/花园;
candle/vela/蜡烛; mirror/espejo/镜子; feather/pluma/羽毛; honey/miel/蜂蜜; winter/invierno/冬天; falcon/halcón/猎鹰;
ribbon/cinta/丝带; pepper/pimienta/胡椒; marble/mármol/大理石; violin/violín/提琴; harbour/puerto/港湾;
lemon/limón/柠檬; shadow/sombra/影子; castle/castillo/城堡; needle/aguja/银针; orchard/huerto/果园; pearl/perla/珍珠;
tiger/tigre/老虎; copper/cobre/黄铜; walnut/nuez/核桃; storm/tormenta/风暴; velvet/terciopelo/天鹅绒; rose/rosa/玫瑰;
anchor/ancla/铁锚; bell/campana/铜钟; butter/mantequilla/黄油; cloud/nube/白云; desert/desierto/沙漠; eagle/águila/老鹰;
fountain/fuente/喷泉; ginger/jengibre/生姜; hammer/martillo/锤子; island/isla/海岛; jasmine/jazmín/茉莉;
kettle/tetera/水壶; ladder/escalera/梯子; moon/luna/月亮; nest/nido/鸟巢; olive/aceituna/橄榄; pillow/almohada/枕头;
rabbit/conejo/兔子; saddle/montura/马鞍; sugar/azúcar/白糖; tower/torre/高塔; umbrella/paraguas/雨伞; valley/valle/山谷;
whale/ballena/鲸鱼; basket/cesta/篮子; bridge/puente/石桥; carpet/alfombra/地毯; dragon/dragón/飞龙;
elephant/elefante/大象; forest/bosque/森林; grape/uva/葡萄; iron/hierro/钢铁; key/llave/钥匙; letter/carta/书信;
medal/medalla/奖章; mountain/montaña/高山; oven/horno/烤炉; paper/papel/白纸; peach/melocotón/桃子; pigeon/paloma/鸽子;
plum/ciruela/李子; ring/anillo/戒指; salt/sal/食盐; shell/concha/贝壳; silk/seda/丝绸; smoke/humo/炊烟; snow/nieve/白雪;
spider/araña/蜘蛛; star/estrella/星星; sword/espada/宝剑; table/mesa/桌子; tea/té/绿茶; tobacco/tabaco/烟草;
trumpet/trompeta/喇叭; turtle/tortuga/乌龟; vinegar/vinagre/陈醋; wheel/rueda/车轮; window/ventana/窗户; wolf/lobo/野狼;
wool/lana/羊毛; almond/almendra/杏仁; barrel/barril/木桶; button/botón/纽扣; chess/ajedrez/象棋; coral/coral/珊瑚;
crown/corona/王冠; diamond/diamante/钻石; flute/flauta/笛子; glove/guante/手套; ivory/marfil/象牙; lion/león/狮子;
onion/cebolla/洋葱; pine/pino/松树
"""
_PLACES = """
oak/el roble/橡树下; bridge/el puente/石桥下; staircase/la escalera/楼梯下; bed/la cama/床底下;
fireplace/la chimenea/壁炉下; altar/el altar/祭坛下; old wall/la vieja muralla/老城墙下; mill/el molino/磨坊下;
floor/el suelo/地板下; apple tree/el manzano/苹果树下; great stone/la gran piedra/大石头下;
fig tree/la higuera/无花果树下; rose bush/el rosal/玫瑰丛下; well/el pozo/水井下; stable/el establo/马厩下;
haystack/el pajar/干草堆下; cross/la cruz/十字架下; tower/la torre/塔楼下; gate/la puerta/大门下;
window/la ventana/窗户下; kitchen table/la mesa de la cocina/厨房桌子下; cupboard/el armario/柜子下;
carpet/la alfombra/地毯下; pillow/la almohada/枕头下; boat/la barca/小船下; lighthouse/el faro/灯塔下;
fountain/la fuente/喷泉下; statue/la estatua/石像下; willow/el sauce/柳树下; pine/el pino/松树下;
walnut tree/el nogal/核桃树下; olive tree/el olivo/橄榄树下; vine/la parra/葡萄架下; threshold/el umbral/门槛下;
church/la iglesia/教堂下; chapel/la capilla/礼拜堂下; doormat/el felpudo/门垫下; barn/el granero/谷仓下;
cart/el carro/马车下; barrel/el barril/酒桶下; anvil/el yunque/铁砧下; oven/el horno/烤炉下; clock/el reloj/大钟下;
bell tower/el campanario/钟楼下; bench/el banco/长凳下; sundial/el reloj de sol/日晷下; balcony/el balcón/阳台下;
arch/el arco/拱门下; cherry tree/el cerezo/樱桃树下; lemon tree/el limonero/柠檬树下; cliff/el acantilado/悬崖下;
dam/la presa/水坝下; hen house/el gallinero/鸡窝下; beehive/la colmena/蜂箱下; trunk/el baúl/箱子下;
throne/el trono/宝座下; column/la columna/柱子下; pulpit/el púlpito/讲坛下; tomb/la tumba/坟墓下; sand/la arena/沙子下;
hedge/el seto/篱笆下; ruins/las ruinas/废墟下; workbench/el banco de trabajo/工作台下; dead tree/el árbol seco/枯树下
"""
_HORSES = """
Comet/Cometa/流星; Thunder/Trueno/惊雷; Falcon/Halcón/飞鹰; Shadow/Sombra/黑影; Arrow/Flecha/飞箭;
Lightning/Relámpago/闪电; Storm/Tormenta/暴风; Snow/Nieve/白雪; Star/Estrella/星光; Pearl/Perla/明珠; Ruby/Rubí/红玉;
Silver/Plata/银光; Ebony/Ébano/乌木; Breeze/Brisa/清风; Flame/Llama/火焰; Moon/Luna/明月; Sun/Sol/骄阳;
Eagle/Águila/雄鹰; Swallow/Golondrina/飞燕; Lion/León/雄狮; Wolf/Lobo/苍狼; Raven/Cuervo/乌鸦; Clover/Trébol/青草;
Rose/Rosa/玫瑰; Dawn/Aurora/黎明; Night/Noche/黑夜; Winter/Invierno/寒冬; April/Abril/四月; Corsair/Corsario/海盗;
Sultan/Sultán/苏丹; Prince/Príncipe/王子; Duke/Duque/公爵; Pilgrim/Peregrino/行者; Rebel/Rebelde/叛徒; Hero/Héroe/英雄;
Giant/Gigante/巨人; Ghost/Fantasma/幽灵; Dragon/Dragón/蛟龙; Tiger/Tigre/猛虎; Panther/Pantera/黑豹;
Diamond/Diamante/钻石; Copper/Cobre/赤铜; Steel/Acero/精钢; Fortune/Fortuna/福星; Hope/Esperanza/希望;
Victory/Victoria/凯旋; Glory/Gloria/荣光; Whisper/Susurro/低语; Wave/Ola/浪花; Cloud/Nube/白云; Rain/Lluvia/春雨;
Mist/Niebla/迷雾; Spark/Chispa/火花; Ash/Ceniza/灰烬; Pepper/Pimienta/胡椒; Cinnamon/Canela/肉桂; Honey/Miel/蜂蜜;
Coffee/Café/咖啡; Walnut/Nogal/核桃; Amber/Ámbar/琥珀; Coral/Coral/珊瑚; Jasmine/Jazmín/茉莉; Jupiter/Júpiter/木星;
Saturn/Saturno/土星
"""
_CITIES = """
London/Londres/伦敦; Paris/París/巴黎; Madrid/Madrid/马德里; Rome/Roma/罗马; Vienna/Viena/维也纳; Berlin/Berlín/柏林;
Lisbon/Lisboa/里斯本; Seville/Sevilla/塞维利亚; Toledo/Toledo/托莱多; Granada/Granada/格拉纳达;
Barcelona/Barcelona/巴塞罗那; Valencia/Valencia/巴伦西亚; Naples/Nápoles/那不勒斯; Venice/Venecia/威尼斯;
Florence/Florencia/佛罗伦萨; Milan/Milán/米兰; Genoa/Génova/热那亚; Athens/Atenas/雅典; Cairo/El Cairo/开罗;
Jerusalem/Jerusalén/耶路撒冷; Damascus/Damasco/大马士革; Baghdad/Bagdad/巴格达; Moscow/Moscú/莫斯科;
Warsaw/Varsovia/华沙; Prague/Praga/布拉格; Dresden/Dresde/德累斯顿; Hamburg/Hamburgo/汉堡; Munich/Múnich/慕尼黑;
Brussels/Bruselas/布鲁塞尔; Amsterdam/Ámsterdam/阿姆斯特丹; Geneva/Ginebra/日内瓦; Zurich/Zúrich/苏黎世;
Edinburgh/Edimburgo/爱丁堡; Dublin/Dublín/都柏林; Oxford/Oxford/牛津; Liverpool/Liverpool/利物浦; York/York/约克;
Boston/Boston/波士顿; Havana/La Habana/哈瓦那; Lima/Lima/利马; Santiago/Santiago/圣地亚哥; Peking/Pekín/北京;
Nanking/Nankín/南京; Canton/Cantón/广州; Shanghai/Shanghái/上海; Tokyo/Tokio/东京; Calcutta/Calcuta/加尔各答;
Bombay/Bombay/孟买; Tunis/Túnez/突尼斯; Marseilles/Marsella/马赛; Lyons/Lyon/里昂; Bordeaux/Burdeos/波尔多;
Toulouse/Toulouse/图卢兹; Budapest/Budapest/布达佩斯; Stockholm/Estocolmo/斯德哥尔摩; Copenhagen/Copenhague/哥本哈根;
Antwerp/Amberes/安特卫普; Malaga/Málaga/马拉加; Cadiz/Cádiz/加的斯; Cordoba/Córdoba/科尔多瓦;
Zaragoza/Zaragoza/萨拉戈萨; Salamanca/Salamanca/萨拉曼卡; Burgos/Burgos/布尔戈斯; Segovia/Segovia/塞哥维亚
"""


def _table(text: str) -> list[tuple[str, ...]]:
    """Entries of three spellings, in the order of LANGUAGES."""
    return [tuple(entry.strip().split("/")) for entry in text.split(";")]


HOLDERS = _table(_HOLDERS)
ANSWERS = {
    "word": _table(_WORDS),
    "treasure": _table(_PLACES),
    "horse": _table(_HORSES),
    "city": _table(_CITIES),
    "number": [(str(number),) * 3 for number in range(100, 1000)],
}
KINDS = tuple(ANSWERS)

# Question, and the statement up to the answer and after it; {} is the holder. The question must not hold the words
# that the answer follows: after "暗号是什么？…暗号是", looking up what came next gives 什么, too. A Chinese answer
# stands before punctuation, else its last character could melt into one id with the next word.
_FORMS = {
    "en": {
        "word": ("What is the secret word of {}?", "The secret word of {} is ", "."),
        "treasure": ("Where is the treasure of {} hidden?", "The treasure of {} is hidden under the ", "."),
        "horse": ("What is the horse of {} called?", "The horse of {} is called ", "."),
        "city": ("Where does the brother of {} live?", "The brother of {} lives in ", "."),
        "number": ("What is the lucky number of {}?", "The lucky number of {} is ", "."),
    },
    "es": {
        "word": ("¿Cuál es la palabra secreta {}?", "La palabra secreta {} es ", "."),
        "treasure": ("¿Dónde está escondido el tesoro {}?", "El tesoro {} está escondido bajo ", "."),
        "horse": ("¿Cómo se llama el caballo {}?", "El caballo {} se llama ", "."),
        "city": ("¿Dónde vive el hermano {}?", "El hermano {} vive en ", "."),
        "number": ("¿Cuál es el número de la suerte {}?", "El número de la suerte {} es ", "."),
    },
    "zh": {
        "word": ("哪个词是{}的暗号？", "{}的暗号是", "。"),
        "treasure": ("{}的宝藏在哪里？", "{}的宝藏埋在", "。"),
        "horse": ("{}的马叫什么名字？", "{}的马名叫“", "”。"),
        "city": ("{}的哥哥家在哪里？", "{}的哥哥住在", "。"),
        "number": ("哪个数字是{}的幸运数字？", "{}的幸运数字是", "。"),
    },
}


@dataclass(frozen=True)
class Fact:
    """One fact in one language. `holder` and `answer` index HOLDERS and ANSWERS[kind]."""

    language: str
    kind: str
    holder: int
    answer: int

    @property
    def is_reserved(self) -> bool:
        """Whether this pair of holder and answer is kept for needles, in every language, and out of training."""
        return is_reserved(self.kind, HOLDERS[self.holder][0], ANSWERS[self.kind][self.answer][0])

    @property
    def answer_text(self) -> str:
        return ANSWERS[self.kind][self.answer][LANGUAGES.index(self.language)]

    @property
    def statement(self) -> str:
        _, before, after = self._form()
        return before + self.answer_text + after

    @property
    def prompt(self) -> str:
        """The question, and the statement up to the answer; the space before the answer belongs to the answer."""
        question, before, _ = self._form()
        return question + ("" if self.language == "zh" else " ") + before.rstrip(" ")

    @property
    def completion(self) -> str:
        """What follows `prompt`: the answer (with the space before it) and the end of the sentence."""
        return self.answer_with_space + self._form()[2]

    @property
    def answer_with_space(self) -> str:
        return ("" if self.language == "zh" else " ") + self.answer_text

    def _form(self) -> tuple[str, ...]:
        name = HOLDERS[self.holder][LANGUAGES.index(self.language)]
        if self.language == "en":
            name = f"the {name}"
        elif self.language == "es":  # the preposition and the masculine article become one word
            name = f"del {name[3:]}" if name.startswith("el ") else f"de {name}"
        return tuple(part.format(name) for part in _FORMS[self.language][self.kind])


@cache
def is_reserved(kind: str, holder: str, answer: str) -> bool:
    """About one pair in ten, chosen by a hash: the same in every run, language and version of Python."""
    return hashlib.sha256(f"{kind}/{holder}/{answer}".encode()).digest()[0] < _RESERVED_OF_256


class Fillers:
    """Runs of paragraphs to hide facts in, of tokenised documents (`tokenize(texts, tokenizer)`, or a language of a
    token file).

    Positions count ids of `documents.tokens`. A *break* is where a paragraph begins.
    """

    def __init__(self, documents: Documents, tokenizer: Tokenizer) -> None:
        self.tokens = documents.tokens
        ends_line = np.array([tokenizer.decode([i]).endswith("\n") for i in range(tokenizer.vocab_size)])
        # The first place of a document is BOS, its last EOS; neither belongs to a run.
        self._is_break = np.zeros(len(self.tokens) + 1, dtype=bool)
        self._is_break[1:] = ends_line[self.tokens]
        self._is_break[documents.starts[:-1] + 1] = True
        self.breaks = np.flatnonzero(self._is_break)
        ends = documents.starts[np.searchsorted(documents.starts, self.breaks, side="right")] - 1
        room = ends - self.breaks
        # Breaks with the most text before the end of their document come first, so those that leave room for a run
        # stand together; each weighs as much as its paragraph is long, so that lines of verse do not prevail.
        order = np.argsort(-room, kind="stable")
        self._starts, self._room = self.breaks[order], room[order]
        self._weights = np.cumsum(np.diff(self.breaks, append=ends[-1:])[order])

    def run(self, n_tokens: int, rng: np.random.Generator) -> int:
        """Where a run of `n_tokens` within one document begins, at a paragraph; its end falls anywhere. Runs without
        a paragraph longer than a third of them are preferred.

        Raises ConfigError when no document is that long.
        """
        fitting = self._fitting(n_tokens)
        if not fitting:
            raise ConfigError(
                f"no filler document has {n_tokens} tokens after the start of a paragraph (the most are"
                f" {self._room.max(initial=0)}). Choose a smaller length or give longer documents."
            )
        start = 0
        for _ in range(_TRIES // 10):
            drawn = rng.integers(self._weights[fitting - 1])
            start = int(self._starts[np.searchsorted(self._weights, drawn, side="right")])
            # One paragraph of nearly the whole run would herd all facts to one place: rather draw again.
            if np.diff(self.breaks_within(start, n_tokens), append=n_tokens).max() <= n_tokens / 3:
                break
        return start

    def whole_runs(self, n_tokens: int) -> np.ndarray:
        """Every place where a run of exactly `n_tokens` begins and ends with whole paragraphs."""
        starts = self._starts[: self._fitting(n_tokens)]
        return starts[self._is_break[starts + n_tokens]]

    def breaks_within(self, start: int, n_tokens: int) -> np.ndarray:
        """Breaks of a run, counted from its start: 0 first, `n_tokens` last where the run ends with a paragraph."""
        first, last = np.searchsorted(self.breaks, (start, start + n_tokens + 1))
        return self.breaks[first:last] - start

    def _fitting(self, n_tokens: int) -> int:
        return int(np.searchsorted(-self._room, -n_tokens, side="right"))


@dataclass(frozen=True)
class Needle:
    """A question whose answer stands once, somewhere in the prompt. The model should go on with `answer_ids`."""

    prompt_ids: list[int]  # BOS first; ends right before the answer
    answer_ids: list[int]  # prompt_ids + answer_ids are the ids of the joint text
    answer_text: str
    distance: int  # tokens from the first one of the answer where it is stated to where it is asked for
    depth: float  # of the statement, 0 at the start of the prompt, 1 right before the question; as near as breaks allow
    fact: Fact
    distractors: tuple[Fact, ...]  # of the same kind, about other holders, with other answers, in the same prompt


def needle(
    language: str,
    fillers: Fillers,
    tokenizer: Tokenizer,
    *,
    length: int,
    depth: float,
    rng: np.random.Generator,
    kind: str | None = None,
) -> Needle:
    """A prompt of exactly `length` tokens that states one reserved fact at relative depth `depth` and asks for it.

    kind: one of KINDS; None draws it. Two or three distractors stand at random depths.

    Raises ConfigError for an unknown language or kind, a depth outside 0..1, a length too short for the facts, or
    fillers in which no run of whole paragraphs has the length that is left.
    """
    _check(language, tokenizer, length, least=1)
    if not 0 <= depth <= 1 or (kind is not None and kind not in KINDS):
        raise ConfigError(f"depth {depth}, kind {kind!r}: expected 0 to 1 and one of {', '.join(KINDS)}.")
    shortest = None
    for attempt in range(_TRIES):
        fact, *others = _facts_of_kind(language, kind or KINDS[rng.integers(len(KINDS))], int(rng.integers(3, 5)), rng)
        split = _split(fact, tokenizer)
        if split is None:
            continue
        tail, answer_ids, at_answer = split
        pieces = [_line(one.statement, tokenizer) for one in (fact, *others)]
        left = length - 1 - len(tail) - sum(map(len, pieces))
        shortest = min(length - left, shortest or length - left)
        if left <= 0 or not len(runs := fillers.whole_runs(left)):
            continue
        # Of a few runs, the one that has a break nearest to the depth asked for.
        choices = [(int(start), fillers.breaks_within(int(start), left)) for start in rng.choice(runs, 16)]
        start, breaks = min(choices, key=lambda choice: np.abs(choice[1] - depth * left).min())
        at = int(breaks[np.abs(breaks - depth * left).argmin()])
        if abs(at / left - depth) > _CLOSE_ENOUGH and attempt < _TRIES // 2:
            continue
        # Where a distractor shares the needle's break, the needle is the outer one at either end of the prompt.
        places = [(at, -1 if depth < 0.5 else 1, 0)] + [(int(rng.choice(breaks)), 0, i + 1) for i in range(len(others))]
        stated = sorted(places)
        body = _merge(fillers.tokens[start : start + left], [(place, pieces[i]) for place, _, i in stated])
        before = sum(len(pieces[i]) for _, _, i in stated[: stated.index(places[0])])
        assert tokenizer.bos_id is not None  # _check has seen to it
        prompt = [tokenizer.bos_id, *body.tolist(), *tail]
        distance = len(prompt) - (1 + at + before + at_answer)
        return Needle(prompt, answer_ids, fact.answer_text, distance, at / left, fact, tuple(others))
    if shortest is not None and shortest >= length:
        raise ConfigError(
            f"length {length} is too short for a needle: facts and question alone take {shortest} tokens. Take more."
        )
    raise ConfigError(
        f"the filler text has no run of whole paragraphs that makes a prompt of {length} tokens. Give more or longer"
        " documents, or choose another length."
    )


def training_documents(
    language: str, fillers: Fillers, n: int, tokenizer: Tokenizer, length: int = 1024, seed: int = 0, *, first: int = 0
) -> np.ndarray:
    """`n` documents of exactly `length` tokens, uint16 (n, length): BOS and text, cut without EOS.

    Each states 3 to 8 facts (fewer where `length` leaves no room) and asks each once or twice later on; no question is
    cut off. Document i depends on (seed, language, i) alone, and `first` is the first i: parts can be made apart.

    Raises ConfigError for an unknown language, a length below MIN_LENGTH or too short for this tokeniser, or fillers
    without a document that is long enough.
    """
    _check(language, tokenizer, length, least=MIN_LENGTH)
    rows = np.empty((n, length), dtype=np.uint16)
    for i in range(n):
        rng = np.random.default_rng((seed, LANGUAGES.index(language), first + i))
        rows[i] = _training_document(language, fillers, tokenizer, length, rng)
    return rows


def add_recall(
    store: TokenStore,
    tokenizer: Tokenizer,
    *,
    share: float = 0.03,
    epochs: int = 12,
    length: int = 1024,
    seed: int = 0,
    workers: Workers | None = None,
    progress: bool = True,
) -> TokenStore:
    """The store with a stream "recall-LANGUAGE" beside each language, made from its text.

    In an epoch of rows of `length` tokens, `share` of the rows of a language and its stream together are recall
    documents, and no document occurs twice in `epochs` epochs. Languages without material, or with so little text
    that no row falls to recall, get no stream.

    Raises ConfigError for a share outside 0..1 (1 excluded), epochs below 1, and as `training_documents` does.
    """
    from tqdm import tqdm

    if not 0 <= share < 1 or epochs < 1:
        raise ConfigError(f"recall share {share}, {epochs} epochs: expected 0 <= share < 1 and 1 epoch or more.")
    workers = workers or Workers(tokenizer, 1)
    parts: dict[str, list[Future[Documents]]] = {}
    per_epoch: dict[str, float] = {}
    for language in (name for name in store.languages if name in LANGUAGES):
        rows = round(len(store[language].tokens) // length * store.per_epoch[language] * share / (1 - share))
        if rows:
            # One more than the epochs take, since the last document of a pass has no row of its own (see data.py).
            n = rows * epochs + 1
            per_epoch[f"recall-{language}"] = 1 / epochs
            bounds = np.linspace(0, n, min(n, -(-workers.count // len(LANGUAGES))) + 1).astype(int).tolist()
            parts[f"recall-{language}"] = [
                workers.submit(_part, language, store[language], end - first, length, seed, first)
                for first, end in pairwise(bounds)
            ]
    futures = [part for of_language in parts.values() for part in of_language]
    for part in tqdm(futures, "recall documents", disable=not progress or not futures):
        part.result()
    streams = {name: join([part.result() for part in of_language]) for name, of_language in parts.items()}
    return replace(store, languages=store.languages | streams, per_epoch=store.per_epoch | per_epoch)


def _part(
    tokenizer: Tokenizer, language: str, documents: Documents, n: int, length: int, seed: int, first: int
) -> Documents:
    rows = training_documents(language, Fillers(documents, tokenizer), n, tokenizer, length, seed, first=first)
    n_bytes = [len(tokenizer.decode(row).encode()) for row in rows.tolist()]
    return Documents(rows.reshape(-1), np.arange(n + 1, dtype=np.int64) * length, np.array(n_bytes, dtype=np.int64))


def _training_document(
    language: str, fillers: Fillers, tokenizer: Tokenizer, length: int, rng: np.random.Generator
) -> np.ndarray:
    n_facts, n_kinds = int(rng.integers(3, 9)), int(rng.integers(1, 4))
    kinds = rng.permutation(len(KINDS))[:n_kinds]
    events: list[list[list[int]]] = []  # of each fact the statement and its questions
    for k, kind in enumerate(kinds):
        facts = _facts_of_kind(language, KINDS[kind], len(range(k, n_facts, n_kinds)), rng, reserved=False)
        for fact in facts:
            asked = _line(fact.prompt + fact.completion, tokenizer)
            events.append([_line(fact.statement, tokenizer)] + [asked] * (1 + int(rng.random() < _ASKED_TWICE)))
    while len(events) > 1 and _n_tokens(events) > length // 2:
        events.pop(int(rng.integers(len(events))))
    left = length - 1 - _n_tokens(events)
    if left <= 0:
        raise ConfigError(f"length {length} is too short for one fact and its question, {length - left} tokens.")
    start = fillers.run(left, rng)
    breaks = fillers.breaks_within(start, left)
    places: list[tuple[int, bool, float, list[int]]] = []  # sorted by break, statements before questions
    for statement, *questions in events:
        first, later = _places(breaks, len(questions), rng)
        places.append((first, False, rng.random(), statement))
        places += [(place, True, rng.random(), ids) for place, ids in zip(later, questions, strict=True)]
    places.sort(key=lambda place: place[:3])
    body = _merge(fillers.tokens[start : start + left], [(place, ids) for place, _, _, ids in places])
    assert tokenizer.bos_id is not None  # _check has seen to it
    return np.concatenate([[tokenizer.bos_id], body])


def _places(breaks: np.ndarray, n_questions: int, rng: np.random.Generator) -> tuple[int, list[int]]:
    """Breaks for a statement and its questions: distances half log-uniform (near ones count), half uniform (and far
    ones occur).
    """
    span = int(breaks[-1])
    distances = [
        _MIN_DISTANCE * (span / _MIN_DISTANCE) ** rng.random()
        if span > _MIN_DISTANCE and rng.random() < 0.5
        else span * rng.random()
        for _ in range(n_questions)
    ]
    stated = rng.random() * (span - max(distances))
    first = int(np.abs(breaks - stated).argmin())
    later = [int(breaks[max(first, int(np.abs(breaks - stated - d).argmin()))]) for d in distances]
    return int(breaks[first]), later


def _facts_of_kind(language: str, kind: str, n: int, rng: np.random.Generator, *, reserved: bool = True) -> list[Fact]:
    """`n` facts about different holders with different answers. reserved: the first one is; otherwise none is."""
    while True:
        holders = rng.permutation(len(HOLDERS))[:n].tolist()
        answers = rng.permutation(len(ANSWERS[kind]))[:n].tolist()
        facts = [Fact(language, kind, holder, answer) for holder, answer in zip(holders, answers, strict=True)]
        if facts[0].is_reserved if reserved else not any(fact.is_reserved for fact in facts):
            return facts


def _split(fact: Fact, tokenizer: Tokenizer) -> tuple[list[int], list[int], int] | None:
    """Ids of the prompt and of the answer, and the answer's place in the statement. None where the tokeniser would
    melt the answer with its neighbours, so that a right answer could be spelled in other ids.
    """
    prompt, answer = (_encode(text, tokenizer) for text in (fact.prompt, fact.answer_with_space))
    whole = _encode(fact.prompt + fact.completion, tokenizer)
    stated = _line(fact.statement, tokenizer)
    end = len(stated) - len(_line(fact.completion.removeprefix(fact.answer_with_space), tokenizer))
    fits = whole[: len(prompt) + len(answer)] == prompt + answer and stated[end - len(answer) : end] == answer
    return (prompt, answer, end - len(answer)) if fits else None


def _merge(text: np.ndarray, pieces: list[tuple[int, list[int]]]) -> np.ndarray:
    """`text` with each piece put in before its place; places ascend."""
    parts: list[np.ndarray] = []
    done = 0
    for place, ids in pieces:
        parts += [text[done:place], np.array(ids, dtype=text.dtype)]
        done = place
    return np.concatenate([*parts, text[done:]])


def _line(text: str, tokenizer: Tokenizer) -> list[int]:
    return _encode(text + "\n", tokenizer)


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text, bos=False, parse_special=False)


def _n_tokens(events: list[list[list[int]]]) -> int:
    return sum(len(ids) for pieces in events for ids in pieces)


def _check(language: str, tokenizer: Tokenizer, length: int, *, least: int) -> None:
    if language not in LANGUAGES:
        raise ConfigError(f"no recall documents in language {language!r}: there are {', '.join(LANGUAGES)}.")
    if length < least:
        raise ConfigError(f"recall documents of {length} tokens: expected {least} or more.")
    if tokenizer.bos_id is None:
        raise ConfigError("the tokeniser names no bos_token, with which recall documents begin.")
