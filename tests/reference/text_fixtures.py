#!/usr/bin/env python3
"""Makes the golden files of server/text/tests/fixtures from independent implementations.

Needs: tests/reference/fetch.sh run before, and the packages tokenizers, transformers, jinja2,
sentencepiece and gguf, and an interpreter with llama-cpp-python for the second opinion of
llama.cpp. Commits no vocabulary of others: only texts of our own, the ids they become and the
prompts that chat templates render. Run from the repository root:

    python tests/reference/text_fixtures.py PYTHON_WITH_LLAMA_CPP
"""

import io
import itertools
import json
import random
import sys
import tempfile
from pathlib import Path

import gguf
import jinja2
import sentencepiece
import tokenizers
from transformers.utils import chat_template_utils

import gemma3_gguf
import llama_cpp_tokens

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "server/text/tests/fixtures"
MODELS = ROOT / ".models"
SMOLLM2 = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA3 = MODELS / "gemma-3-270m-q4_k_m.gguf"
PACKED = ["qwen3", "gemma3", "llama3_1"]

CORPUS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "  leading and trailing  ",
    "I'm sure they'll say we've won; it's DON'T, WE'LL, I'D, y'all'd've.",
    "tabs\tand\t\tmore\t\t\ttabs",
    "line\nbreaks\n\nand\n\n\nmore\r\nwindows\r\n\r\nend\n",
    "trailing spaces   \n   indented\n\t\tdeeper\n        deepest",
    " " * 5 + "x" + " " * 17 + "y" + " " * 64 + "z",
    "\n" * 9 + "a" + "\n" * 33 + " \n \n",
    "\t" * 12 + " \t \t x",
    "non\u00a0breaking\u2003em\u3000ideographic\u200bzero\u2060joined\ufeffmark",
    "0 1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 0x1F 1e-9",
    "\u0661\u0662\u0663\u0664 \u0967\u0968\u0969 \u4e00\u4e8c\u4e09 \u2167 \u00bd \u00b2\u00b3 \uff11\uff12 \U0001d7d9\U0001d7da",
    "def f(x: int) -> int:\n    if x <= 1:\n        return 1\n    return x * f(x - 1)  # n!\n",
    "fn main() {\n    let v: Vec<_> = (0..10).map(|i| i * i).collect();\n    println!(\"{v:?}\");\n}",
    "#include <stdio.h>\nint main(void){printf(\"%d\\n\", 1<<3);return 0;}",
    "SELECT * FROM `t` WHERE a >= 10 AND b != 'it''s' -- comment",
    "<div class=\"a b\" id='c'>&amp; &lt; <!-- x --></div>",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\\n\"}}",
    "https://example.com/a/b?c=d&e=f#g user@example.org C:\\path\\file.txt ../up",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~ ... --- === *** ///",
    "camelCase snake_case kebab-case SCREAMING_SNAKE PascalCase iPhone15Pro",
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u0153uvre \u00e6on \u00f8re \u0142\u00f3d\u017a",
    "cafe\u0301 n\u0303 a\u0308o\u0308u\u0308 \u1ea1 e\u0323\u0302",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4eca\u5929\u5929\u6c14\u600e\u4e48\u6837\uff1f",
    "\u6771\u4eac\u3067\u30b3\u30fc\u30d2\u30fc\u3092\u98f2\u307f\u307e\u3057\u305f\u3002",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4! \u1112\u1161\u11ab\u1100\u1173\u11af",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0643\u064a\u0641 \u062d\u0627\u0644\u0643\u061f",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u05d1\u05b0\u05bc\u05e8\u05b5\u05d0\u05e9\u05b4\u05c1\u05d9\u05ea",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u1018\u102c",
    "\U0001f600\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "a\U0001f600b\U0001f680\U0001f680c \u263a\ufe0e \u2713 \u2192 \u221e \u222b \u2200x\u2208\u211d",
    "\x00nul\x00\x00 \x01\x02\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f \x80\x9f",
    "\ufffd \ufffd\ufffd \uffff \U0010ffff \ue000 \ufdd0",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<|begin_of_text|><|start_header_id|>x<|end_header_id|><|eot_id|>",
    "<bos><start_of_turn>user\nhi<end_of_turn><eos><pad><unk>",
    "<s>a</s> <|im_start <|im_start|| |im_end|> <0x0A> <think>x</think> <tool_call>",
    "mixed: abc\u4e2d\u6587def123\u65e5\u672c\u8a9eXYZ\u0430\u0431\u0432\U0001f642end",
    "\u2581literal\u2581word mark \u0120 \u010a",
    "x" * 300,
    "ab" * 150 + " " + "-" * 100 + "=" * 77,
    "\u00e9" * 40 + "\u4e00" * 40 + "\U0001f600" * 20,
    "aaa  bbb   ccc    ddd     eee\n  \n   \n",
    "''''s''t 's 't 'S 'T 're'll \u2019s \u2019t",
    "1st 2nd 3rd 4th 2024-11-21T05:00:00Z +1 (555) 010-9999 $1,234.56 \u20ac99 50%",
    # Bytes that SmolLM2's vocabulary has no token for.
    "\x04\x06\x13a\x14\x16\x1d \U00040000b\x04",
]

