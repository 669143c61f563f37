//! Sentences about several nodes.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_are_said_once() {
        let nodes: [NodeId; 3] = ["a".into(), "b".into(), "c".into()];
        let said = [(&nodes[0], "no"), (&nodes[1], "busy"), (&nodes[2], "no")];
        assert_eq!(said_once(said), [("a, c".to_owned(), "no"), ("b".to_owned(), "busy")]);
    }
}
