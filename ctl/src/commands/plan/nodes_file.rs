//! `--nodes FILE`: machines one does not have yet, in TOML.
//!
//! Every mistake is refused with its line and what to write there; nothing is guessed, because a plan for other machines
//! than one thinks of is worse than none.

use std::{collections::BTreeMap, fmt, io::Read, path::Path};

use nightshift_proto::v1;
use serde::{Deserialize, Deserializer, de::Visitor};
use toml::Spanned;

use crate::error::{Error, Result};

/// More nodes than this no plan is made for.
const MOST_NODES: usize = 64;

/// Thirty times the largest Mac there is: beyond, it is a number of another unit.
const MOST_MEMORY_GIB: f64 = 16_384.0;

/// 64 nodes take a few KiB; a file of this size is another one.
const MOST_FILE_BYTES: u64 = 1 << 20;

/// As long as an agent lets a node's name be.
const MOST_NAME_BYTES: usize = 64;

const GIB: f64 = (1_u64 << 30) as f64;
const MIB: f64 = (1_u64 << 20) as f64;

const EXAMPLE: &str = "Describe each machine like this: [[node]] and below it name = \"studio-1\" and memory_gib = 128, each on a line of its own (more: clusterctl plan --help).";

/// The machines of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Machines {
    pub(super) nodes: Vec<v1::PlannedNode>,
    /// RDMA joins every pair.
    pub(super) rdma: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rdma: bool,
    #[serde(default)]
    node: Vec<Spanned<Entry>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    memory_gib: Option<Spanned<Number>>,
    wired_limit_mb: Option<Spanned<Number>>,
    budget_gib: Option<Spanned<Number>>,
    count: Option<Spanned<Number>>,
}

