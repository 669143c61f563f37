import unittest

import support  # noqa: F401  (finds the modules)
import faults


class Classes(unittest.TestCase):
    def test_the_texts_of_the_field_notes(self):
        prefix = "[METAL] Command buffer execution failed: "
        for text, fault in {
            prefix + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)": "gpu_fault",
            prefix + "Ignored (for causing prior/excessive GPU errors) (00000004:…SubmissionsIgnored)": "gpu_fault",
            prefix + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)": "out_of_memory",
            "[malloc] Unable to allocate 123456789 bytes.": "out_of_memory",
            "[metal::malloc] Resource limit (499000) exceeded.": "out_of_memory",
            "[ring] connection to a peer was lost": "link_fault",
            "[jaccl] Changing queue pair to RTR failed with errno 22": "link_fault",
            "Couldn't bind socket (error: 49)": "link_fault",
            "something else": "crashed",
        }.items():
            self.assertEqual(faults.classify(RuntimeError(text)), fault, text)
        self.assertEqual(faults.classify(MemoryError()), "out_of_memory")

    def test_a_message_is_one_bearable_line(self):
        self.assertEqual(faults.describe(RuntimeError("a\n  b")), "a b")
        self.assertEqual(faults.describe(KeyError("x")), "KeyError: 'x'")
        self.assertLessEqual(len(faults.one_sentence("x" * 10_000)), 500)


if __name__ == "__main__":
    unittest.main()
