//! One thing serde_json leaves open: values that are skipped are skipped without recursion, at any depth. Readers
//! after us (workers, the person's scripts) recurse, so depth is bounded where JSON enters.

/// Whether JSON text is nested no deeper than `levels_max`. The text must be valid JSON.
pub(crate) fn levels_at_most(text: &[u8], levels_max: usize) -> bool {
    // Nearly always there are fewer brackets than levels, and counting is vectorised.
    let openers = text.iter().map(|byte| usize::from(matches!(byte, b'[' | b'{'))).sum::<usize>();
    openers <= levels_max || deepest(text) <= levels_max
}

fn deepest(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_counted_outside_of_strings() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(levels_at_most(nested(128).as_bytes(), 128));
        assert!(!levels_at_most(nested(129).as_bytes(), 128));
        assert!(levels_at_most(format!("[\"{}\\\"[\"]", "[".repeat(500)).as_bytes(), 1));
        assert!(levels_at_most(format!("[{}1]", "[],".repeat(500)).as_bytes(), 2));
        assert!(!levels_at_most(format!("[\"\\\\\",{}]", nested(2)).as_bytes(), 2));
    }
}
