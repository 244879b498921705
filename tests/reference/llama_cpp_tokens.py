"""What llama.cpp makes of texts: a second opinion on the ids that the golden files hold.

Run as a program it needs llama-cpp-python, which wants to be compiled and so is not among the packages of
requirements.txt; the other generators call `tokenize` with the interpreter that has it.

    python tests/reference/llama_cpp_tokens.py MODEL.gguf < texts.json > ids.json
"""
import json
import subprocess
import sys


def tokenize(interpreter, path, texts):
    """For each text, without BOS, the ids with special tokens `parsed` and with them as `plain` text."""
    done = subprocess.run(
        [interpreter, __file__, str(path)], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main():
    import llama_cpp as lc

    # Kept in a variable: llama.cpp calls it as long as it runs.
    silent = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(silent, None)
    params = lc.llama_model_default_params()
    params.vocab_only = True
    vocab = lc.llama_model_get_vocab(lc.llama_model_load_from_file(sys.argv[1].encode(), params))

    def ids(text, parse_special):
        data = text.encode()
        room = len(data) + 8
        out = (lc.llama_token * room)()
        count = lc.llama_tokenize(vocab, data, len(data), out, room, False, parse_special)
        assert count >= 0, f"{text!r} has more tokens than bytes"
        return list(out[:count])

    texts = json.load(sys.stdin)
    json.dump([{"parsed": ids(text, True), "plain": ids(text, False)} for text in texts], sys.stdout)


if __name__ == "__main__":
    main()
