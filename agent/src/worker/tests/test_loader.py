import json
import pathlib
import shutil
import unittest

import support
import loader
from faults import Fatal


def broken(name, damage):
    """A copy of a good model directory with something done to it."""
    directory = support.scratch() / name
    shutil.copytree(support.model_directory(), directory)
    damage(directory)
    return str(directory)


def change_config(**changes):
    def damage(directory):
        path = directory / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return damage


class Unloadable(unittest.TestCase):
    def fatal(self, fault, name, *words):
        with self.assertRaises(Fatal) as caught, support.quiet():
            loader.load(name)
        self.assertEqual(caught.exception.fault, fault, caught.exception.message)
        for word in words:
            self.assertIn(word, caught.exception.message)
        self.assertNotIn("\n", caught.exception.message)

    def test_directories_that_are_none(self):
        self.fatal("model_unreadable", "/nowhere/at/all", "no model directory /nowhere/at/all")
        self.fatal("model_unreadable", "./model", "no model directory ./model")
        self.fatal("model_unreadable", __file__, "is a file")
        empty = support.scratch() / "empty"
        empty.mkdir()
        self.fatal("model_unreadable", str(empty), "no config.json")

    def test_hub_names_out_of_reach(self):
        self.fatal("model_unreadable", "nobody/nothing-4bit", '"nobody/nothing-4bit"', "download it", "directory")

    def test_files_that_are_damaged(self):
        def rubbish(file, content=b"\x00rubbish"):
            return lambda directory: (directory / file).write_bytes(content)

        self.fatal("model_unreadable", broken("bad-config", rubbish("config.json")), "config.json cannot be read")
        self.fatal("model_unreadable", broken("odd-config", rubbish("config.json", b"[]")), "model_type")
        self.fatal("model_unreadable", broken("bad-weights", rubbish("model.safetensors")), "could not be loaded")
        self.fatal("model_unreadable", broken("bad-tokenizer", rubbish("tokenizer.json")), "could not be loaded")
        half = pathlib.Path(support.model_directory(), "model.safetensors").read_bytes()[:100_000]
        self.fatal("model_unreadable", broken("half-weights", rubbish("model.safetensors", half)))
        gone = broken("no-weights", lambda directory: (directory / "model.safetensors").unlink())
        self.fatal("model_unreadable", gone, "No safetensors")
        self.fatal("model_unreadable", broken("no-size", change_config(hidden_size=None)), "hidden_size")
        self.fatal("model_unreadable", broken("other-size", change_config(hidden_size=128)))

    def test_architectures_nobody_knows(self):
        strange = broken("strange", change_config(model_type="strange_new_thing"))
        self.fatal("model_unsupported", strange, "strange_new_thing")

    def test_no_code_of_a_model_is_run(self):
        def bring_code(directory):
            change_config(model_file="model.py")(directory)
            (directory / "model.py").write_text("raise SystemExit('the code of the model was run')")

        self.fatal("model_unsupported", broken("with-code", bring_code), "code of its own")


class Loaded(unittest.TestCase):
    def test_a_model_knows_its_name_and_measures(self):
        loaded = loader.load(support.model_directory() + "/")
        self.assertEqual((loaded.name, loaded.model_type, loaded.vocab_size), ("llama", "llama", 512))
        self.assertEqual(loaded.eos_tokens, {2})

    def test_measures_are_found_in_the_text_part_of_a_multimodal_configuration(self):
        config = {"text_config": {"vocab_size": 7, "max_position_embeddings": 9}, "vocab_size": None}
        self.assertEqual(loader._first(config, ("vocab_size",)), 7)
        self.assertIsNone(loader._first({"text_config": "x"}, ("vocab_size",)))


if __name__ == "__main__":
    unittest.main()
