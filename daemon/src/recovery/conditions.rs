//! A node's way back into gangs, step by step, as conditions: its versions are those of the others, its cables are prepared, its links
//! have passed their tests, and with all of that it has rejoined. A node without cables and links has none of them. Reads, never
//! changes.

use std::fmt::Write as _;

use super::{event::Now, link_tests::Word, machine::Machine, state::Node};
use crate::model::{Cable, CableClass, Flaw, Link, LinkKind, NodeId, said_once};

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The condition's name.
    pub kind: &'static str,
    /// Whether it is done; `None` where that cannot be known.
    pub is_done: Option<bool>,
    /// A stable word.
    pub reason: &'static str,
    /// One sentence, or nothing.
    pub message: String,
}

impl Step {
    fn new(
        kind: &'static str,
        is_done: Option<bool>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, is_done, reason, message: message.into() }
    }
}

impl Machine {
    /// How far a node has come on its way into gangs, in order.
    #[must_use]
    pub fn way_back(&self, now: Now, id: &NodeId) -> Vec<Step> {
        let Some(node) = self.nodes.get(id) else { return Vec::new() };
        let mut steps: Vec<Step> =
            [self.versions_alike(node), self.links_prepared(id), self.links_proven(now, id)]
                .into_iter()
                .flatten()
                .collect();
        if let Some(rejoined) = rejoined(now, node, &steps) {
            steps.push(rejoined);
        }
        steps
    }

    /// Nodes that it could be in a gang with, were it not for versions.
    fn versions_alike(&self, node: &Node) -> Option<Step> {
        let of_links = self.links.iter().map(|link| (&link.a.node, &link.b.node));
        let of_cables = self.cables.iter().map(|cable| (&cable.a.node, &cable.b.node));
        let mut others: Vec<&NodeId> = of_links
            .chain(of_cables)
            .filter_map(|(a, b)| if *a == node.id { Some(b) } else { (*b == node.id).then_some(a) })
            .collect();
        others.sort();
        others.dedup();
        if others.is_empty() {
            return None;
        }
        if node.session.is_none() {
            return Some(Step::new("VersionsAlike", None, "NoSession", ""));
        }
        let apart = others.iter().filter(|other| self.are_kept_apart(&node.id, other));
        let told: Vec<(&NodeId, String)> = apart
            .filter_map(|other| Some((*other, self.nodes.get(*other)?.facts.versions.to_string())))
            .collect();
        if told.is_empty() {
            return Some(Step::new("VersionsAlike", Some(true), "Alike", ""));
        }
        let mut message = format!("it runs {}", node.facts.versions);
        for (nodes, versions) in said_once(told.iter().map(|(other, versions)| (*other, versions.as_str()))) {
            let _ = write!(message, ", and {versions} on {nodes}");
        }
        message.push_str(": they make no gang until they are alike");
        Some(Step::new("VersionsAlike", Some(false), "Differ", message))
    }

    fn links_prepared(&self, id: &NodeId) -> Option<Step> {
        let is_at = |cable: &&Cable| cable.a.node == *id || cable.b.node == *id;
        let mut cables = self.cables.iter().filter(is_at).peekable();
        cables.peek()?;
        let lacking: Vec<String> = cables
            .filter(|cable| {
                let is_bridged = cable.flaws.iter().any(|flaw| matches!(flaw, Flaw::Bridged { .. }));
                cable.class == CableClass::Down || is_bridged
            })
            .map(|cable| {
                let other = if cable.a.node == *id { &cable.b.node } else { &cable.a.node };
                let flaws: Vec<String> =
                    cable.flaws.iter().filter(|flaw| !flaw.is_harmless()).map(Flaw::to_string).collect();
                format!("the cable to {other} carries no gang yet: {}", flaws.join("; "))
            })
            .collect();
        Some(if lacking.is_empty() {
            Step::new("LinksPrepared", Some(true), "Prepared", "")
        } else {
            Step::new("LinksPrepared", Some(false), "NotPrepared", lacking.join("; "))
        })
    }

    fn links_proven(&self, now: Now, id: &NodeId) -> Option<Step> {
        let is_ours = |link: &&Link| {
            matches!(link.kind, LinkKind::Rdma | LinkKind::Thunderbolt) && link.end_at(id).is_some()
        };
        let words: Vec<(&Link, Word)> =
            self.links.iter().filter(is_ours).map(|link| (link, self.word_on_link(now, link))).collect();
        if words.is_empty() {
            return None;
        }
        let told = |is: &dyn Fn(&Link, &Word) -> bool| {
            let told = words.iter().filter(|(link, word)| is(link, word));
            let told: Vec<String> = told.map(|(link, word)| format!("{} {word}", link.name())).collect();
            (!told.is_empty()).then(|| told.join("; "))
        };
        let step = |is_done, reason, message| Some(Step::new("LinksProven", is_done, reason, message));
        let has_failed = |word: &Word| matches!(word, Word::Failed(_));
        // A cable has two links, and carries a gang over one of them.
        let has_another = |link: &Link| {
            let other =
                |(of, _): &&(&Link, Word)| of.joins(&link.a.node, &link.b.node) && of.kind != link.kind;
            words.iter().find(other).is_some_and(|(_, word)| matches!(word, Word::Passed { .. }))
        };
        if let Some(message) = told(&|link, word| has_failed(word) && !has_another(link)) {
            return step(Some(false), "Failed", message);
        }
        // One that cannot run workers cannot try links, and says so of itself.
        let can_run =
            |id: &NodeId| self.nodes.get(id).is_some_and(|node| node.facts.runtime_problem.is_none());
        let is_open = |word: &Word| matches!(word, Word::UnderWay | Word::Awaited);
        if let Some(message) =
            told(&|link, word| is_open(word) && can_run(&link.a.node) && can_run(&link.b.node))
        {
            return step(Some(false), "BeingTried", message);
        }
        if let Some(message) = told(&|_, word| {
            is_open(word) || matches!(word, Word::NotMade(_) | Word::CannotBe(_) | Word::Untried)
        }) {
            return step(None, "NotTried", message);
        }
        if let Some(message) = told(&|_, word| has_failed(word)) {
            return step(Some(true), "InPart", message);
        }
        if let Some(message) = told(&|_, word| matches!(word, Word::Doubted)) {
            return step(Some(true), "Doubted", message);
        }
        if let Some(message) = told(&|_, word| matches!(word, Word::Passed { is_slow: true, .. })) {
            return step(Some(true), "Slow", message);
        }
        step(Some(true), "Passed", String::new())
    }
}

/// All of it: it takes work, and what gangs need is there. What cannot be known keeps nobody.
fn rejoined(now: Now, node: &Node, steps: &[Step]) -> Option<Step> {
    if steps.is_empty() {
        return None;
    }
    if let Some(why) = node.unusable(now) {
        return Some(Step::new("Rejoined", Some(false), "TakesNoWork", why));
    }
    let open = steps.iter().find(|step| step.is_done == Some(false));
    Some(match open {
        Some(step) => Step::new("Rejoined", Some(false), step.reason, step.message.clone()),
        None => Step::new("Rejoined", Some(true), "Done", ""),
    })
}
