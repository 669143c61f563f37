//! Why a job or a node is where it is.

use nightshift_proto::v1;
use serde::Serialize;

use super::{JobView, NodeView};

/// `explain`.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainView {
    /// The job, where one was asked about.
    pub job: Option<JobView>,
    /// The node, where one was asked about.
    pub node: Option<NodeView>,
    /// What the rules say, in the order in which they are asked.
    pub rulings: Vec<RulingView>,
}

/// What one rule says.
#[derive(Debug, Clone, Serialize)]
pub struct RulingView {
    /// A stable word.
    pub rule: String,
    /// False: this keeps the job from running, or from running better, or the node from work.
    pub holds: bool,
    /// One sentence.
    pub sentence: String,
}

impl From<v1::Explanation> for ExplainView {
    fn from(explanation: v1::Explanation) -> Self {
        let (job, node) = match explanation.about {
            Some(v1::explanation::About::Job(job)) => (Some(JobView::from(job)), None),
            Some(v1::explanation::About::Node(node)) => (None, Some(NodeView::from(node))),
            None => (None, None),
        };
        let rulings = explanation.rulings.into_iter();
        let rulings =
            rulings.map(|v1::Ruling { rule, holds, sentence }| RulingView { rule, holds, sentence });
        ExplainView { job, node, rulings: rulings.collect() }
    }
}
