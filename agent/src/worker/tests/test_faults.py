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

    def test_every_text_of_a_broken_link(self):
        for text in (
            "[ring] Couldn't connect (error: 60)",
            "[ring] connection to a peer was lost",
            "[ring] Too many send/recv errors",
            "[jaccl] Couldn't allocate protection domain",
            "[jaccl] Couldn't create completion queue",
            "[jaccl] Creating the queue pair failed with 'Cannot allocate memory'",
            "[jaccl] Changing queue pair to INIT failed with errno 96",
            "[jaccl] Changing queue pair to RTR failed with errno 16",
            "[jaccl] Changing queue pair to RTS failed with errno 60",
            "[jaccl] Register memory region failed",
            "[jaccl] Could not find device rdma_en4",
            "[jaccl] No IPv4-mapped GID for this device",
            "[jaccl] Couldn't connect (error: 61)",
            "[jaccl] Send failed with error code 12",
            "[jaccl] Recv failed with error code 5",
            "Couldn't bind socket (error: 49)",
            "Cannot initialize jaccl distributed backend.",
        ):
            self.assertEqual(faults.classify(RuntimeError(text)), "link_fault", text)
        for text in ("[malloc] Unable to allocate 5 bytes.", "[metal::malloc] Resource limit (499000) exceeded."):
            self.assertEqual(faults.classify(RuntimeError(text)), "out_of_memory", text)

    def test_a_message_is_one_bearable_line(self):
        self.assertEqual(faults.describe(RuntimeError("a\n  b")), "a b")
        self.assertEqual(faults.describe(KeyError("x")), "KeyError: 'x'")
        self.assertLessEqual(len(faults.one_sentence("x" * 10_000)), 500)


if __name__ == "__main__":
    unittest.main()
