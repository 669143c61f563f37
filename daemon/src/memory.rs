//! How the C library gives memory back, where it must be told. The only unsafe code of the controller.

/// Blocks from this size on are mapped on their own, and leave with `free`. Above what a message or a page of the store takes, far
/// below the 8 MiB of a segment of the store.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM_BYTES: i32 = 1 << 20;

/// Keeps glibc from raising that size by itself: it takes the first segment's buffer that is freed as a sign that such blocks come
/// and go, and from then on cuts them out of heaps that it keeps. Each time the ledger is opened anew, after a full disk say, 10 to
/// 30 MB stay with the process for good (measured: 41 to 57 MB after twelve times, against 28 to 30). Call it before other threads
/// run.
pub(crate) fn give_large_blocks_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a call of the C library that no crate wraps")]
    // SAFETY: it takes two numbers and sets a parameter of the allocator; no other thread allocates yet. When it refuses, all
    // is as it would be without it.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES);
    }
}
