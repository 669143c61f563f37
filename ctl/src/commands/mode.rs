//! `--mode` and `--context`: what a person may ask for, on every command that has them.

use nightshift_proto::v1;

/// The controller's own bound; no model takes as much.
pub(super) const MOST_CONTEXT_TOKENS: u64 = 16 << 20;

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum ModeChoice {
    /// Whatever the rules say
    #[default]
    Auto,
    /// The whole model on each node
    Independent,
    /// Some of the layers on each node
    Pipeline,
    /// A share of every layer on each node
    Tensor,
}

impl From<ModeChoice> for v1::Mode {
    fn from(choice: ModeChoice) -> Self {
        match choice {
            ModeChoice::Auto => v1::Mode::Unspecified,
            ModeChoice::Independent => v1::Mode::Independent,
            ModeChoice::Pipeline => v1::Mode::Pipeline,
            ModeChoice::Tensor => v1::Mode::Tensor,
        }
    }
}
