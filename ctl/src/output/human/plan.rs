//! `plan`: whether a model fits, where, and why so, on one screen opened by one sentence.
//!
//! Sizes are decimal gigabytes, as models and downloads are measured. What a node lacks is a negative number of free
//! gigabytes, rounded up, so that with so much more it fits.

use super::{fact, section};
use crate::output::{
    screen::Screen,
    style::Style,
    table::{Cell, Column, Table},
    text::{Cut, capital, list, plural, sentence},
    units::{count, gigabytes, missing_gigabytes, signed_gigabytes},
    views::{ModelSizeView, PartView, PlanView, ReasonView},
};

/// More names than this in a sentence are not read; the table has them all.
const NAMED_NODES: usize = 4;

/// `plan`.
pub fn plan(plan: &PlanView, screen: &Screen) -> String {
    let style = if plan.fits { Style::Good } else { Style::Bad };
    let mut lines = screen.sentence("", &headline(plan), style);
    if let Some(file) = &plan.nodes_file {
        let text = format!("Planned for the machines of {file}; no controller was asked.");
        lines.extend(screen.sentence("", &text, Style::Dim));
    }

    section(&mut lines, screen, "Model");
    lines.extend(model(&plan.model, plan.context_tokens, screen));

    if !plan.parts.is_empty() {
        lines.push(String::new());
        lines.extend(screen.sentence("", &caption(plan), Style::Strong));
        lines.extend(parts(plan, screen));
        lines.push(String::new());
        lines.extend(screen.sentence("", &most(plan), Style::Plain));
    }

    // The table shows the shares.
    let reasons = plan.reasons.iter().filter(|reason| reason.rule != "share").map(about);
    bullets(&mut lines, screen, if plan.fits { "Why" } else { "Why not" }, reasons);
    let others: Vec<_> = plan
        .alternatives
        .iter()
        // A refusal's reasons have said it already.
        .filter(|other| !other.chosen && !plan.reasons.iter().any(|reason| reason.text.contains(&other.why)))
        .collect();
    if !others.is_empty() {
        section(&mut lines, screen, "Why not otherwise");
        for other in others {
            // As wide as "independent".
            let first = format!("  {:<11}  ", other.mode);
            lines.extend(screen.sentence(&first, &capital(&sentence(&other.why)), Style::Plain));
        }
    }
    let advice = plan.advice.iter().map(|advice| capital(&sentence(advice)));
    bullets(&mut lines, screen, "What would help, each by itself", advice);
    bullets(&mut lines, screen, "Nodes left out", plan.left_out.iter().map(about));
    super::text(&lines)
}

/// "Qwen3-235B-4bit: pipeline over 2 nodes (a and b), backend jaccl."
fn headline(plan: &PlanView) -> String {
    let model = plan.model.model.trim_end_matches('/');
    let name = model.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("The model");
    if !plan.fits {
        return format!("{name}: {}.", refused(plan));
    }
    let nodes = plural(plan.parts.len() as u64, "node", "nodes");
    let mut names: Vec<String> = plan.parts.iter().map(|part| part.node.clone()).collect();
    names.sort();
    let names = if names.len() > NAMED_NODES { String::new() } else { format!(" ({})", list(&names)) };
    let how = match (plan.mode.unwrap_or("runs"), plan.parts.as_slice(), plan.gangs()) {
        ("independent", [only], _) => format!("one independent worker on {}", only.node),
        ("independent", ..) => format!("independent workers on {nodes}{names}"),
        (mode, _, 0 | 1) => format!("{mode} over {nodes}{names}"),
        (mode, _, gangs) => format!("{} {mode} gangs over {nodes}{names}", count(gangs)),
    };
    let backend = plan.backend.map(|backend| format!(", backend {backend}")).unwrap_or_default();
    format!("{name}: {how}{backend}.")
}

/// "does not fit: missing 12.3 GB on a and 4.0 GB on b"
fn refused(plan: &PlanView) -> String {
    let how = plan.asked_mode.map(|mode| format!(" in {mode} mode")).unwrap_or_default();
    let mut short: Vec<&PartView> = plan.parts.iter().filter(|part| part.free_bytes < 0).collect();
    if short.is_empty() {
        return format!("cannot run{how}");
    }
    short.sort_by_key(|part| part.free_bytes);
    let mut missing: Vec<String> = short
        .iter()
        .take(NAMED_NODES)
        .map(|part| format!("{} GB on {}", missing_gigabytes(part.free_bytes), part.node))
        .collect();
    if short.len() > NAMED_NODES {
        missing.push(format!("less on {} more", plural((short.len() - NAMED_NODES) as u64, "node", "nodes")));
    }
    format!("does not fit{how}: missing {}", list(&missing))
}

