"""Makes tokenizer.json: a byte-level BPE of 512 tokens, trained on the quickstart's own sentences.

Run with `pip install tokenizers`, then `python make_tokenizer.py`.
"""

import itertools
import pathlib
import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

here = pathlib.Path(__file__).parent
words = re.findall(r'\("([^"]+)", "([^"]+)"\)', (here / "../../src/commands/quickstart/lesson.rs").read_text())
english = [pair[0] for pair in words]
german = [pair[1] for pair in words]
corpus = ["Translate into German: " + " ".join(c) for c in itertools.permutations(english[::3], 3)]
corpus += [" ".join(c) for c in itertools.permutations(german[::3], 3)]
corpus += [f"Translate into German: {a} {b}" for a, b in itertools.product(english, english)]
corpus += [f"{a} {b}" for a, b in itertools.product(german, german)]
corpus += ["user\n", "assistant\n", "system\n"] * 50

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=512,
    special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
)
tokenizer.train_from_iterator(corpus, trainer)
tokenizer.save(str(here / "tokenizer.json"))
print(tokenizer.get_vocab_size(), "tokens")
