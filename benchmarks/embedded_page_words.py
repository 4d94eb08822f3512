"""What tables of the embedded model's pages say in words, in English, Spanish and Chinese; embedded_pages.py fills in.

Numbers that come from a file stand as {name}: the same in the three languages, which tests/docs compares.
"""

LANGUAGES = ("en", "es", "zh")

WORDS: dict[str, tuple[str, str, str]] = {
    "English": ("English", "inglés", "英文"),
    "Spanish": ("Spanish", "español", "西班牙文"),
    "Chinese": ("Chinese", "chino", "中文"),
    "embedded model": ("embedded model", "modelo incluido", "内置模型"),
    "dense model": ("dense model", "modelo denso", "稠密模型"),
    "difference": ("difference", "diferencia", "差"),
    # Shape.
    "layers": ("layers, of which dense", "capas, de ellas densas", "层数，其中稠密层"),
    "width": ("width", "ancho", "宽度"),
    "heads": ("attention heads", "cabezas de atención", "注意力头"),
    "latents": (
        "query and key-value latents",
        "vectores latentes de consulta y de clave-valor",
        "查询与键值的潜向量",
    ),
    "experts": (
        "routed experts per layer, of which active",
        "expertos enrutados por capa, de ellos activos",
        "每层的路由专家，其中激活",
    ),
    "groups": (
        "groups of experts, of which a token may reach",
        "grupos de expertos, de ellos al alcance de un token",
        "专家组，其中一个 token 可到达",
    ),
    "expert width": ("width of an expert", "ancho de un experto", "单个专家的宽度"),
    "vocabulary": ("vocabulary", "vocabulario", "词表"),
    "context": ("context", "contexto", "上下文"),
    "parameters": ("parameters of the main model", "parámetros del modelo principal", "主模型的参数"),
    "activated": ("of these activated per token", "de ellos activados por token", "其中每个 token 激活"),
    "MTP parameters": (
        "parameters of the MTP module's own",
        "parámetros propios del módulo MTP",
        "MTP 模块自有的参数",
    ),
    # Text.
    "works": ("works", "obras", "作品"),
    "text for training": ("text for training", "texto de entrenamiento", "训练文本"),
    "tokens": ("tokens", "tokens", "token 数"),
    "text for validation": (
        "validation text, and its documents",
        "texto de validación, y sus documentos",
        "验证文本，及其文档数",
    ),
    "verses": (
        "held-out verses, and their chapters",
        "versículos reservados, y sus capítulos",
        "留出的经文，及其章数",
    ),
    # Choices.
    "run": ("run", "ejecución", "训练"),
    "mean": ("mean", "media", "平均"),
    "to the first": ("to the first", "frente a la primera", "与第一行相比"),
    "tokens per second": ("tokens/s", "tokens/s", "token/s"),
    "activated parameters": ("activated parameters", "parámetros activados", "激活参数"),
    "muon": (
        "the first: Muon, learning rate {lr}, weight decay {weight_decay}, batches of {batch} tokens",
        "la primera: Muon, tasa de aprendizaje {lr}, decaimiento de pesos {weight_decay}, lotes de {batch} tokens",
        "第一行：Muon，学习率 {lr}，权重衰减 {weight_decay}，批次为 {batch} 个 token",
    ),
    "muon-lr-6e-3": ("learning rate {lr}", "tasa de aprendizaje {lr}", "学习率 {lr}"),
    "muon-lr-1.5e-3": ("learning rate {lr}", "tasa de aprendizaje {lr}", "学习率 {lr}"),
    "half-constant": (
        "as for the model: constant, then falling over the second half",
        "como el modelo: constante y luego en descenso en la segunda mitad",
        "与模型相同：先恒定，后一半下降",
    ),
    "falling": ("falling from the start to 0", "en descenso desde el principio hasta 0", "从一开始降到 0"),
    "falling-decay-1": (
        "the same, weight decay {weight_decay}",
        "lo mismo, decaimiento de pesos {weight_decay}",
        "同上，权重衰减 {weight_decay}",
    ),
    "falling-lr-5e-3-decay-0.6": (
        "the same, learning rate {lr}, weight decay {weight_decay}",
        "lo mismo, tasa de aprendizaje {lr}, decaimiento de pesos {weight_decay}",
        "同上，学习率 {lr}，权重衰减 {weight_decay}",
    ),
    "muon-decay-0.3": ("weight decay {weight_decay}", "decaimiento de pesos {weight_decay}", "权重衰减 {weight_decay}"),
    "batch-32768": (
        "batches of {batch} tokens, and {steps} steps instead of {first_steps}",
        "lotes de {batch} tokens, y {steps} pasos en vez de {first_steps}",
        "批次为 {batch} 个 token，{steps} 步而不是 {first_steps} 步",
    ),
    "adamw": ("AdamW, learning rate {lr}", "AdamW, tasa de aprendizaje {lr}", "AdamW，学习率 {lr}"),
    "adamw-lr-6e-3": ("AdamW, learning rate {lr}", "AdamW, tasa de aprendizaje {lr}", "AdamW，学习率 {lr}"),
    "adamw-lr-1.5e-3": ("AdamW, learning rate {lr}", "AdamW, tasa de aprendizaje {lr}", "AdamW，学习率 {lr}"),
    "vocab-4096": (
        "vocabulary of {vocab_size}, {n_routed_experts} experts",
        "vocabulario de {vocab_size}, {n_routed_experts} expertos",
        "词表 {vocab_size}，{n_routed_experts} 个专家",
    ),
    "vocab-12288": (
        "vocabulary of {vocab_size}, {n_routed_experts} experts",
        "vocabulario de {vocab_size}, {n_routed_experts} expertos",
        "词表 {vocab_size}，{n_routed_experts} 个专家",
    ),
    "deep": (
        "{n_layers} layers, {n_routed_experts} experts",
        "{n_layers} capas, {n_routed_experts} expertos",
        "{n_layers} 层，{n_routed_experts} 个专家",
    ),
    "wide": (
        "width {dim}, {n_layers} layers, {n_routed_experts} experts",
        "ancho {dim}, {n_layers} capas, {n_routed_experts} expertos",
        "宽度 {dim}，{n_layers} 层，{n_routed_experts} 个专家",
    ),
    "two-dense": (
        "{n_dense_layers} dense layers, {n_routed_experts} experts",
        "{n_dense_layers} capas densas, {n_routed_experts} expertos",
        "{n_dense_layers} 个稠密层，{n_routed_experts} 个专家",
    ),
    "few-wide-experts": (
        "{n_routed_experts} experts of width {moe_inter_dim}, {n_activated_experts} active",
        "{n_routed_experts} expertos de ancho {moe_inter_dim}, {n_activated_experts} activos",
        "{n_routed_experts} 个宽度为 {moe_inter_dim} 的专家，激活 {n_activated_experts} 个",
    ),
    "six-active": (
        "{n_activated_experts} active experts",
        "{n_activated_experts} expertos activos",
        "激活 {n_activated_experts} 个专家",
    ),
    "eight-active": (
        "{n_activated_experts} active experts",
        "{n_activated_experts} expertos activos",
        "激活 {n_activated_experts} 个专家",
    ),
    # Settings of the training.
    "steps": ("steps", "pasos", "步数"),
    "steps of": (
        "{steps} steps of {batch} tokens, {tokens} tokens: the text {passes} times",
        "{steps} pasos de {batch} tokens, {tokens} tokens: el texto {passes} veces",
        "{steps} 步，每步 {batch} 个 token，共 {tokens} 个 token：文本读了 {passes} 遍",
    ),
    "rows": ("rows", "filas", "行"),
    "rows of": (
        "{seq_len} tokens, documents packed one after another, masked from one another in attention and in the targets",
        "{seq_len} tokens, documentos empaquetados uno tras otro; ni la atención ni los objetivos pasan de un "
        "documento a otro",
        "{seq_len} 个 token，文档首尾相接地打包，注意力和目标都不跨越文档",
    ),
    "recall documents": ("recall documents", "documentos para recordar", "回忆文档"),
    "recall documents of": (
        "{share} of the rows of each language, others in every pass",
        "el {share} de las filas de cada idioma, otros en cada vuelta",
        "每种语言的行中占 {share}，每一遍都换新的",
    ),
    "losses": ("losses", "pérdidas", "损失"),
    "losses of": (
        "next token + {mtp_weight} × MTP + {balance_weight} × sequence-wise balance loss",
        "token siguiente + {mtp_weight} × MTP + {balance_weight} × pérdida de balanceo por secuencia",
        "下一个 token + {mtp_weight} × MTP + {balance_weight} × 序列级均衡损失",
    ),
    "load balancing": ("load balancing", "balanceo de carga", "负载均衡"),
    "load balancing of": (
        "bias update speed {bias_update}, 0 in the last {freeze} of the steps",
        "velocidad de actualización del sesgo {bias_update}; 0 en el último {freeze} de los pasos",
        "偏置更新速度 {bias_update}，最后 {freeze} 的步数为 0",
    ),
    "optimiser": ("optimiser", "optimizador", "优化器"),
    "optimiser of": (
        "Muon for the hidden matrices, AdamW for embedding, head, gates and norms; β {beta1} and {beta2}, weight decay "
        "{weight_decay}, gradient clipping at {clip}",
        "Muon para las matrices ocultas, AdamW para el embedding, la cabeza de salida, las compuertas y las normas; "
        "β {beta1} y {beta2}, decaimiento de pesos {weight_decay}, recorte de gradientes en {clip}",
        "隐藏层矩阵用 Muon，嵌入、输出头、门控和归一化用 AdamW；β 为 {beta1} 和 {beta2}，权重衰减 "
        "{weight_decay}，梯度裁剪 {clip}",
    ),
    "learning rate": ("learning rate", "tasa de aprendizaje", "学习率"),
    "learning rate of": (
        "{lr} after {warmup_steps} steps of warm-up; cosine decay over the last {decay} down to {floor}",
        "{lr} tras {warmup_steps} pasos de calentamiento; decaimiento coseno en el último {decay} hasta el {floor}",
        "预热 {warmup_steps} 步后为 {lr}；最后 {decay} 余弦衰减到 {floor}",
    ),
    "precision": ("precision", "precisión", "精度"),
    "precision of": (
        "BF16, with master weights and moments in FP32; quantised to FP8 at the end",
        "BF16, con pesos maestros y momentos en FP32; cuantización a FP8 al final",
        "BF16，主权重与矩估计为 FP32；最后量化为 FP8",
    ),
    "time": ("time", "tiempo", "时间"),
    "time of": (
        "{seconds} s on one H100 on {date}, compilation included; about {speed}M tokens/s",
        "{seconds} s en una H100 el {date}, compilación incluida; cerca de {speed}M tokens/s",
        "{date} 在一块 H100 上用时 {seconds} s，含编译；约每秒 {speed}M 个 token",
    ),
    "training figure": (
        "Losses, bits per byte on the validation text, balance of the experts, learning rate and speed by step. Bits "
        "per byte fall from {en} to {en_last} in English, from {es} to {es_last} in Spanish and from {zh} to {zh_last} "
        "in Chinese between steps {first} and {last}",
        "Pérdidas, bits por byte en el texto de validación, balanceo de los expertos, tasa de aprendizaje y velocidad "
        "por paso. Los bits por byte bajan de {en} a {en_last} en inglés, de {es} a {es_last} en español y de {zh} a "
        "{zh_last} en chino entre los pasos {first} y {last}",
        "各步的损失、验证文本的每字节比特数、专家的均衡、学习率和速度。从第 {first} 步到第 {last} 步，每字节比特数在"
        "英文上从 {en} 降到 {en_last}，西班牙文从 {es} 降到 {es_last}，中文从 {zh} 降到 {zh_last}",
    ),
    # The course of the training.
    "step": ("step", "paso", "步"),
    "gap": ("gap, {language}", "brecha, {language}", "差距，{language}"),
    "bits": ("bits per byte, {language}", "bits por byte, {language}", "每字节比特数，{language}"),
    # Quality and writing.
    "validation": ("bits per byte, validation text", "bits por byte, texto de validación", "每字节比特数，验证文本"),
    "held-out verses": (
        "bits per byte, held-out verses",
        "bits por byte, versículos reservados",
        "每字节比特数，留出的经文",
    ),
    "MTP agreement": (
        "MTP agreement, validation text",
        "coincidencia de MTP, texto de validación",
        "MTP 一致率，验证文本",
    ),
    "MTP acceptance, greedy": ("MTP acceptance, greedy", "aceptación de MTP, voraz", "MTP 接受率，贪心"),
    "MTP acceptance, sampled": ("MTP acceptance, sampled", "aceptación de MTP, con muestreo", "MTP 接受率，采样"),
    "repeated 4-grams, greedy": ("repeated 4-grams, greedy", "4-gramas repetidos, voraz", "重复的 4-gram，贪心"),
    "repeated 4-grams, sampled": (
        "repeated 4-grams, sampled",
        "4-gramas repetidos, con muestreo",
        "重复的 4-gram，采样",
    ),
    "speculative": (
        "speculative greedy texts equal to plain ones",
        "textos voraces con decodificación especulativa iguales a los de sin ella",
        "推测解码与普通贪心解码逐 token 相同的文本",
    ),
    "other script, greedy": (
        "texts with letters of another script, greedy",
        "textos con letras de otra escritura, voraz",
        "夹有其他文字的文本，贪心",
    ),
    "other script, sampled": (
        "texts with letters of another script, sampled",
        "textos con letras de otra escritura, con muestreo",
        "夹有其他文字的文本，采样",
    ),
    "other language leads, greedy": (
        "texts that went over into the other language, greedy",
        "textos que pasaron al otro idioma, voraz",
        "转到另一种语言的文本，贪心",
    ),
    "other language leads, sampled": (
        "texts that went over into the other language, sampled",
        "textos que pasaron al otro idioma, con muestreo",
        "转到另一种语言的文本，采样",
    ),
    # Verbatim runs.
    "run, greedy": ("greedy", "voraz", "贪心"),
    "run, sampled": ("sampled", "con muestreo", "采样"),
    "run, true continuation": ("true continuation", "continuación verdadera", "原书的续文"),
    "in tokens": ("{mode}: tokens", "{mode}: tokens", "{mode}：token"),
    "in characters": ("{mode}: characters", "{mode}: caracteres", "{mode}：字符"),
    # Dense.
    "of what": ("bits per byte", "bits por byte", "每字节比特数"),
    "text, validation": ("validation text, {language}", "texto de validación, {language}", "验证文本，{language}"),
    "text, heldout": ("held-out verses, {language}", "versículos reservados, {language}", "留出的经文，{language}"),
    "dense parameters": (
        "parameters of the main model; activated per token",
        "parámetros del modelo principal; activados por token",
        "主模型的参数；每个 token 激活",
    ),
    "training seconds": ("seconds of training", "segundos de entrenamiento", "训练秒数"),
    # Routing.
    "layer": ("layer {i}", "capa {i}", "第 {i} 层"),
    "MaxVio": ("MaxVio", "MaxVio", "MaxVio"),
    "language distance": ("distance between languages", "distancia entre idiomas", "语言之间的距离"),
    "experts figure": (
        "For every expert of every layer the languages' parts of its work. Experts of which one language has more than "
        "half: {counts}",
        "Para cada experto de cada capa, la parte de su trabajo que corresponde a cada idioma. Expertos de los que un "
        "solo idioma tiene más de la mitad: {counts}",
        "每一层每个专家的工作由各语言分得的比例。一种语言占一半以上的专家：{counts}",
    ),
    "owned": ("{block}: {n} of {all}", "{block}: {n} de {all}", "{block}：{all} 个中 {n} 个"),
    # Needles.
    "needles": ("needles", "agujas", "针的数目"),
    "right": ("right answers", "respuestas correctas", "答对"),
    "another holder's": (
        "the answer of another fact in the text",
        "la respuesta de otro hecho del texto",
        "答成文中另一个事实的答案",
    ),
    "chance": ("right by chance", "correctas por azar", "碰运气答对"),
    "any stated": (
        "right by naming any answer in the text",
        "correctas al nombrar cualquier respuesta del texto",
        "随便说出文中一个答案而答对",
    ),
    "lowest cell": ("lowest cell of the map", "celda más baja del mapa", "图中最低的单元格"),
    "kind, city": ("right, cities", "correctas, ciudades", "答对，城市"),
    "kind, horse": ("right, horses' names", "correctas, nombres de caballos", "答对，马名"),
    "kind, number": ("right, numbers", "correctas, números", "答对，数字"),
    "kind, treasure": ("right, hiding places", "correctas, escondites", "答对，藏宝处"),
    "kind, word": ("right, secret words", "correctas, palabras secretas", "答对，暗号"),
    "needle figure": (
        "Needle maps: share of right answers by length of the context and depth of the fact, in tokens and from first "
        "to last. Means: {means}",
        "Mapas de la aguja en un pajar: parte de respuestas correctas según la longitud del contexto, en tokens, y la "
        "profundidad del hecho, del principio al final. Medias: {means}",
        "大海捞针图：按上下文长度（token 数）和事实所在深度（从最前到最后）的答对比例。平均：{means}",
    ),
    # Balancing and MTP compared.
    "bias": (
        "bias, and a balance loss of weight {weight}",
        "sesgo, y una pérdida de balanceo de peso {weight}",
        "偏置，加上权重为 {weight} 的均衡损失",
    ),
    "auxiliary": (
        "balance loss of weight {weight} alone",
        "solo una pérdida de balanceo de peso {weight}",
        "只有权重为 {weight} 的均衡损失",
    ),
    "nothing": ("neither of them", "sin ninguno de los dos", "两者皆无"),
    "seed": ("{method}, seed {seed}", "{method}, semilla {seed}", "{method}，种子 {seed}"),
    "mean MaxVio": ("MaxVio, mean of blocks", "MaxVio, media de los bloques", "MaxVio，各块平均"),
    "worst MaxVio": ("MaxVio, highest", "MaxVio, el mayor", "MaxVio，最高"),
    "MTP on": ("with the MTP module", "con el módulo MTP", "有 MTP 模块"),
    "MTP off": ("without it", "sin él", "没有 MTP 模块"),
    "balance figure": (
        "Training loss and MaxVio of a batch by step for three ways of balancing. Over the last {n} logged steps the "
        "means are: {ends}",
        "Pérdida de entrenamiento y MaxVio de un lote por paso con tres maneras de balancear. En los últimos {n} pasos "
        "registrados las medias son: {ends}",
        "三种均衡方法各步的训练损失与单个批次的 MaxVio。记录的最后 {n} 步的平均：{ends}",
    ),
    "balance end": ("{method}: {loss} and {maxvio}", "{method}: {loss} y {maxvio}", "{method}：{loss} 和 {maxvio}"),
    # Thresholds.
    "threshold": ("threshold", "umbral", "门槛"),
    "measured": ("measured", "medido", "测得"),
    "margin": ("worst less threshold", "el peor menos el umbral", "最差值减门槛"),
    "verdict": ("verdict", "resultado", "结果"),
    "met": ("met", "cumplido", "达到"),
    "missed": ("missed", "no cumplido", "未达到"),
    "missed in": ("missed in {languages}", "no cumplido en {languages}", "{languages}未达到"),
    "threshold MaxVio": (
        "MaxVio below {limit} in every MoE layer, whole validation text",
        "MaxVio inferior a {limit} en todas las capas MoE, texto de validación completo",
        "整个验证文本上每个 MoE 层的 MaxVio 低于 {limit}",
    ),
    "threshold acceptance": (
        "{mode}: at least {limit}",
        "{mode}: al menos {limit}",
        "{mode}：至少 {limit}",
    ),
    "aim acceptance": ("{mode}: the aim of {limit}", "{mode}: el objetivo del {limit}", "{mode}：目标 {limit}"),
    "threshold dense": (
        "fewer bits per byte than the dense model, validation text",
        "menos bits por byte que el modelo denso, texto de validación",
        "验证文本上的每字节比特数低于稠密模型",
    ),
    "threshold speculative": (
        "speculative greedy decoding writes what greedy decoding writes",
        "la decodificación voraz especulativa escribe lo mismo que la voraz",
        "推测式贪心解码写出的与贪心解码相同",
    ),
    "highest": ("{value}, {block}", "{value}, {block}", "{value}，{block}"),
    "points": ("{value} points", "{value} puntos", "{value} 个百分点"),
    "of": ("{n} of {all}", "{n} de {all}", "{all} 篇中 {n} 篇"),
    # The card.
    "needle, card": (
        "needle in a haystack, right answers",
        "aguja en un pajar, respuestas correctas",
        "大海捞针，答对",
    ),
    # Samples.
    "greedy sample": ("{language}, greedy:", "{language}, voraz:", "{language}，贪心："),
    "sampled sample": (
        "{language}, temperature {temperature}, top-p {top_p}, seed {seed}:",
        "{language}, temperatura {temperature}, top-p {top_p}, semilla {seed}:",
        "{language}，温度 {temperature}，top-p {top_p}，种子 {seed}：",
    ),
}
