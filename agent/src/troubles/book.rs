//! Folds signs into troubles. Pure: time and who runs under a process id are arguments.

use std::collections::{BTreeSet, VecDeque};

use crate::{
    probe::parse::mac::{
        reports::{Killed, Report, Tells},
        unified_log::GpuLine,
    },
    worker::Key,
};

/// Troubles that are kept, the newest: a person reads the last few.
pub const MOST_TROUBLES: usize = 16;

/// Processes named in one of them; a machine has few that use the GPU.
const MOST_CONCERNED: usize = 8;

/// Reports remembered as taken: the system keeps some dozens.
const MOST_TAKEN: usize = 64;

/// The counter is read every ten seconds at the latest, and the log tells within one of the restart.
const SAME_RESTART_MS: u64 = 30_000;

/// A report carries the moment in which it was written, up to minutes after what it tells of.
const REPORT_LAG_MS: u64 = 180_000;

/// A process that was ended for want of memory and had less is the system tidying up, as it does all day.
const LARGE_BYTES: u64 = 1_000_000_000;

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The GPU was restarted, and everybody lost what they had on it.
    GpuRestart,
    /// Processes were ended for want of memory.
    OutOfMemory,
    /// The system stopped; seen after the next start.
    Panic,
}

/// Who told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// IOKit's counter of restarts.
    Counter,
    /// The unified log.
    Log,
    /// A file in DiagnosticReports.
    Report,
}

/// A process that had to do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concerned {
    /// Its name.
    pub process: String,
    /// Its number, where it is told.
    pub pid: Option<u32>,
    /// The worker that it was.
    pub worker: Option<Key>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What it is.
    pub kind: Kind,
    /// When, by the first that told of it.
    pub unix_ms: u64,
    /// How often at that time; more than once only for the GPU.
    pub times: u64,
    /// Whose work it was, or whom it hit.
    pub concerned: Vec<Concerned>,
    /// In the words of a report.
    pub reason: Option<String>,
    /// Who told of it.
    pub seen_by: BTreeSet<Source>,
    /// Of a panic, the boot that it ended.
    pub boot_id: Option<String>,
    last_unix_ms: u64,
}

/// Something that tells of a trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    /// What the counter of GPU restarts stands at.
    Counter(u64),
    /// A line of the log.
    Line(GpuLine),
    /// A report, and when it was written.
    Report {
        /// What it says.
        report: Report,
        /// Its own time, else that of its file.
        unix_ms: u64,
    },
}

/// The newest troubles.
#[derive(Debug, Default)]
pub struct Book {
    troubles: VecDeque<Trouble>,
    counted: Option<u64>,
    taken: VecDeque<String>,
}

impl Book {
    /// Oldest first.
    pub fn troubles(&self) -> impl Iterator<Item = &Trouble> {
        self.troubles.iter()
    }

    /// Takes a sign in. Returns whether anything is new.
    pub fn note(&mut self, sign: Sign, now_unix_ms: u64, worker_of: impl Fn(u32) -> Option<Key>) -> bool {
        match sign {
            Sign::Counter(count) => self.count(count, now_unix_ms),
            Sign::Line(line) => {
                let trouble = self.restart_at(now_unix_ms, SAME_RESTART_MS);
                trouble.seen_by.insert(Source::Log);
                trouble.last_unix_ms = now_unix_ms;
                if let GpuLine::Victim { process, pid } = line {
                    trouble.concern(process, Some(pid), worker_of(pid));
                }
                true
            }
            Sign::Report { report, unix_ms } => self.report(report, unix_ms, worker_of),
        }
    }

    fn count(&mut self, count: u64, now_unix_ms: u64) -> bool {
        // What was before this agent is in the counter itself, and nobody knows when it was.
        let Some(before) = self.counted.replace(count) else { return false };
        // A smaller one is of another boot.
        let Some(more) = count.checked_sub(before).filter(|more| *more > 0) else { return false };
        let trouble = self.restart_at(now_unix_ms, SAME_RESTART_MS);
        // Of those that the log told of, the counter knows how many they are.
        trouble.times = if trouble.seen_by.insert(Source::Counter) { more } else { trouble.times + more };
        trouble.last_unix_ms = now_unix_ms;
        true
    }

    fn report(&mut self, report: Report, unix_ms: u64, worker_of: impl Fn(u32) -> Option<Key>) -> bool {
        if let Some(id) = &report.incident_id {
            if self.taken.contains(id) {
                return false;
            }
            if self.taken.len() == MOST_TAKEN {
                self.taken.pop_front();
            }
            self.taken.push_back(id.clone());
        }
        match report.tells {
            Tells::GpuRestart { process, reason } => {
                let trouble = self.restart_at(unix_ms, REPORT_LAG_MS);
                trouble.seen_by.insert(Source::Report);
                trouble.reason = trouble.reason.take().or(reason);
                if let Some(process) = process {
                    trouble.concern(process, None, None);
                }
                true
            }
            Tells::Jetsam { killed, .. } => self.killed(&killed, unix_ms, worker_of),
            Tells::Panic { summary, boot_session_uuid } => {
                let trouble = self.push(Kind::Panic, unix_ms);
                trouble.seen_by.insert(Source::Report);
                trouble.reason = summary;
                trouble.boot_id = boot_session_uuid;
                true
            }
            Tells::Other => false,
        }
    }

