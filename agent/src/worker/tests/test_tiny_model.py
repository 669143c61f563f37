import contextlib
import hashlib
import io
import json
import pathlib
import unittest

import support
import tiny_model


def make(*flags):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            return tiny_model.main(list(flags)), errors.getvalue()
        except SystemExit as exit:
            return exit.code, errors.getvalue()


def hashes(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in pathlib.Path(directory).iterdir()}


class TinyModels(unittest.TestCase):
    def test_equal_arguments_give_equal_bytes(self):
        a, b, other = (str(support.scratch() / name) for name in ("twin-a", "twin-b", "other"))
        for out, seed in ((a, "3"), (b, "3"), (other, "4")):
            self.assertEqual(make("--arch", "qwen3_moe", "--out", out, "--seed", seed), (0, ""))
        self.assertEqual(hashes(a), hashes(b))
        self.assertNotEqual(hashes(a)["model.safetensors"], hashes(other)["model.safetensors"])

    def test_the_directory_is_complete_or_not_there(self):
        parent = support.scratch() / "parent"
        out = parent / "model"
        code, message = make("--arch", "gpt_oss", "--layers", "1", "--out", str(out))
        self.assertEqual((code, list(parent.iterdir())), (1, []))
        self.assertIn("at least 2 layers", message)
        self.assertEqual(make("--arch", "llama", "--out", str(out))[0], 0)
        names = {"config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"}
        self.assertEqual(set(hashes(out)), names | {"tokenizer.json", "tokenizer_config.json"})
        before = hashes(out)
        code, message = make("--arch", "llama", "--out", str(out), "--seed", "9")
        self.assertEqual((code, hashes(out)), (1, before))
        self.assertIn("exists already", message)

    def test_arguments_that_make_no_model_are_refused(self):
        out = str(support.scratch() / "never")
        for flags in (["--hidden", "50"], ["--vocab", "100"], ["--layers", "0"], ["--seed", "-1"], ["--arch", "bert"]):
            code, message = make("--arch", "llama", "--out", out, *flags)
            self.assertEqual(code, 2, flags)
            self.assertIn(flags[0], message)

    def test_every_architecture_loads_with_what_its_flags_say(self):
        for arch in support.ARCHITECTURES:
            loaded = support.model(arch)
            self.assertEqual((loaded.model_type, loaded.vocab_size, loaded.context_tokens), (arch, 512, 2048))
            self.assertTrue(loaded.has_chat_template)
            index = json.loads((pathlib.Path(support.model_directory(arch)) / "model.safetensors.index.json").read_text())
            self.assertLess(index["metadata"]["total_size"], 3_000_000)
        loaded = support.bare_model()
        self.assertEqual((loaded.has_chat_template, loaded.context_tokens), (False, 100))
        self.assertEqual(len(loaded.network.layers), 2)

    def test_the_text_varies(self):
        for arch in support.ARCHITECTURES:
            row = support.completion(0, "The night shift begins", max_tokens=60, temperature=0)
            result = support.run(support.model(arch), [row])[0]
            self.assertGreater(len(set(support.text(result))), 12, arch)


if __name__ == "__main__":
    unittest.main()