fn model(model: &ModelSizeView, context_tokens: u64, screen: &Screen) -> Vec<String> {
    let weights = &model.weights;
    let causes: Vec<String> = [
        ("experts", weights.experts_bytes),
        ("attention", weights.attention_bytes),
        ("MLP", weights.mlp_bytes),
        ("embeddings", weights.embeddings_bytes),
        ("head", weights.head_bytes),
        ("other", weights.other_bytes),
    ]
    .into_iter()
    .filter(|(_, bytes)| *bytes > 0)
    .map(|(name, bytes)| format!("{name} {}", gigabytes(bytes)))
    .collect();
    let causes = if causes.is_empty() { String::new() } else { format!(" ({})", causes.join(", ")) };
    let not_loaded = match model.not_loaded_bytes {
        0 => String::new(),
        bytes => format!("; {} GB more in the files are never loaded", gigabytes(bytes)),
    };
    let architecture =
        model.architecture.as_ref().map(|kind| format!(", architecture {kind}")).unwrap_or_default();
    let made_for =
        model.context_tokens.map(|tokens| format!(", made for {} tokens", count(tokens))).unwrap_or_default();
    let bound = if model.cache_is_exact { "exact" } else { "a bound from above, not exact" };
    let cache = format!(
        "{} GB for a row of {} tokens ({bound})",
        gigabytes(model.cache_bytes_per_row),
        count(context_tokens)
    );
    let mut lines = Vec::new();
    for (name, value) in [
        ("Model", model.model.clone()),
        ("Layers", format!("{}{architecture}{made_for}", model.layers)),
        ("Weights", format!("{} GB{causes}{not_loaded}", gigabytes(model.weight_bytes))),
        ("Cache", cache),
    ] {
        lines.extend(screen.sentence(&fact(name), &value, Style::Plain));
    }
    for note in &model.notes {
        lines.extend(screen.sentence(&fact("Note"), &capital(&sentence(note)), Style::Plain));
    }
    lines
}

/// "Nodes, in GB, with 8 rows of 4,096 tokens in each gang"
fn caption(plan: &PlanView) -> String {
    // A refusal is told for a single row.
    let rows = plural(plan.rows.max(1), "row", "rows");
    let each = match (plan.mode, plan.parts.len(), plan.gangs()) {
        (Some("independent"), 2.., _) => " on each",
        (_, _, 2..) => " in each gang",
        _ => "",
    };
    let what = if plan.fits { "Nodes" } else { "The best try" };
    format!("{what}, in GB, with {rows} of {} tokens{each}", count(plan.context_tokens))
}

fn parts(plan: &PlanView, screen: &Screen) -> Vec<String> {
    let spans_differ = plan
        .parts
        .windows(2)
        .any(|pair| (pair[0].first_layer, pair[0].end_layer) != (pair[1].first_layer, pair[1].end_layer));
    let is_sharded = matches!(plan.mode, Some("pipeline" | "tensor")) || spans_differ;
    let mut table = Table::new([
        Column::new("NODE").flexible(8, Cut::Tail),
        Column::new("GANG").right().droppable(8),
        Column::new("RANK").right().droppable(7),
        Column::new("LAYERS").right().droppable(3),
        Column::new("WEIGHTS").right().droppable(4),
        Column::new("KV").right().droppable(5),
        Column::new("OVERHEAD").right().droppable(6),
        Column::new("TOTAL").right().droppable(2),
        Column::new("BUDGET").right().droppable(1),
        Column::new("FREE").right(),
    ]);
    let number = |n: Option<u32>| n.map(|n| n.to_string()).unwrap_or_default();
    for part in &plan.parts {
        table.row([
            part.node.as_str().into(),
            number(part.gang.filter(|_| plan.gangs() > 1)).into(),
            number(part.rank.filter(|_| is_sharded)).into(),
            if is_sharded { layers(part) } else { String::new() }.into(),
            gigabytes(part.weight_bytes).into(),
            gigabytes(part.cache_bytes).into(),
            gigabytes(part.activation_bytes.saturating_add(part.overhead_bytes)).into(),
            gigabytes(part.total_bytes).into(),
            gigabytes(part.budget_bytes).into(),
            Cell::styled(
                signed_gigabytes(part.free_bytes),
                if part.free_bytes < 0 { Style::Bad } else { Style::Plain },
            ),
        ]);
    }
    table.lines(2, screen)
}

/// "0–46", counted from 0 and with the last one.
fn layers(part: &PartView) -> String {
    match part.end_layer.checked_sub(1) {
        Some(last) if last >= part.first_layer => format!("{}–{last}", part.first_layer),
        _ => "none".to_owned(),
    }
}

/// "The most that fits: 24 rows of 4,096 tokens, or 12,288 tokens with 8 rows."
fn most(plan: &PlanView) -> String {
    let rows = |n| plural(n, "row", "rows");
    let (context, asked) = (count(plan.context_tokens), plan.rows.max(1));
    match (plan.largest_rows, plan.largest_context_tokens) {
        (0, 0) => "The most that fits: nothing, not even one row of any length.".to_owned(),
        (0, tokens) => format!("The most that fits: {} of {} tokens.", rows(asked), count(tokens)),
        (most, 0) => format!("The most that fits: {} of {context} tokens.", rows(most)),
        (most, tokens) => format!(
            "The most that fits: {} of {context} tokens, or {} of {} tokens.",
            rows(most),
            rows(asked),
            count(tokens)
        ),
    }
}

fn bullets(lines: &mut Vec<String>, screen: &Screen, title: &str, items: impl Iterator<Item = String>) {
    let items: Vec<String> = items.collect();
    if items.is_empty() {
        return;
    }
    section(lines, screen, title);
    for item in items {
        lines.extend(screen.sentence("  • ", &item, Style::Plain));
    }
}

/// The sentence, with the node it is about where it does not name it.
fn about(reason: &ReasonView) -> String {
    // The backend's reason opens with its name.
    let what = if reason.rule == "backend" { "backend " } else { "" };
    let text = capital(&sentence(&format!("{what}{}", reason.text)));
    match &reason.node {
        Some(node) if !reason.text.contains(node.as_str()) => format!("{node}: {text}"),
        _ => text,
    }
}