/// A number with or without a fraction: TOML tells them apart, people do not.
#[derive(Debug, Clone, Copy)]
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyNumber;
        impl Visitor<'_> for AnyNumber {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number without quotation marks")
            }

            fn visit_i64<E>(self, n: i64) -> Result<Number, E> {
                Ok(Number(n as f64))
            }

            fn visit_u64<E>(self, n: u64) -> Result<Number, E> {
                Ok(Number(n as f64))
            }

            fn visit_f64<E>(self, n: f64) -> Result<Number, E> {
                Ok(Number(n))
            }
        }
        deserializer.deserialize_any(AnyNumber)
    }
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Machines> {
    let cannot = |e: std::io::Error| {
        let text = e.to_string();
        let why = text.split(" (os error").next().unwrap_or(&text);
        Error::local(format!("Cannot read {}: {}.", path.display(), crate::output::text::clean(why)))
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(MOST_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    let name = path.display().to_string();
    if bytes.len() as u64 > MOST_FILE_BYTES {
        return Err(Error::local_hint(format!("{name} is too large to be a list of machines."), EXAMPLE));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(text, &name),
        Err(_) => Err(Error::local_hint(format!("{name} is not text."), EXAMPLE)),
    }
}

fn parse(text: &str, file: &str) -> Result<Machines> {
    let line = |at: usize| text.get(..at).unwrap_or(text).matches('\n').count() + 1;
    let parsed: File = toml::from_str(text).map_err(|e| {
        let place = e.span().map(|span| format!(", line {}", line(span.start))).unwrap_or_default();
        let problem = e.message().trim_end_matches('.').replace('\n', " ");
        Error::local_hint(format!("{file}{place}: {problem}."), EXAMPLE)
    })?;
    let mut nodes = Vec::new();
    let mut lines_by_name = BTreeMap::new();
    for entry in parsed.node {
        let start = entry.span().start;
        let wrong = |wrong: Wrong| {
            let line = line(wrong.at.unwrap_or(start));
            Error::local_hint(format!("{file}, line {line}: {}.", wrong.problem), wrong.what_to_write)
        };
        for node in expand(&entry.into_inner()).map_err(wrong)? {
            if let Some(first) = lines_by_name.insert(node.node_id.clone(), line(start)) {
                return Err(wrong(Wrong::new(
                    format!("the name \"{}\" is taken by the node of line {first}", node.node_id),
                    "Give every node a name of its own, or write one of them with count = 2.",
                )));
            }
            nodes.push(node);
            if nodes.len() > MOST_NODES {
                return Err(wrong(Wrong::new(
                    format!("these are more than {MOST_NODES} nodes"),
                    "Plan for fewer.",
                )));
            }
        }
    }
    if nodes.is_empty() {
        return Err(Error::local_hint(format!("{file} names no node."), EXAMPLE));
    }
    Ok(Machines { nodes, rdma: parsed.rdma })
}

/// What is wrong with an entry, and what to write in its place.
#[derive(Debug)]
struct Wrong {
    /// Where in the file; none: the entry as a whole.
    at: Option<usize>,
    problem: String,
    what_to_write: String,
}

impl Wrong {
    fn new(problem: impl Into<String>, what_to_write: impl Into<String>) -> Self {
        Wrong { at: None, problem: problem.into(), what_to_write: what_to_write.into() }
    }

    fn at(self, number: &Spanned<Number>) -> Self {
        Wrong { at: Some(number.span().start), ..self }
    }
}

/// The nodes of an entry.
fn expand(entry: &Entry) -> Result<Vec<v1::PlannedNode>, Wrong> {
    let name = entry.name.as_deref().ok_or_else(|| {
        Wrong::new("the node has no name", "Write below [[node]], for example: name = \"studio-1\"")
    })?;
    let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_usual) {
        return Err(Wrong::new(
            format!("{name:?} is not a name of a node"),
            "A name is made of letters, digits, dots, dashes and underscores, for example: name = \"studio-1\"",
        ));
    }
    let memory = entry.memory_gib.as_ref().ok_or_else(|| {
        Wrong::new(format!("{name} has no memory"), "Write what is installed, for example: memory_gib = 128")
    })?;
    let memory_bytes = gib("memory_gib", memory)?;
    let at_most_memory = |key: &str, number: &Spanned<Number>, bytes: u64| {
        if bytes <= memory_bytes {
            return Ok(bytes);
        }
        let what_to_write = format!("Write no more than its {} GiB, or leave {key} out.", memory.get_ref().0);
        Err(Wrong::new(format!("{key} of {name} is more than its memory"), what_to_write).at(number))
    };
    let wired_limit_bytes = match &entry.wired_limit_mb {
        Some(limit) => at_most_memory("wired_limit_mb", limit, megabytes(limit)?)?,
        None => 0,
    };
    let budget_bytes = match &entry.budget_gib {
        Some(budget) => at_most_memory("budget_gib", budget, gib("budget_gib", budget)?)?,
        None => 0,
    };
    let count = entry.count.as_ref().map_or(Ok(1), whole_count)?;
    let node = |node_id: String| v1::PlannedNode { node_id, memory_bytes, wired_limit_bytes, budget_bytes };
    let nodes: Vec<_> = match count {
        1 => vec![node(name.to_owned())],
        count => (1..=count).map(|n| node(format!("{name}-{n}"))).collect(),
    };
    if nodes.iter().any(|node| node.node_id.len() > MOST_NAME_BYTES) {
        return Err(Wrong::new(
            format!("the name of {name} is too long"),
            format!("A name has {MOST_NAME_BYTES} characters at most."),
        ));
    }
    Ok(nodes)
}

fn gib(key: &str, number: &Spanned<Number>) -> Result<u64, Wrong> {
    let Number(n) = *number.get_ref();
    if n > 0.0 && n <= MOST_MEMORY_GIB && n * GIB >= 1.0 {
        return Ok((n * GIB) as u64);
    }
    let what_to_write = if n > MOST_MEMORY_GIB {
        format!("It is counted in GiB, as memory is sold, for example: {key} = 128")
    } else {
        format!("Write a number above 0, for example: {key} = 128")
    };
    Err(Wrong::new(format!("{key} = {n} makes no sense"), what_to_write).at(number))
}

/// 0 is macOS' word for "not set".
fn megabytes(number: &Spanned<Number>) -> Result<u64, Wrong> {
    let Number(n) = *number.get_ref();
    if n >= 0.0 && n.fract() == 0.0 && n <= MOST_MEMORY_GIB * 1024.0 {
        return Ok((n * MIB) as u64);
    }
    Err(Wrong::new(
        format!("wired_limit_mb = {n} makes no sense"),
        "Write what sysctl iogpu.wired_limit_mb is to say, for example: wired_limit_mb = 122880",
    )
    .at(number))
}

fn whole_count(number: &Spanned<Number>) -> Result<usize, Wrong> {
    let Number(n) = *number.get_ref();
    if n.fract() == 0.0 && (1.0..=MOST_NODES as f64).contains(&n) {
        return Ok(n as usize);
    }
    Err(Wrong::new(
        format!("count = {n} makes no sense"),
        format!("Write how many like this there are, 1 to {MOST_NODES}, for example: count = 2"),
    )
    .at(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, memory_gib: u64) -> v1::PlannedNode {
        v1::PlannedNode {
            node_id: name.to_owned(),
            memory_bytes: memory_gib << 30,
            wired_limit_bytes: 0,
            budget_bytes: 0,
        }
    }

    #[test]
    fn machines_are_read_and_multiplied() {
        let text = "
            rdma = true
            [[node]]
            name = \"studio\"
            memory_gib = 128
            wired_limit_mb = 122880
            count = 2
            [[node]] # its budget is known
            name = \"mini\"
            memory_gib = 24.0
            budget_gib = 17.5
            [[node]]
            name = \"air\"
            memory_gib = 16
            wired_limit_mb = 0
            count = 1
        ";
        let machines = parse(text, "nodes.toml").unwrap();
        let studio = |name| v1::PlannedNode { wired_limit_bytes: 120 << 30, ..node(name, 128) };
        let mini = v1::PlannedNode { budget_bytes: 35 << 29, ..node("mini", 24) };
        assert!(machines.rdma);
        assert_eq!(machines.nodes, [studio("studio-1"), studio("studio-2"), mini, node("air", 16)]);
    }

    fn error(text: &str) -> String {
        let error = parse(text, "nodes.toml").unwrap_err();
        format!("{error}\n  {}\n", error.hint().unwrap())
    }

    #[test]
    fn every_mistake_has_its_line_and_what_to_write() {
        let a = "[[node]]\nname = \"a\"\nmemory_gib = 128\n";
        let with = |line: &str| error(&format!("{a}{line}\n"));
        let mistakes = [
            error(""),
            error("rdma = true\n"),
            error("rdma = \"yes\"\n"),
            error("[[nodes]]\nname = \"a\"\n"),
            error("[[node]\n"),
            error(&format!("{a}\n# without a name\n[[node]]\nmemory_gib = 128\n")),
            error("[[node]]\nname = \"a b\"\nmemory_gib = 128\n"),
            error(&format!("[[node]]\nname = \"{}\"\nmemory_gib = 128\n", "a".repeat(65))),
            error("\n[[node]]\nname = \"a\"\n"),
            error("[[node]]\nname = \"a\"\nmemory_gib = \"128\"\n"),
            error("[[node]]\nname = \"a\"\nmemory_gib = 0\n"),
            error("[[node]]\nname = \"a\"\nmemory_gib = -128\n"),
            error("[[node]]\nname = \"a\"\nmemory_gib = nan\n"),
            error("[[node]]\nname = \"a\"\nmemory_gib = 137438953472\n"),
            with("memory_gb = 128"),
            with("wired_limit_mb = 120.5"),
            with("wired_limit_mb = 131073"),
            with("budget_gib = 129"),
            with("budget_gib = -1"),
            with("count = 0"),
            with("count = 1.5"),
            with("count = 65"),
            error(&format!("{a}\n{a}")),
            error(&format!("{a}count = 2\n[[node]]\nname = \"a-2\"\nmemory_gib = 64\n")),
            error(&format!("{a}count = 64\n[[node]]\nname = \"b\"\nmemory_gib = 64\n")),
        ];
        insta::assert_snapshot!("mistakes", mistakes.concat());
    }

    #[test]
    fn files_that_are_none_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            if !bytes.is_empty() {
                std::fs::write(&path, bytes).unwrap();
            }
            read(&path).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "")
        };
        assert_eq!(error("absent.toml", b""), "Cannot read absent.toml: No such file or directory.");
        assert_eq!(error("binary", b"\xff\xfe"), "binary is not text.");
        assert_eq!(
            error("model.safetensors", &vec![b'#'; (1 << 20) + 1]),
            "model.safetensors is too large to be a list of machines."
        );
        assert!(read(dir.path()).unwrap_err().to_string().contains("irectory"));
    }
}
