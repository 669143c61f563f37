"""A small, real tokenizer for models that exist only to be tested.

Promises: byte-level BPE, so every text can be encoded and decoded back exactly; the same arguments give the same
tokenizer on every machine; special tokens <pad> (0), <s> (1) and </s> (2) come first; and, unless left out, a chat
template in the shape that instruction-tuned models have.
"""

import json
import os
import random

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
ROLE_START, ROLE_END = "<|role|>", "<|end|>"
SPECIAL_TOKENS = [PAD, BOS, EOS, ROLE_START, ROLE_END]

# Bytes are the alphabet, so this is the least a vocabulary can be.
SMALLEST_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)

CHAT_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{%- if message.role not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role ' ~ message.role) -}}"
    "{%- endif -%}"
    "{{- '<|role|>' ~ message.role ~ '\\n' ~ message.content ~ '<|end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|role|>assistant\\n' -}}{%- endif -%}"
)

# Some languages and symbols, so that characters of one to four bytes are cut by token borders as they are in real models.
TEXT = """
The night shift begins when the last train has left the station. Somebody has to count the wagons, sweep the
platform, read the meters and write the numbers into the book. Nobody asks how it went; in the morning the book is
full, or it is not. The old porter says that a good night is one about which there is nothing to tell.
When it rains the signals are hard to see, and the clerk goes out with a lamp to make sure. Two and two are four,
three and four are seven, seven and eight are fifteen; the sums have to be right before anyone may go home.
Question: what is the capital of France? Answer: Paris. Question: how many legs has a spider? Answer: eight.
def add(left, right): return left + right
for number in range(10): print(number, number * number)
{"name": "night", "rows": [1, 2, 3], "done": true, "error": null}
Die Nachtschicht beginnt, wenn der letzte Zug gefahren ist. Über den Gleisen hängt der Nebel, und die Bahnhofsuhr
schlägt zwölf. Wer jetzt noch wach ist, hört die Züge in der Ferne. Größe, Straße, Mädchen, schön, für.
L'équipe de nuit arrive à minuit; le café est déjà prêt, la lumière brûle, et personne ne dort. Où est la clé ?
El turno de noche comienza mañana; el niño sueña con años de lluvia y montañas.
夜勤は終電のあとに始まる。駅員は明かりを持って歩き、数字を帳簿に書く。朝になれば仕事は終わる。
夜班从末班车离开以后开始。天亮以前一切都要写完。
Ночная смена начинается после последнего поезда. Утром всё должно быть готово.
🌙 ⭐ 🚂 ☕ 📓 ✅ – — … “quoted” ‘text’ € ° ½
"""


def train(vocab_size, seed):
    """A `tokenizers.Tokenizer` with exactly `vocab_size` tokens, or a few fewer where no more merges can be found."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if vocab_size < SMALLEST_VOCAB_SIZE:
        raise ValueError(f"a byte-level vocabulary has at least {SMALLEST_VOCAB_SIZE} tokens, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(vocab_size, seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    return tokenizer


def write(tokenizer, directory, max_position, with_chat_template):
    """Writes tokenizer.json and tokenizer_config.json in the form `transformers` reads."""
    tokenizer.save(os.path.join(directory, "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [ROLE_START, ROLE_END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_position,
    }
    if with_chat_template:
        config["chat_template"] = CHAT_TEMPLATE
    with open(os.path.join(directory, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, ensure_ascii=True)


def _corpus(vocab_size, seed):
    """The text, and invented words after it until a large vocabulary finds enough to merge."""
    yield TEXT
    rng = random.Random(seed)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    for _ in range(max(0, vocab_size - 700)):
        yield " " + "".join(rng.choice(syllables) for _ in range(rng.randint(2, 5)))