# Long runs, kept as (unit, count); their ids are kept as runs too.
LONG = [(" ", 4096), ("a", 4096), ("\n", 4096), (" \n", 2048), ("7", 4096), ("\U0001f600", 1024)]


def smollm2_fields():
    reader = gguf.GGUFReader(SMOLLM2)
    fields = reader.fields

    def strings(name):
        field = fields[name]
        return [bytes(field.parts[i]).decode() for i in field.data]

    tokens = strings("tokenizer.ggml.tokens")
    merges = strings("tokenizer.ggml.merges")
    types_field = fields["tokenizer.ggml.token_type"]
    types = [int(types_field.parts[i][0]) for i in types_field.data]
    template = bytes(fields["tokenizer.chat_template"].parts[-1]).decode()
    return tokens, merges, types, template


def smollm2_by_tokenizers(tokens, merges, types):
    """The original tokenizer.json's definition: every numeral alone, then GPT-2."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers

    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(m.split(" ", 1)) for m in merges]
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types) if k == 3]
    made.add_special_tokens(special)
    return made


def runs(ids):
    out = []
    for i in ids:
        if out and out[-1][0] == i:
            out[-1][1] += 1
        else:
            out.append([i, 1])
    return out


def cases(encode, decode):
    """Texts by their place in the corpus, ids with and without the frame, and the text back."""
    out = []
    for text in CORPUS:
        ids, framed = encode(text, False), encode(text, True)
        case = {"ids": ids, "decoded": decode(ids)}
        if framed != ids:
            case["framed"] = framed
        out.append(case)
    long = [runs(encode(unit * count, False)) for unit, count in LONG]
    return {"cases": out, "long": long}


def by_tokenizers(made):
    return cases(
        lambda text, frame: made.encode(text, add_special_tokens=frame).ids,
        lambda ids: made.decode(ids, skip_special_tokens=False),
    )


def llama_cpp(path, texts):
    """What llama.cpp makes of the texts: ids with special tokens parsed, and as plain text."""
    return llama_cpp_tokens.tokenize(sys.argv[1], path, texts)


def with_second_opinion(golden, path, piece_bytes, controls=()):
    """The golden with llama.cpp's ids of plain text and each id's bytes; its other ids must be the same.

    `controls` are texts of tokens that llama.cpp takes for control tokens because they look so, whatever the
    file says: they are text of the user's, so what it makes of them as plain text is no reference.
    """
    for text, case, theirs in zip(CORPUS, golden["cases"], llama_cpp(path, CORPUS), strict=True):
        if theirs["parsed"] != case["ids"]:
            raise AssertionError(f"llama.cpp differs from tokenizers on {text!r}: {theirs}, {case}")
        case["pieces"] = [piece_bytes(i).hex() for i in case["ids"]]
        if theirs["plain"] != case["ids"] and not any(token in text for token in controls):
            case["plain"] = theirs["plain"]
    long = [runs(theirs["parsed"]) for theirs in llama_cpp(path, [unit * count for unit, count in LONG])]
    if long != golden["long"]:
        raise AssertionError(f"llama.cpp differs from tokenizers on long texts: {long}")
    return golden


def byte_alphabet():
    """GPT-2's characters for bytes, by the rule of its encoder."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(rest)}


