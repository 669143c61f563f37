//! What was found, for a person and as one JSON object.

use std::{collections::BTreeMap, fmt::Write as _};

use nightshift_proto::v1::ModelReport;
use serde::Serialize;
use serde_json::Value;

use super::Found;

/// Components of a name that make a part: `language_model.model.layers` is the longest that says something.
const MOST_COMPONENTS: usize = 3;

/// The stable shape of `cluster-agent model --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// As it was asked for.
    pub model: String,
    /// Where it lies.
    pub directory: String,
    /// The first of "architectures".
    pub architecture: Option<String>,
    /// What mlx-lm goes by.
    pub model_type: Option<String>,
    /// Weight files.
    pub files: usize,
    /// Tensors in them.
    pub tensors: usize,
    /// Of all tensors.
    pub weight_bytes: u64,
    /// Of the tensors of each part.
    pub parts: Vec<Part>,
    /// See [`super::fold::fingerprint`].
    pub fingerprint: String,
}

/// Tensors that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What their names begin with.
    pub name: String,
    /// In the files.
    pub bytes: u64,
}

/// Adds up what was found.
#[must_use]
pub fn summary(found: &Found) -> Summary {
    let ModelReport { model, directory, config_json, tensors, fingerprint, .. } = &found.report;
    let config: Value = serde_json::from_slice(config_json).unwrap_or_default();
    let mut parts: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in tensors {
        let sum = parts.entry(part_of(&tensor.name)).or_default();
        *sum = sum.saturating_add(tensor.bytes);
    }
    Summary {
        model: model.clone(),
        directory: directory.clone(),
        architecture: config["architectures"][0].as_str().map(str::to_owned),
        model_type: config["model_type"].as_str().map(str::to_owned),
        files: found.files,
        tensors: found.tensors,
        weight_bytes: parts.values().fold(0, |sum, bytes| sum.saturating_add(*bytes)),
        parts: parts.into_iter().map(|(name, bytes)| Part { name, bytes }).collect(),
        fingerprint: fingerprint.clone(),
    }
}

/// The lines for a person.
#[must_use]
pub fn describe(summary: &Summary) -> String {
    let unknown = || "not named in config.json".to_owned();
    let architecture =
        summary.architecture.clone().or_else(|| summary.model_type.clone()).unwrap_or_else(unknown);
    let mut text = format!(
        "model         {}\ndirectory     {}\narchitecture  {architecture}\nweight files  {}\ntensors       {}\nweights       {}\n",
        summary.model,
        summary.directory,
        summary.files,
        summary.tensors,
        size(summary.weight_bytes)
    );
    let width = summary.parts.iter().map(|part| part.name.chars().count()).max().unwrap_or(0);
    for part in &summary.parts {
        // A String takes whatever is written to it.
        let _ = writeln!(text, "  {:<width$}  {:>9}", part.name, size(part.bytes));
    }
    text.push_str("fingerprint   ");
    text.push_str(&summary.fingerprint);
    text
}

/// Up to the first number, without the last component.
fn part_of(name: &str) -> String {
    let components: Vec<&str> = name.split('.').collect();
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit()) || *part == "*";
    let end = components.iter().position(is_number).unwrap_or(components.len() - 1);
    components[..end.clamp(1, MOST_COMPONENTS.min(components.len()))].join(".")
}

/// Decimal units, as vendors and model pages count.
fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in units {
        // What would be rounded to a thousand is one of the next unit.
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1_000.0, next);
    }
    if unit == "B" || value >= 99.95 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use nightshift_proto::v1::ModelTensor;

    use super::*;

    fn found() -> Found {
        let tensor = |name: &str, bytes| ModelTensor { name: name.into(), dtype: "BF16".into(), bytes };
        Found {
            report: ModelReport {
                model: "org/m".into(),
                directory: "/models/m".into(),
                config_json: br#"{"architectures":["LlamaForCausalLM"],"model_type":"llama"}"#.into(),
                tensors: vec![
                    tensor("lm_head.weight", 2_000_000),
                    tensor("model.embed_tokens.weight", 2_000_000),
                    tensor("model.layers.0.mlp.experts.*.w", 999_600),
                    tensor("model.layers.1.mlp.w", 123_456_789_000),
                    tensor("model.norm.weight", 10),
                ],
                fingerprint: "ab".into(),
                ..ModelReport::default()
            },
            files: 2,
            tensors: 99,
        }
    }

    #[test]
    fn a_person_sees_parts_and_sums() {
        let expected = "\
model         org/m
directory     /models/m
architecture  LlamaForCausalLM
weight files  2
tensors       99
weights       123 GB
  lm_head                2.0 MB
  model.embed_tokens     2.0 MB
  model.layers           123 GB
  model.norm               10 B
fingerprint   ab";
        assert_eq!(describe(&summary(&found())), expected);
    }

    #[test]
    fn the_json_shape_is_stable() {
        let keys: Vec<String> = match serde_json::to_value(summary(&found())).unwrap() {
            Value::Object(object) => object.keys().cloned().collect(),
            _ => vec![],
        };
        let all = [
            "architecture",
            "directory",
            "files",
            "fingerprint",
            "model",
            "model_type",
            "parts",
            "tensors",
            "weight_bytes",
        ];
        assert_eq!(keys, all);
    }

    #[test]
    fn parts_end_before_the_first_number() {
        for (name, part) in [
            ("w", "w"),
            ("", ""),
            ("0.w", "0"),
            ("lm_head.weight", "lm_head"),
            ("language_model.model.layers.3.w", "language_model.model.layers"),
            ("a.b.c.d.e", "a.b.c"),
            ("vision_tower.blocks.experts.*.w", "vision_tower.blocks.experts"),
        ] {
            assert_eq!(part_of(name), part, "{name}");
        }
    }

    #[test]
    fn sizes_never_round_to_a_thousand() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (999_600, "1.0 MB"), (99_960, "100 kB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "18.4 EB");
    }
}
