//! Documents with something wrong in them.

use proptest::prelude::*;

/// A document with a stretch of it replaced by anything, or by another stretch of itself, or cut off.
pub(super) fn mutated(text: &'static str) -> impl Strategy<Value = String> {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let put = prop_oneof![
        any::<String>(),
        (0..=text.len(), 0..80_usize)
            .prop_map(move |(at, len)| lossy(&text.as_bytes()[at..(at + len).min(text.len())])),
        proptest::sample::select(vec![
            "",
            "\n",
            "\t",
            "\0",
            "{",
            "}",
            "[",
            "]",
            "\"",
            ":",
            "=",
            "<",
            "-1",
            "1e999",
            "18446744073709551616",
            "null",
            "true",
            "\u{feff}",
            "\u{2028}",
        ])
        .prop_map(ToOwned::to_owned),
    ];
    let edited = (0..=text.len(), 0..60_usize, put).prop_map(move |(at, cut, put)| {
        let (head, tail) = (&text.as_bytes()[..at], &text.as_bytes()[(at + cut).min(text.len())..]);
        format!("{}{put}{}", lossy(head), lossy(tail))
    });
    let cut = (0..=text.len()).prop_map(move |at| lossy(&text.as_bytes()[..at]));
    prop_oneof![3 => edited, 1 => cut]
}
