//! What a model may take of a node's memory.

/// Set aside on a node with a GPU, of what the GPU may use: the window server and whatever else asks for wired memory
/// during a night. A number of ours, on the careful side; a person's own number is taken as it is.
const RESERVE_BYTES: u64 = 1 << 30;

/// A node's memory as it was observed, or as a person who plans to buy it writes it down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeMemory {
    /// Installed.
    pub total_bytes: Option<u64>,
    /// Metal's recommended working set.
    pub gpu_working_set_bytes: Option<u64>,
    /// `iogpu.wired_limit_mb`, where it is set.
    pub wired_limit_bytes: Option<u64>,
    /// What the node's configuration allows.
    pub configured_bytes: Option<u64>,
    /// Wired by others than our workers.
    pub wired_bytes: u64,
    /// Whether models run on Metal here.
    pub has_metal: bool,
}

/// Where a budget comes from, in the order in which they are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BudgetSource {
    /// The node's configuration.
    Configured,
    /// `iogpu.wired_limit_mb`.
    WiredLimit,
    /// Metal's recommended working set.
    WorkingSet,
    /// Three quarters of the installed memory: about what Metal recommends on large Macs (FIELD-NOTES 4).
    ShareOfTotal,
}

impl BudgetSource {
    /// One stable word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::WiredLimit => "wired-limit",
            Self::WorkingSet => "working-set",
            Self::ShareOfTotal => "share-of-total",
        }
    }
}

/// What a node has for a model: limit − wired by others − reserve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Bytes for weights, caches and everything computed.
    pub bytes: u64,
    /// What the GPU (or the model's process) may use at all.
    pub limit_bytes: u64,
    /// Where the limit comes from.
    pub source: BudgetSource,
}

impl NodeMemory {
    /// The budget; `None` when nothing is known about the memory.
    #[must_use]
    pub fn budget(&self) -> Option<Budget> {
        let set = |bytes: Option<u64>| bytes.filter(|bytes| *bytes > 0);
        if let Some(bytes) = set(self.configured_bytes) {
            return Some(Budget { bytes, limit_bytes: bytes, source: BudgetSource::Configured });
        }
        let (limit_bytes, source) = if let Some(bytes) = set(self.wired_limit_bytes) {
            (bytes, BudgetSource::WiredLimit)
        } else if let Some(bytes) = set(self.gpu_working_set_bytes) {
            (bytes, BudgetSource::WorkingSet)
        } else {
            (set(self.total_bytes)? / 4 * 3, BudgetSource::ShareOfTotal)
        };
        let bytes = limit_bytes.saturating_sub(self.wired_bytes).saturating_sub(RESERVE_BYTES);
        Some(Budget { bytes, limit_bytes, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_most_specific_limit_counts_and_the_reserve_comes_off() {
        let mac = NodeMemory { total_bytes: Some(128 * GIB), ..NodeMemory::default() };
        let budget = mac.budget().unwrap();
        assert_eq!((budget.bytes, budget.source), (95 * GIB, BudgetSource::ShareOfTotal));

        let told = NodeMemory { gpu_working_set_bytes: Some(110 * GIB), wired_bytes: 3 * GIB, ..mac };
        assert_eq!(told.budget().unwrap().bytes, 106 * GIB);

        // 0 is macOS's word for "not set".
        let raised = NodeMemory { wired_limit_bytes: Some(120 * GIB), ..told };
        assert_eq!(raised.budget().unwrap().bytes, 116 * GIB);
        assert_eq!(NodeMemory { wired_limit_bytes: Some(0), ..told }.budget(), told.budget());

        let configured = NodeMemory { configured_bytes: Some(7 * GIB), ..raised };
        assert_eq!(configured.budget().unwrap().bytes, 7 * GIB, "a person's number is taken as it is");
        assert_eq!(NodeMemory::default().budget(), None);
    }
}