    fn killed(&mut self, killed: &[Killed], unix_ms: u64, worker_of: impl Fn(u32) -> Option<Key>) -> bool {
        let matters: Vec<(&Killed, Option<Key>)> = killed
            .iter()
            .map(|of| (of, of.pid.and_then(&worker_of)))
            .filter(|(of, worker)| {
                worker.is_some() || of.resident_bytes.is_some_and(|bytes| bytes >= LARGE_BYTES)
            })
            .collect();
        let Some((first, _)) = matters.first() else { return false };
        let reason = first.reason.clone();
        let trouble = self.push(Kind::OutOfMemory, unix_ms);
        trouble.seen_by.insert(Source::Report);
        trouble.reason = Some(reason);
        for (of, worker) in matters {
            trouble.concern(of.process.clone(), of.pid, worker);
        }
        true
    }

    /// The restart that was told of around this time, else a new one.
    fn restart_at(&mut self, unix_ms: u64, within_ms: u64) -> &mut Trouble {
        let near = |trouble: &Trouble| {
            let (from, to) =
                (trouble.unix_ms.saturating_sub(within_ms), trouble.last_unix_ms.saturating_add(within_ms));
            trouble.kind == Kind::GpuRestart && (from..=to).contains(&unix_ms)
        };
        // The newest: two restarts may both be near a late report, and it is more likely to be of the later one.
        match self.troubles.iter().rposition(near) {
            Some(index) => &mut self.troubles[index],
            None => self.push(Kind::GpuRestart, unix_ms),
        }
    }

    fn push(&mut self, kind: Kind, unix_ms: u64) -> &mut Trouble {
        if self.troubles.len() == MOST_TROUBLES {
            self.troubles.pop_front();
        }
        let trouble = Trouble {
            kind,
            unix_ms,
            times: 1,
            concerned: Vec::new(),
            reason: None,
            seen_by: BTreeSet::new(),
            boot_id: None,
            last_unix_ms: unix_ms,
        };
        // Reports come late: in order of time, so that the oldest goes first.
        let index = self.troubles.partition_point(|other| other.unix_ms <= unix_ms);
        self.troubles.insert(index, trouble);
        &mut self.troubles[index]
    }
}

