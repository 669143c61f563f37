//! `explain`: one line a rule, those that keep the job or the node first.

use super::section;
use crate::output::{
    screen::Screen,
    style::Style,
    text::{capital, sentence, width},
    views::{ExplainView, NodeView, RulingView},
};

/// On a screen that is narrower the rules' words stand in their lines, and have no column.
const COLUMN_FROM_COLUMNS: usize = 60;

/// `explain`.
pub fn explain(explained: &ExplainView, screen: &Screen) -> String {
    let mut lines = Vec::new();
    let what = match (&explained.job, &explained.node) {
        (Some(job), _) => {
            lines.extend(screen.sentence(
                "",
                &super::jobs::job_sentence(job),
                super::jobs::state_style(job.state),
            ));
            "What keeps it from running, or from running better"
        }
        (None, Some(node)) => {
            lines.extend(screen.sentence("", &node_sentence(node), super::nodes::state_style(node.state)));
            "What keeps it from work"
        }
        (None, None) => "What keeps it",
    };
    let (holding, keeping): (Vec<&RulingView>, Vec<&RulingView>) =
        explained.rulings.iter().partition(|ruling| ruling.holds);
    section(&mut lines, screen, what);
    if keeping.is_empty() {
        lines.push("  Nothing.".to_owned());
    }
    let columns = explained.rulings.iter().map(|ruling| width(&ruling.rule)).max().unwrap_or(0);
    lines.extend(keeping.iter().flat_map(|ruling| line(ruling, columns, Style::Warn, screen)));
    if !holding.is_empty() {
        section(&mut lines, screen, "Rules that hold");
        lines.extend(holding.iter().flat_map(|ruling| line(ruling, columns, Style::Plain, screen)));
    }
    super::text(&lines)
}

fn line(ruling: &RulingView, columns: usize, style: Style, screen: &Screen) -> Vec<String> {
    let text = capital(&sentence(&ruling.sentence));
    if screen.at_least(COLUMN_FROM_COLUMNS) {
        screen.sentence(&format!("  {:<columns$}  ", ruling.rule), &text, style)
    } else {
        screen.sentence("  • ", &format!("{}: {text}", ruling.rule), style)
    }
}

/// "Node mini-1 is ready: j7 decode, 10 rows."
fn node_sentence(node: &NodeView) -> String {
    sentence(&format!("Node {} is {}: {}", node.id, node.state, super::nodes::work(node)))
}
