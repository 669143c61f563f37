//! Small things that several modules need.

use std::{
    error::Error,
    time::{SystemTime, UNIX_EPOCH},
};

/// Milliseconds since 1970 by this machine's clock; 0 for a clock set before that.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// FNV-1a, 64 bits: names versions of embedded files. It tells versions apart; it is no protection against a forger,
/// and nothing rests on it that would need one.
#[must_use]
pub fn fnv1a_64(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // The length goes in first, so that ("ab", "c") and ("a", "bc") differ.
        for byte in (part.len() as u64).to_le_bytes().iter().chain(part.iter()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

/// Cuts `text` to at most `max_bytes`, at a character's edge, and marks the cut.
#[must_use]
pub fn clip(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let end = (0..=max_bytes).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// An error with its causes, for a log line. A cause that its effect repeats is not said twice.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tells_where_one_part_ends() {
        assert_ne!(fnv1a_64(&[b"ab", b"c"]), fnv1a_64(&[b"a", b"bc"]));
        assert_eq!(fnv1a_64(&[b"ab"]), fnv1a_64(&[b"ab"]));
    }

    #[test]
    fn clip_never_splits_a_character() {
        assert_eq!(clip("añb", 2), "a…");
        assert_eq!(clip("añb", 4), "añb");
    }
}
