//! Sentences, about several nodes or of bounded length.

use super::ids::NodeId;

/// What nodes say, the same words once: `[("a, b", "it is drained"), ("c", …)]`, in the order of their first speakers.
#[must_use]
pub fn said_once<'a>(said: impl IntoIterator<Item = (&'a NodeId, &'a str)>) -> Vec<(String, &'a str)> {
    let mut once: Vec<(String, &str)> = Vec::new();
    for (node, words) in said {
        match once.iter_mut().find(|(_, known)| *known == words) {
            Some((nodes, _)) => {
                nodes.push_str(", ");
                nodes.push_str(node.as_str());
            }
            None => once.push((node.to_string(), words)),
        }
    }
    once
}

/// The beginning of a text, so many bytes at the most, cut at a character.
#[must_use]
pub fn clipped(text: &str, most_bytes: usize) -> &str {
    let mut end = text.len().min(most_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_clipped_at_a_character() {
        assert_eq!(
            (clipped("aä", 2), clipped("aä", 3), clipped("aä", 9), clipped("", 0)),
            ("a", "aä", "aä", "")
        );
    }

    #[test]
    fn the_same_words_are_said_once() {
        let nodes: [NodeId; 3] = ["a".into(), "b".into(), "c".into()];
        let said = [(&nodes[0], "no"), (&nodes[1], "busy"), (&nodes[2], "no")];
        assert_eq!(said_once(said), [("a, c".to_owned(), "no"), ("b".to_owned(), "busy")]);
    }
}