def smollm2_golden(made, tokens, types):
    alphabet = byte_alphabet()

    def piece_bytes(i):
        return tokens[i].encode() if types[i] == 3 else bytes(alphabet[c] for c in tokens[i])

    return with_second_opinion(by_tokenizers(made), SMOLLM2, piece_bytes)


def gemma3_golden(made):
    """Ids of the tokenizer.json, which are those of llama.cpp on the GGUF file's own vocabulary."""
    gemma3_gguf.check_vocabulary(gguf.GGUFReader(GEMMA3), made)

    def piece_bytes(i):
        piece = made.id_to_token(i)
        is_byte = len(piece) == 6 and piece.startswith("<0x")
        return bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("\u2581", " ").encode()

    return with_second_opinion(by_tokenizers(made), GEMMA3, piece_bytes, controls=["</s>"])


def tokenizer_goldens():
    """Goldens, tokenizers and chat templates by name."""
    tokens, merges, types, template = smollm2_fields()
    made = {"smollm2": smollm2_by_tokenizers(tokens, merges, types)}
    goldens = {"smollm2": smollm2_golden(made["smollm2"], tokens, types)}
    templates = {"smollm2": template}
    for name in PACKED:
        made[name] = tokenizers.Tokenizer.from_file(str(MODELS / "tokenizers" / name / "tokenizer.json"))
        goldens[name] = gemma3_golden(made[name]) if name == "gemma3" else by_tokenizers(made[name])
        config = json.loads((MODELS / "tokenizers" / name / "tokenizer_config.json").read_text())
        templates[name] = config["chat_template"]
    return goldens, made, templates


def sentencepiece_golden():
    """A tiny model of our own, trained on the corpus and some made-up words."""
    rng = random.Random(7)
    syllables = ["ka", "to", "mi", "ren", "sol", "ba", "u", "est", "ing", "the", "an", "er"]
    sentences = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 4))) for _ in range(4000)]
    lines = [" ".join(sentences[i : i + 8]) for i in range(0, len(sentences), 8)]
    lines += [t.replace("\x00", "") for t in CORPUS if t.strip() and len(t) < 200] * 2
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=0.98,
        user_defined_symbols=["<think>", "\u2581\u2581\u2581\u2581"],
        control_symbols=["<|im_end|>"],
        minloglevel=2,
    )
    made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = []
    for i in range(made.get_piece_size()):
        if made.is_unknown(i):
            kinds.append(2)
        elif made.is_control(i):
            kinds.append(3)
        elif made.is_byte(i):
            kinds.append(6)
        elif made.id_to_piece(i) in ("<think>", "\u2581\u2581\u2581\u2581"):
            kinds.append(4)
        else:
            kinds.append(1)
    size = made.get_piece_size()
    rng = random.Random(11)
    mixed = ["".join(rng.choice(list("katomirensol \u00e9\u4f60\U0001f600\n 7<>")) for _ in range(60)) for _ in range(30)]
    texts = [t for t in CORPUS if "\x00" not in t] + mixed
    ids = [made.encode(t) for t in texts]
    random_ids = [[rng.randrange(size) for _ in range(40)] for _ in range(10)]
    tokens = [made.id_to_piece(i) for i in range(size)]
    scores = [made.get_score(i) for i in range(size)]
    return {
        "tokens": tokens,
        "scores": scores,
        "token_types": kinds,
        "llama_cpp": [case["parsed"] for case in llama_cpp_on_pieces(tokens, scores, kinds, texts)],
        "texts": texts,
        "ids": ids,
        "decoded": [made.decode(i) for i in ids],
        "random_ids": random_ids,
    }


