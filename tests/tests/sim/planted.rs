//! Bugs on purpose, each in the seams between the simulated parts: what they break must be noticed.

/// Which bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Planted {
    None,
    /// The epoch check is skipped: a result of whoever had the row before passes for the holder's.
    SkippedEpochCheck,
    /// Results are acknowledged when they are to be stored, not when they are.
    AcknowledgedBeforeFlush,
    /// A row that was handed out never arrives, and nobody notices.
    ForgottenLease,
    /// A launch is commanded before it is on record.
    LaunchBeforeRecord,
    /// Results are stored twice.
    StoredTwice,
    /// A disk that is full is taken for one that has stored.
    FullDiskIgnored,
    /// A worker is not told to end.
    LostStop,
    /// The end of a worker is not told.
    ForgottenExit,
    /// Nodes are planned with twice the memory they have.
    WrongBudget,
    /// Checkpoints are kept nowhere.
    LostCheckpoints,
    /// Incidents are not recorded.
    UnrecordedIncidents,
    /// Starts over RDMA are not counted.
    UncountedRdmaStarts,
    /// Windows are not looked at: work goes out as if they were open.
    IgnoredWindow,
    /// A controller that is started anew knows nothing of the restarts of machines before it.
    ForgottenRestarts,
}

impl Planted {
    pub(crate) const ALL: &[Self] = &[
        Self::SkippedEpochCheck,
        Self::AcknowledgedBeforeFlush,
        Self::ForgottenLease,
        Self::LaunchBeforeRecord,
        Self::StoredTwice,
        Self::FullDiskIgnored,
        Self::LostStop,
        Self::ForgottenExit,
        Self::WrongBudget,
        Self::LostCheckpoints,
        Self::UnrecordedIncidents,
        Self::UncountedRdmaStarts,
        Self::IgnoredWindow,
        Self::ForgottenRestarts,
    ];
}