impl Trouble {
    fn concern(&mut self, process: String, pid: Option<u32>, worker: Option<Key>) {
        let known = self
            .concerned
            .iter()
            .position(|of| of.process == process && (of.pid == pid || of.pid.is_none() || pid.is_none()));
        match known {
            Some(index) => {
                let of = &mut self.concerned[index];
                of.pid = of.pid.or(pid);
                of.worker = of.worker.or(worker);
            }
            None if self.concerned.len() < MOST_CONCERNED => {
                self.concerned.push(Concerned { process, pid, worker });
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T: u64 = 1_795_000_000_000;
    const KEY: Key = Key { job_id: 7, epoch: 2, rank: 0 };

    fn worker_of(pid: u32) -> Option<Key> {
        (pid == 88).then_some(KEY)
    }

    fn noted(signs: impl IntoIterator<Item = (u64, Sign)>) -> Vec<Trouble> {
        let mut book = Book::default();
        for (at, sign) in signs {
            book.note(sign, at, worker_of);
        }
        book.troubles.into()
    }

    fn victim(pid: u32) -> Sign {
        Sign::Line(GpuLine::Victim { process: "python3.13".to_owned(), pid })
    }

    fn report(id: &str, unix_ms: u64, tells: Tells) -> Sign {
        Sign::Report {
            report: Report { incident_id: Some(id.to_owned()), tells, ..Report::default() },
            unix_ms,
        }
    }

    fn gpu_report(id: &str, unix_ms: u64) -> Sign {
        let process = Some("python3.13".to_owned());
        report(
            id,
            unix_ms,
            Tells::GpuRestart { process, reason: Some("firmware-detected lockup".to_owned()) },
        )
    }

    #[test]
    fn three_who_tell_of_one_restart_tell_of_one() {
        let troubles = noted([
            (T - 60_000, Sign::Counter(4)),
            (T, Sign::Line(GpuLine::Restart)),
            (T + 12, victim(88)),
            (T + 12, victim(99)),
            (T + 9_000, Sign::Counter(5)),
            (T + 95_000, gpu_report("I-1", T + 2_000)),
            // Told of by two events of the file system.
            (T + 95_001, gpu_report("I-1", T + 2_000)),
        ]);
        let [trouble] = troubles.as_slice() else { panic!("{troubles:?}") };
        assert_eq!((trouble.kind, trouble.unix_ms, trouble.times), (Kind::GpuRestart, T, 1));
        assert_eq!(
            trouble.seen_by.iter().copied().collect::<Vec<_>>(),
            [Source::Counter, Source::Log, Source::Report]
        );
        assert_eq!(trouble.reason.as_deref(), Some("firmware-detected lockup"));
        let told: Vec<_> = trouble.concerned.iter().map(|of| (of.pid, of.worker)).collect();
        assert_eq!(told, [(Some(88), Some(KEY)), (Some(99), None)], "the report names no third");
    }

    #[test]
    fn restarts_apart_are_two_and_a_late_report_finds_its_own() {
        let minute = 60_000;
        let troubles = noted([
            (T, Sign::Counter(0)),
            (T + minute, Sign::Counter(1)),
            (T + 11 * minute, Sign::Counter(3)),
            (T + 20 * minute, gpu_report("I-1", T + minute + 5_000)),
        ]);
        let told: Vec<_> = troubles.iter().map(|of| (of.unix_ms - T, of.times, of.seen_by.len())).collect();
        assert_eq!(told, [(minute, 1, 2), (11 * minute, 2, 1)]);
    }

    #[test]
    fn the_counter_says_how_many_there_were_in_a_burst() {
        let burst = [
            (T, Sign::Counter(0)),
            (T + 1_000, Sign::Line(GpuLine::Restart)),
            (T + 2_000, Sign::Line(GpuLine::Restart)),
            (T + 3_000, Sign::Counter(2)),
            (T + 9_000, Sign::Counter(3)),
        ];
        assert_eq!(noted(burst).iter().map(|of| of.times).collect::<Vec<_>>(), [3]);
        // The first look is a beginning, and a smaller number is of another boot.
        assert_eq!(noted([(T, Sign::Counter(9)), (T + 1, Sign::Counter(0)), (T + 2, Sign::Counter(0))]), []);
    }

    #[test]
    fn of_processes_ended_for_memory_workers_and_large_ones_matter() {
        let killed = |process: &str, pid: u32, bytes: u64| Killed {
            process: process.to_owned(),
            pid: Some(pid),
            reason: "vm-compressor-space-shortage".to_owned(),
            resident_bytes: Some(bytes),
        };
        let told =
            |killed: Vec<Killed>| noted([(T, report("I", T, Tells::Jetsam { killed, largest: None }))]);
        assert_eq!(told(vec![killed("mediaanalysisd", 5, 90_000_000)]), []);
        let troubles =
            told(vec![killed("python3.13", 88, 1), killed("mds", 5, 1), killed("Safari", 6, LARGE_BYTES)]);
        assert_eq!(troubles[0].kind, Kind::OutOfMemory);
        let names: Vec<_> = troubles[0].concerned.iter().map(|of| of.process.as_str()).collect();
        assert_eq!(names, ["python3.13", "Safari"]);
        assert_eq!(troubles[0].concerned[0].worker, Some(KEY));
    }

    #[test]
    fn a_panic_says_which_boot_it_ended_and_stands_in_order_of_time() {
        let tells = Tells::Panic {
            summary: Some("panic(cpu 7)".to_owned()),
            boot_session_uuid: Some("B".to_owned()),
        };
        let troubles = noted([(T, Sign::Line(GpuLine::Restart)), (T + 5, report("I", T - 600_000, tells))]);
        assert_eq!(troubles.iter().map(|of| of.kind).collect::<Vec<_>>(), [Kind::Panic, Kind::GpuRestart]);
        assert_eq!(troubles[0].boot_id.as_deref(), Some("B"));
    }

    fn any_sign() -> impl Strategy<Value = Sign> {
        let id = "[ab][0-9]";
        prop_oneof![
            (0..5_u64).prop_map(Sign::Counter),
            Just(Sign::Line(GpuLine::Restart)),
            (0..200_u32).prop_map(victim),
            (id, any::<u64>()).prop_map(|(id, at)| gpu_report(&id, at)),
            (id, any::<u64>()).prop_map(|(id, at)| report(
                &id,
                at,
                Tells::Panic { summary: None, boot_session_uuid: None }
            )),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_told_it_stays_small_and_in_order(signs in prop::collection::vec((any::<u64>(), any_sign()), 0..200)) {
            let mut book = Book::default();
            for (at, sign) in signs {
                book.note(sign, at, worker_of);
                prop_assert!(book.troubles.len() <= MOST_TROUBLES && book.taken.len() <= MOST_TAKEN);
                prop_assert!(book.troubles.iter().all(|of| of.concerned.len() <= MOST_CONCERNED && of.times > 0));
                prop_assert!(book.troubles.iter().is_sorted_by_key(|of| of.unix_ms));
            }
        }
    }
}
