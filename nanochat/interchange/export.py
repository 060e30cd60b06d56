"""A trained model as a folder that `transformers` loads; needs the extra [hf]."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from nanochat.errors import UserError
from nanochat.files import whole_or_not_at_all, write_json
from nanochat.interchange.names import TRANSFORMERS, to_theirs
from nanochat.interchange.transformers_format import MODELING_FILE, characters_of_bytes, config_json, is_classic
from nanochat.model import Transformer
from nanochat.tokenizer import Tokenizer

TABLES = ("embedding", "head", "value_embeddings")  # a row a token
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


def export_transformers(model: Transformer, tokenizer: Tokenizer, folder: Path, *, chat: bool, name: str) -> None:
    """Write config.json, model.safetensors, tokenizer.json, a chat template if it was taught to chat, and README.md.

    Rows of the tables that stand for no token, which are never generated here, are left out.

    Raises UserError: the folder is there already, the disk is full, or the extra is not installed.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already", "name another --out, or delete it")
    fast = _fast_tokenizer(tokenizer, model.config.max_seq_len, chat=chat)
    folder.parent.mkdir(parents=True, exist_ok=True)
    architecture, count = replace(model.config, vocab_size=tokenizer.vocab_size), tokenizer.vocab_size
    config = config_json(architecture, tokenizer)
    with whole_or_not_at_all(folder) as partial:
        fast.save_pretrained(partial)
        ours = {key: (tensor[:count] if key.partition(".")[0] in TABLES else tensor).float().cpu()
                for key, tensor in model.named_parameters()}  # fmt: skip
        weights = to_theirs(ours, TRANSFORMERS)
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, partial / "model.safetensors",
                  metadata={"format": "pt"})  # fmt: skip
        write_json(partial / "config.json", config)
        ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(partial / "generation_config.json", ends)
        if not is_classic(model.config):
            shutil.copyfile(MODELING_FILE, partial / MODELING_FILE.name)
        (partial / "README.md").write_text(_card(name, own=not is_classic(model.config), chat=chat), encoding="utf-8")


def _fast_tokenizer(tokenizer: Tokenizer, context: int, *, chat: bool) -> Any:
    """The same ids for any text, with `<|bos|>` put before it, as the model was trained."""
    try:
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
        from tokenizers import Tokenizer as Backend
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise UserError("exporting for transformers needs it installed", 'pip install -e ".[hf]"') from None
    characters = characters_of_bytes()
    written = ["".join(characters[value] for value in token) for token in tokenizer.tokens]
    as_written = dict(zip(tokenizer.tokens, written, strict=True))
    merges = [(as_written[left], as_written[right]) for left, right in _merges(tokenizer.tokens)]
    vocabulary = {token: number for number, token in enumerate(written)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(tokenizer.pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])  # fmt: skip
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in tokenizer.special_tokens])
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", tokenizer.bos_id)])  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|assistant_end|>" if chat else "<|bos|>",
        pad_token="<|bos|>",
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE if chat else None,
    )


def _merges(tokens: tuple[bytes, ...]) -> list[tuple[bytes, bytes]]:
    """The two tokens that each longer one was merged from, in order: what merging its bytes by the earlier ranks comes
    down to. Raises ValueError where that is not two."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found = []
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        parts = [bytes([value]) for value in token]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            best = min(pairs)
            if best >= rank:
                break
            place = pairs.index(best)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        if len(parts) != 2:
            raise ValueError(f"token {token!r} was not made by merging two others")
        found.append((parts[0], parts[1]))
    return found


_ASK = """messages = [{"role": "user", "content": "What is the capital of France?"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
_CONTINUE = """ids = tokenizer("The capital of France is", return_tensors="pt")"""
_TOOL = """
It was taught to use a calculator: it writes an expression between `<|python_start|>` and `<|python_end|>` and expects
the result between `<|output_start|>` and `<|output_end|>`. `generate` does not give it one.
"""


def _card(name: str, *, own: bool, chat: bool) -> str:
    code = f"`trust_remote_code` runs `{MODELING_FILE.name}`, which holds the architecture: read it first.\n\n"
    return f"""# {name}

{code if own else ""}```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained("."{", trust_remote_code=True" if own else ""})
{_ASK if chat else _CONTINUE}
print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))
```
{_TOOL if chat else ""}"""