def llama_cpp_on_pieces(tokens, scores, kinds, texts):
    """llama.cpp on the same vocabulary, as a GGUF file without tensors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model("llama")
        writer.add_token_list([t.replace("\u2581", " ") if k == 4 else t for t, k in zip(tokens, kinds, strict=True)])
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return llama_cpp(path, texts)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather <in> a \"city\" \u2013 caf\u00e9 & co",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "where?"},
                "days": {"type": "integer", "minimum": 1, "maximum": 1.5e16},
            },
            "required": ["city"],
        },
    },
}


def conversations():
    user = {"role": "user", "content": "What is 2+2? <b>&amp;</b> \U0001f600"}
    system = {"role": "system", "content": "You are terse."}
    reply = {"role": "assistant", "content": "It is 4."}
    thought = {"role": "assistant", "content": "<think>\nsum\n</think>\n\nIt is 4."}
    reasoning = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "c1", "function": {"name": "get_weather", "arguments": {"city": "K\u00f6ln", "days": 2}}}
        ],
    }
    result = {"role": "tool", "content": "{\"temp\": 21.5}", "tool_call_id": "c1", "name": "get_weather"}
    parts = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]}
    fixed = {"date_string": "21 Nov 2026"}
    yield {"messages": [user], "add_generation_prompt": True, "kwargs": fixed}
    yield {"messages": [user], "add_generation_prompt": False, "kwargs": fixed}
    yield {"messages": [system, user, reply, user], "add_generation_prompt": True, "kwargs": fixed}
    yield {"messages": [user, thought, user], "add_generation_prompt": True, "kwargs": fixed}
    yield {"messages": [user, reasoning], "add_generation_prompt": False, "kwargs": fixed}
    yield {"messages": [user], "add_generation_prompt": True, "kwargs": {**fixed, "enable_thinking": False}}
    yield {"messages": [user], "tools": [WEATHER], "add_generation_prompt": True, "kwargs": fixed}
    yield {"messages": [system, user, call, result], "tools": [WEATHER], "add_generation_prompt": True, "kwargs": fixed}
    yield {
        "messages": [user],
        "tools": [WEATHER],
        "add_generation_prompt": True,
        "kwargs": {**fixed, "tools_in_user_message": False},
    }
    yield {"messages": [parts], "add_generation_prompt": True, "kwargs": fixed}
    yield {"messages": [user, user], "add_generation_prompt": True, "kwargs": fixed}
    yield {"messages": [{"role": "user", "content": "  padded \n"}, {"role": "assistant", "content": " x "}], "kwargs": fixed}


# Language features that real templates use, as (source, messages or None, kwargs).
FEATURES = [
    "{% for m in messages %}\n  {% if loop.first %}\nfirst\n  {% endif %}\n{{ m.role }}\n{% endfor %}\n",
    "{{- true }} {{ false }} {{ none }} {{ 1.0 }} {{ 0.1 }} {{ 10 // 3 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ -7 % 3 }} {{ 2 ** 10 }}",
    "{{ [1, 'a', true, none, 2.5] }} {{ {'k': 'v', 'n': [1]} }} {{ (1, 2) }} {{ ['it\\'s', \"q\\\"\"] }}",
    "{{ messages[0]['content'].split(' ')[-1] }}|{{ ' x '.strip() }}|{{ 'xxa'.lstrip('x') }}|{{ 'axx'.rstrip('x') }}",
    "{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith('x') }}{{ 'aXb'.upper() }}{{ 'aXb'.lower() }}{{ 'a b'.title() }}{{ 'ab'.capitalize() }}",
    "{{ 'a,b,c'.split(',', 1) }}{{ 'a  b'.split() }}{{ 'a-b'.replace('-', '+') }}{{ ','.join(['a', 'b']) }}{{ 'abcb'.count('b') }}{{ 'abc'.find('c') }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{% for k in messages[0].keys() %}{{ k }},{% endfor %}{{ messages[0].get('x', 'none') }}{{ messages[0].get('x') }}",
    "{% for k, v in messages[0] | items %}{{ k }}:{{ v }} {% endfor %}{{ messages[0] | length }}",
    "{{ messages[::-1][0].role }}{{ messages[1:] | length }}{{ 'hello'[1:3] }}{{ 'hello'[-1] }}{{ 'hello'[::-1] }}{{ 'hello'[:-1] }}",
    "{{ 'a' is string }}{{ {} is mapping }}{{ [] is iterable }}{{ 'a' is iterable }}{{ none is none }}{{ x is defined }}{{ 1 is number }}{{ true is boolean }}{{ [] is sequence }}{{ 1 is integer }}{{ 1.0 is float }}",
    "{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.found }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}{{ loop.index0 }}{{ loop.last }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "{{ {'a': [1, 2.0, {'b': none}], 'c': '<&\\'\\u00e9\">'} | tojson }}\n{{ {'a': [1, {}], 'e': []} | tojson(indent=2) }}\n{{ messages | tojson(indent=4) }}",
    "{{ [3, 1] | tojson(separators=(',', ':')) }}{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}{{ 'caf\\u00e9\\ud83d\\ude00' | tojson(ensure_ascii=true) }}{{ 1e20 | tojson }}{{ 1e-7 | tojson }}",
    "{%- macro show(x, sep=', ') -%}[{{ x }}{{ sep }}]{%- endmacro -%}{{ show('a') }}{{ show('b', sep='!') }}",
    "{{ messages | map(attribute='role') | join('/') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
    "{{ ' a ' | trim }}{{ x | default('d') }}{{ 'abc' | upper }}{{ [1, 2, 3] | first }}{{ [1, 2, 3] | last }}{{ '5' | int + 1 }}{{ 'ab' | list }}{{ [3, 1, 2] | sort }}{{ 'x\ny' | indent(2) }}{{ 3 | string + 'z' }}",
    "{% if 'x' in 'xyz' and 'role' in messages[0] and 'q' not in messages[0] %}yes{% else %}no{% endif %}{{ 'a' ~ 1 ~ none }}{{ 'a' * 3 }}{{ 'y' if false }}{{ 'p' if true else 'q' }}",
    "{% generation %}inside{% endgeneration %}\n{%- generation -%} x {%- endgeneration -%} end",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t %}block{{ a }}{% endset %}{{ t }}{% filter upper %}f{% endfilter %}",
    "{{ bos_token }}{{ undefined_thing }}{{ undefined_thing is defined }}{{ messages[0].missing }}{{ not undefined_thing }}",
    "{{ range(3) | list }}{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}{{ dict(a=1) }}{{ [1] + [2] }}{{ 1 == 1.0 }}{{ 'b' > 'a' }}",
    "{{ messages[0]['role'] == 'user' and messages[-1]['role'] != 'user' }}{{ (messages | last).content }}{{ messages[0].content[0] }}",
    "{# comment #}\n{%- raw %}{{ raw }}{% endraw %}\n\n{{ 'x' }}\n\n",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}empty{% endfor %}{% for c in 'ab' %}{{ c }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}",
    "{{ '%s is %d' | format('a', 3) }}{{ 'a\\nb'.splitlines() }}{{ '12'.isdigit() }}{{ 'ab'.isalpha() }}{{ none | default('n', true) }}{{ [1, 2] | sum }}{{ [1, 5] | max }}",
]

FAILURES = [
    ("line one\n{{ raise_exception('roles must alternate: \"a\"') }}", 2),
    ("{% if true %}\n\n{{ missing.attribute }}\n{% endif %}", 3),
    ("a\nb\n{% for x in %}\n", 3),
    ("{{ 'a' }}\n{{ nosuchfunction(1) }}", 2),
    ("{{ 1 }}\n\n{{ 'x' | nosuchfilter }}", 3),
]


def render(template, request, special):
    kwargs = {**special, **request.get("kwargs", {})}
    rendered, _ = chat_template_utils.render_jinja_template(
        conversations=[request["messages"]],
        tools=request.get("tools"),
        documents=None,
        chat_template=template,
        add_generation_prompt=request.get("add_generation_prompt", False),
        **kwargs,
    )
    return rendered[0]


SPECIAL = {
    "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gemma3": {"bos_token": "<bos>", "eos_token": "<end_of_turn>"},
    "llama3_1": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
}


def chat_goldens(templates, made):
    out = []
    for name, template in templates.items():
        for request in conversations():
            entry = {"template": name, "special_tokens": SPECIAL[name], "request": request}
            try:
                entry["expected"] = render(template, request, SPECIAL[name])
                entry["ids"] = made[name].encode(entry["expected"], add_special_tokens=False).ids
            except jinja2.exceptions.TemplateError as error:
                # Of raise_exception keep the words; others are worded by Jinja2 itself.
                entry["refused"] = str(error) if type(error) is jinja2.exceptions.TemplateError else None
            except TypeError:
                entry["refused"] = None
            out.append(entry)
    return out


def corpus_chats():
    """The corpus as conversations: of each, the places of its texts and whether the first is the system's."""
    places = list(range(len(CORPUS)))
    return [
        {"texts": places[at : at + 4], "system": at % 8 == 0} for at in range(0, len(places), 4)
    ]


