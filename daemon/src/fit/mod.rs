//! Does a model fit a node, and where does it not?
//!
//! Promises: weights are counted to the byte from the headers of the files, by layer and cause; the cache of the
//! architectures we know is counted as mlx-lm 0.32.2 allocates it, that of all others is bounded from above and said to
//! be; every sum is per node, because memory does not pool; a refusal says how far off it is and what would help.
//!
//! ```text
//!  headers, config.json          rows × context               memory of a node
//!          │                           │                            │
//!       ModelFacts ──────────────▶  Need  ◀── span of layers     Budget
//!  (facts, tensors, cache)     (need, by cause)                  (budget)
//!                                      │                            │
//!                                      └──────▶  Verdict  ◀─────────┘
//!                                   (verdict, split): fits, headroom, or what is missing
//! ```

mod budget;
mod cache;
mod dtype;
mod facts;
mod need;
mod split;
mod tensors;
mod verdict;

#[cfg(test)]
mod tests;

pub use budget::{Budget, BudgetSource, NodeMemory};
pub use cache::Cache;
pub use dtype::Dtype;
pub use facts::{LayerFacts, ModelFacts, Weights, gigabytes};
pub use need::{Need, Workload, tensor_share};
pub use split::{Floor, Span, Stage, can_hold, split};
pub use tensors::{ModelFiles, Tensor};
pub use verdict::{Advice, Verdict, advice, largest_context, largest_rows, tensor_obstacle, verdict};
