//! Faults played by workers themselves: they run the real program and end it between two steps, with the words of a real
//! failure on stderr.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::runtime;

/// See there.
const PROGRAM: &str = include_str!("injected_faults.py");

/// How a worker ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// With this exit code.
    Exit(i32),
    /// By SIGABRT, as a C++ exception that nobody catches.
    Abort,
    /// Not at all: it stops to take steps.
    Hang,
}

/// How real workers ended, with the words they left: one or more of each class.
#[derive(Clone, Copy, Debug)]
pub struct LastWords {
    /// The fault it is in the books.
    pub fault: &'static str,
    /// On stderr.
    pub text: &'static str,
    /// And then.
    pub end: End,
}

impl LastWords {
    /// A fault that ends a worker with them.
    #[must_use]
    pub fn fault_of_worker(self) -> Fault {
        Fault::new(self.text, self.end)
    }
}

const fn words(fault: &'static str, end: End, text: &'static str) -> LastWords {
    LastWords { fault, text, end }
}

/// See there. Metal's are as MLX passes them on.
pub const CLASSIFIED: &[LastWords] = &[
    words(
        "gpu-fault",
        End::Exit(1),
        "RuntimeError: [METAL] Command buffer execution failed: Caused GPU Timeout Error \
         (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
    ),
    words(
        "gpu-fault",
        End::Abort,
        "RuntimeError: [METAL] Command buffer execution failed: Caused GPU Hang Error \
         (00000003:kIOGPUCommandBufferCallbackErrorHang)",
    ),
    words(
        "gpu-fault",
        End::Exit(1),
        "RuntimeError: [METAL] Command buffer execution failed: Ignored (for causing prior/excessive GPU errors) \
         (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)",
    ),
    words(
        "gpu-fault",
        End::Exit(1),
        "RuntimeError: [METAL] Command buffer execution failed: Discarded (victim of GPU error/recovery) \
         (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)",
    ),
    words(
        "gpu-fault",
        End::Abort,
        "RuntimeError: [METAL] Command buffer execution failed: Impacting Interactivity \
         (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
    ),
    words(
        "out-of-memory",
        End::Exit(1),
        "RuntimeError: [METAL] Command buffer execution failed: Insufficient Memory \
         (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    ),
    words("out-of-memory", End::Exit(1), "RuntimeError: [malloc] Unable to allocate 8589934592 bytes."),
    words("out-of-memory", End::Abort, "[metal::malloc] Resource limit (499000) exceeded."),
    words("link-fault", End::Exit(1), "RuntimeError: [ring] connection to a peer was lost"),
    words("link-fault", End::Exit(1), "[jaccl] Recv failed with error code 12"),
    words("worker-exited", End::Exit(1), "KeyError: 'lm_head'"),
    words("worker-exited", End::Abort, "libc++abi: terminating due to uncaught exception: a bug"),
];

/// One fault.
#[derive(Clone, Debug)]
pub struct Fault {
    text: String,
    end: End,
    times: u32,
    after: u32,
    rows: Option<Vec<u32>>,
    rank: Option<u32>,
}

impl Fault {
    /// These last words, once, at the first step with rows in work.
    #[must_use]
    pub fn new(text: &str, end: End) -> Self {
        Self { text: text.to_owned(), end, times: 1, after: 0, rows: None, rank: None }
    }

    /// So often.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// Each time after so many steps with rows in work.
    #[must_use]
    pub fn after_steps(mut self, steps: u32) -> Self {
        self.after = steps;
        self
    }

    /// Whenever one of these rows is in work, and only then.
    #[must_use]
    pub fn with_rows(mut self, rows: &[u32]) -> Self {
        self.rows = Some(rows.to_vec());
        self
    }

    /// At this rank of a gang only.
    #[must_use]
    pub fn at_rank(mut self, rank: u32) -> Self {
        self.rank = Some(rank);
        self
    }

    fn json(&self) -> Value {
        let end = match self.end {
            End::Exit(code) => json!(code),
            End::Abort => json!("abort"),
            End::Hang => json!("hang"),
        };
        let mut fault = json!({ "text": self.text, "end": end });
        match &self.rows {
            Some(rows) => fault["rows"] = json!(rows),
            None => {
                fault["times"] = json!(self.times);
                fault["after"] = json!(self.after);
            }
        }
        if let Some(rank) = self.rank {
            fault["rank"] = json!(rank);
        }
        fault
    }
}

/// An agent's configuration that runs the program in place of the worker's own.
///
/// # Panics
/// When it cannot be written.
pub(crate) fn write_configuration(dir: &Path, node: &str, agent_dir: &Path) -> PathBuf {
    // Harness and checks know workers by this part of their command line.
    let program = dir.join("worker-code").join("injected_faults.py");
    std::fs::create_dir_all(dir.join("worker-code")).expect("a directory can be made");
    std::fs::write(&program, PROGRAM).expect("the program can be written");
    let python = runtime::ensure().dir.join("bin/python");
    let words: Vec<PathBuf> = [python, "-E".into(), "-s".into(), "-B".into(), "-u".into(), program]
        .into_iter()
        .chain([agent_dir.to_owned(), faults_path(dir, node)])
        .collect();
    let path = dir.join(format!("agent-{node}.toml"));
    let line = format!("worker_command = {}\n", json!(words));
    std::fs::write(&path, line).expect("a configuration can be written");
    path
}

/// Where a node's faults stand.
pub(crate) fn faults_path(dir: &Path, node: &str) -> PathBuf {
    dir.join(format!("faults-{node}.json"))
}

/// Sets the faults of a node, in place of those it had.
///
/// # Panics
/// When they cannot be written.
pub(crate) fn write(dir: &Path, node: &str, faults: &[Fault]) {
    let list: Vec<Value> = faults.iter().map(Fault::json).collect();
    let path = faults_path(dir, node);
    let new = path.with_extension("next");
    std::fs::write(&new, json!(list).to_string()).expect("faults can be written");
    std::fs::rename(&new, &path).expect("faults can be put in place");
}
