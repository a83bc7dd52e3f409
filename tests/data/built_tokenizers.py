"""Small tokenizers of the kinds that models have, built on the spot."""

import json
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = ["the quick brown fox jumps over the lazy dog\n", "Ünïcode, 漢字 and  two blanks "] * 20
BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA3_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_bpe(words, special):
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = words
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=330, show_progress=False, initial_alphabet=alphabet, special_tokens=special
        ),
    )
    model.decoder = decoders.ByteLevel()
    return model


def gpt2():
    return _byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])


def byte_level_with_blank():
    return _byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<s>", "</s>"])


def llama3():
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(LLAMA3_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model = _byte_bpe(words, [])
    model.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    content = json.loads(model.to_str())
    content["model"]["ignore_merges"] = True
    model = Tokenizer.from_str(json.dumps(content))
    model.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 330)]
    )
    return model


def qwen():
    model = llama3()
    model.normalizer = normalizers.NFC()
    model.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("<think>")])
    return model


def neox():
    model = gpt2()
    model.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    model.add_tokens([AddedToken("<eats blanks>", lstrip=True, rstrip=True)])
    return model


def llama2():
    model = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *BYTES]
    texts = [*TEXTS, "</s> <s> <0x0A> <unk>"] * 3  # merges lead to special tokens, too
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, special_tokens=special)
    model.train_from_iterator(texts, trainer)
    model.pre_tokenizer = None
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
    )
    content = json.loads(model.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    _merge_to(content["model"], "</s>")
    _merge_to(content["model"], "<0x0A>")
    return Tokenizer.from_str(json.dumps(content))


def _merge_to(model, token):
    """Adds merges, before all others, that make a token from its letters."""
    merges = []
    for length in range(2, len(token) + 1):
        for part in (token[:length], token[length - 1]):
            model["vocab"].setdefault(part, len(model["vocab"]))
        merges.append([token[: length - 1], token[length - 1]])
    model["merges"] = merges + model["merges"]


def unigram():
    letters = sorted(set("".join(TEXTS)) - {" "})
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *letters, BLANK, BLANK + "the", "qu", "ick"]
    scores = {"</s>": 0.0, "<s>": 0.0, BLANK + "the": -2.0, "qu": -3.0, "ick": -3.0}
    vocab = [(piece, scores.get(piece, -5.0)) for piece in pieces]
    model = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    return model


def wordpiece():
    model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer()
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, show_progress=False, special_tokens=special)
    model.train_from_iterator(TEXTS, trainer)
    return model


LOSSLESS = {f.__name__: f for f in (gpt2, byte_level_with_blank, llama3, neox, llama2, unigram)}
ALL = {**LOSSLESS, "qwen": qwen, "wordpiece": wordpiece}


@cache
def built_json(name):
    """The content of the tokenizer.json of a kind."""
    return ALL[name]().to_str()
