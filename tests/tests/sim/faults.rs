//! What strikes in a night, and how often: rates of a bad cluster, so that eight hours see everything.

use nightshift_daemon::recovery::ExitClass;
use nightshift_tests::rng::Rng;

use super::worlds::MINUTE_MS;

/// Something that happens to the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Strike {
    /// A worker ends in this way.
    Exit(ExitClass),
    /// Three times in a few minutes.
    GpuSeries,
    Hang,
    LinkDown,
    /// RDMA goes, and TCP stays.
    RdmaDown,
    /// A port takes no start over RDMA any more until its machine is restarted, and does not show it.
    RdmaWedged,
    /// Ten times in a minute.
    LinkFlaps,
    CutOff,
    /// The connection breaks and is there again.
    ConnectionLost,
    AgentKilled,
    Reboot,
    /// Every machine starts anew, one after the other.
    RollingUpdate,
    /// The controller ends amid a write of its ledger.
    ControllerCrash,
    /// The whole machine of the controller loses power amid one.
    PowerCut,
    /// The controller does not run for a while.
    ControllerStopped,
    DiskFull,
    ClockJump,
    Person,
    NewJob,
    /// Two of them at once.
    Two,
}

/// Between two strikes, on average.
pub(crate) const BETWEEN_MS: u64 = 9 * MINUTE_MS;

/// In a small cluster that is bombarded: many of them fall into each other's recovery.
pub(crate) const BETWEEN_BURSTS_MS: u64 = MINUTE_MS / 2;

const CLASSES: [ExitClass; 9] = [
    ExitClass::SpawnFailed,
    ExitClass::OutOfMemory,
    ExitClass::GpuFault,
    ExitClass::LinkFault,
    ExitClass::Signalled,
    ExitClass::Crashed,
    ExitClass::Killed,
    ExitClass::Orderly,
    ExitClass::CanaryFailed,
];

impl Strike {
    pub(crate) fn any(rng: &mut Rng) -> Self {
        match rng.range(0, 40) {
            0..8 => Self::Exit(*rng.pick(&CLASSES)),
            8 => Self::GpuSeries,
            9..11 => Self::Hang,
            11..14 => Self::LinkDown,
            14 => Self::LinkFlaps,
            15..17 => Self::CutOff,
            17..19 => Self::ConnectionLost,
            19..21 => Self::AgentKilled,
            21..23 => Self::Reboot,
            23 => Self::RollingUpdate,
            24..28 => Self::ControllerCrash,
            28 => Self::PowerCut,
            29 => Self::ControllerStopped,
            30..32 => Self::DiskFull,
            32 => Self::ClockJump,
            33..36 => Self::Person,
            36..38 => Self::NewJob,
            _ => Self::Two,
        }
    }
}
