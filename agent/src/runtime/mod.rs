//! The Python runtime of the workers: a virtual environment with MLX and mlx-lm at pinned versions.
//!
//! The runtime directory **is** the virtual environment: `<runtime-dir>/bin/python`. `install` makes it, `check` imports
//! what a worker imports and compares versions. Three kinds of directory are told apart:
//!
//! ```text
//!  absent, empty ──install──► .nightshift-installing ──► .nightshift-runtime.json   (ready; says what is in it)
//!        ▲                            │ broken off: removed and done again
//!        └────────────────────────────┘
//!  anything else: somebody's own environment. Used if it passes the check, never changed, never removed.
//! ```
//!
//! * [`python`] finds an interpreter to build it with;
//! * [`install`](mod@install) builds it, once, whoever else tries at the same time;
//! * [`check`](mod@check) says whether it is fit, thoroughly or at a glance.

pub mod check;
pub mod install;
pub mod marker;
pub mod python;
pub mod requirements;
pub mod tiny_model;

use std::path::{Path, PathBuf};

pub use check::{Status, check, glance};
pub use install::install;

/// The interpreter of the runtime in `dir`.
#[must_use]
pub fn interpreter(dir: &Path) -> PathBuf {
    dir.join("bin/python")
}