def chat_corpus_goldens(templates, made):
    """What each template and tokenizer make of the corpus in turns; texts stand in corpus.json."""
    chats, out = corpus_chats(), {}
    for name, template in templates.items():
        out[name] = {"special_tokens": SPECIAL[name], "cases": []}
        for chat in chats:
            roles = itertools.chain(["system"] if chat["system"] else [], itertools.cycle(["user", "assistant"]))
            messages = [{"role": role, "content": CORPUS[place]} for role, place in zip(roles, chat["texts"])]
            request = {"messages": messages, "add_generation_prompt": messages[-1]["role"] == "user"}
            text = render(template, {**request, "kwargs": {"date_string": "21 Nov 2026"}}, SPECIAL[name])
            ids = made[name].encode(text, add_special_tokens=False).ids
            out[name]["cases"].append({**chat, "expected": text, "ids": ids})
    second = {"smollm2": SMOLLM2, "gemma3": GEMMA3}
    for name, path in second.items():
        theirs = llama_cpp(path, [case["expected"] for case in out[name]["cases"]])
        for case, found in zip(out[name]["cases"], theirs, strict=True):
            if found["parsed"] != case["ids"]:
                raise AssertionError(f"{name}: llama.cpp differs from tokenizers on {case}: {found}")
    return out


def feature_goldens():
    messages = [
        {"role": "user", "content": "hello big world"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "<tag> \"q\""},
        {"role": "assistant", "content": ""},
    ]
    out = []
    for source in FEATURES:
        out.append({"source": source, "expected": render(source, {"messages": messages}, {"bos_token": "<s>"})})
    for source, line in FAILURES:
        try:
            render(source, {"messages": messages}, {})
        except Exception as error:
            out.append({"source": source, "line": line, "python": str(error)})
            continue
        raise AssertionError(f"expected a failure: {source!r}")
    return {"messages": messages, "cases": out}


def write(name, value):
    path = OUT / name
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes", file=sys.stderr)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    goldens, made, templates = tokenizer_goldens()
    write("corpus.json", {"texts": CORPUS, "long": LONG})
    for name, golden in goldens.items():
        write(f"tokens_{name}.json", golden)
    write("sentencepiece.json", sentencepiece_golden())
    write("chat.json", chat_goldens(templates, made))
    write("chat_corpus.json", chat_corpus_goldens(templates, made))
    write("features.json", feature_goldens())


if __name__ == "__main__":
    main()
