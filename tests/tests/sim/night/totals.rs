//! What happened in nights.

/// What nights were made of, for a person to see that something happened in them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(super) events: u64,
    pub(super) strikes: u64,
    pub(super) restarts: u64,
    pub(super) jobs: u64,
    pub(super) rows: u64,
    pub(super) starts: u64,
    pub(super) gangs: u64,
    pub(super) rdma_gangs: u64,
    pub(super) climbs: u64,
    /// Links that were tried, and of them those that did not pass.
    pub(super) link_tests: u64,
    /// Machines that went down with one.
    pub(super) panics: u64,
    pub(super) links_failed: u64,
    pub(super) machine_restarts: u64,
    /// Rows that failed though nothing was wrong with them.
    pub(super) innocents: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.strikes += other.strikes;
        self.restarts += other.restarts;
        self.jobs += other.jobs;
        self.rows += other.rows;
        self.starts += other.starts;
        self.gangs += other.gangs;
        self.rdma_gangs += other.rdma_gangs;
        self.climbs += other.climbs;
        self.link_tests += other.link_tests;
        self.panics += other.panics;
        self.links_failed += other.links_failed;
        self.machine_restarts += other.machine_restarts;
        self.innocents += other.innocents;
    }

    pub(crate) fn what_never_happened(&self) -> Vec<&'static str> {
        let counts = [
            (self.strikes, "a strike"),
            (self.restarts, "a controller that was started anew"),
            (self.gangs, "a gang"),
            (self.rdma_gangs, "a gang over RDMA"),
            (self.climbs, "a climb"),
            (self.link_tests, "a link that was tried"),
            (self.links_failed, "a link that did not pass"),
            (self.panics, "a machine that went down with a test"),
            (self.machine_restarts, "a machine that was restarted"),
        ];
        counts.into_iter().filter(|(count, _)| *count == 0).map(|(_, what)| what).collect()
    }
}
