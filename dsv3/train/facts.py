"""Facts for recall documents: who, what about them, and which answers, in three languages.

A fact is a holder ("the baker"), a kind ("the secret word of ... is") and an answer ("amber"). All answers of a kind
fit all holders, so none can be guessed. The same pairs of holder and answer are reserved in every language: they are
kept for needles, and no training document states them.
"""

import hashlib
from dataclasses import dataclass
from functools import cache

LANGUAGES = ("en", "es", "zh")
_RESERVED_OF_256 = 26

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
