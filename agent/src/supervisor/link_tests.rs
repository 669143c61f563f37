//! The link that is being tried on this node, if one is.
//!
//! Promises: what a test has on disk goes with its task, however that ends; a test that is ended before its time gives no answer, and
//! its process is gone before the next can begin, as far as SIGKILL can do that.

use std::{path::PathBuf, sync::Arc};

use nightshift_proto::v1;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Options;
use crate::{
    gang::files::Files,
    link_test::{self, Planned},
    logging::Source,
    worker::{Key, process::Launcher, record},
};

/// See the module.
#[derive(Debug)]
pub(super) struct LinkTests {
    /// One at most.
    running: JoinSet<Option<v1::LinkTested>>,
    /// Ends it.
    stop: CancellationToken,
    /// Of all tests: sources are few, and each that is closed pushes out that of an ended worker.
    log: Arc<Source>,
    gang_files: Files,
    records_dir: PathBuf,
    boot_id: Option<String>,
}

impl LinkTests {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            running: JoinSet::new(),
            stop: CancellationToken::new(),
            log: Arc::new(options.logs.open("link-test", None)),
            gang_files: options.gang_files.clone(),
            records_dir: options.records_dir.clone(),
            boot_id: options.boot_id.clone(),
        }
    }

    /// Starts the rank here. None may run.
    ///
    /// # Errors
    /// One sentence for the controller; nothing is left then.
    pub(super) fn begin(&mut self, planned: Planned, launcher: &Launcher) -> Result<(), String> {
        let key = planned.key;
        let variables = self
            .gang_files
            .write(key, &planned.launch)
            .map_err(|error| format!("what its rank needs cannot be written: {error}"))?;
        let traces =
            Traces { gang_files: self.gang_files.clone(), records_dir: self.records_dir.clone(), key };
        let process = launcher
            .start(&variables)
            .map_err(|error| format!("the process could not be started: {error}"))?;
        // Without a record the next agent could not find it. Its stdin closes with it, and it ends.
        record::write(&self.records_dir, &process.record(key, self.boot_id.as_deref()))
            .map_err(|error| format!("its process cannot be written down: {error}"))?;
        tracing::info!(
            request = planned.request_id,
            rank = key.rank,
            backend = planned.launch.init.backend,
            "a link is being tried"
        );
        self.stop = CancellationToken::new();
        let test = link_test::run(planned, process, Arc::clone(&self.log), self.stop.clone());
        self.running.spawn(async move {
            let _traces = traces;
            test.await
        });
        Ok(())
    }

    /// The answer of the test that has come to its end; `None` when none runs. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Option<v1::LinkTested> {
        self.running.join_next().await.and_then(answer)
    }

    /// Ends the test that runs, if one does: it is not answered, and what it has come to is of no account any more. Takes
    /// milliseconds, and two seconds at most.
    pub(super) async fn end(&mut self, why: &str) {
        if self.running.is_empty() {
            return;
        }
        tracing::info!(why, "the test of a link is ended");
        self.stop.cancel();
        while let Some(ended) = self.running.join_next().await {
            answer(ended);
        }
    }
}

/// The controller waits no longer than a test takes.
fn answer(ended: Result<Option<v1::LinkTested>, JoinError>) -> Option<v1::LinkTested> {
    ended.unwrap_or_else(|error| {
        if !error.is_cancelled() {
            tracing::error!(%error, "the task that tried a link has failed");
        }
        None
    })
}

/// What a test has on disk.
struct Traces {
    gang_files: Files,
    records_dir: PathBuf,
    key: Key,
}

impl Drop for Traces {
    fn drop(&mut self) {
        record::remove(&self.records_dir, self.key);
        self.gang_files.remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::{
        link_test::tests::{launcher, planned},
        logging::{LogStore, store::Filter},
        sys,
    };

    /// Far longer than anything here takes: it only ends what would never end.
    const LIMIT: Duration = Duration::from_secs(60);

    /// It goes on for ever, and says so first.
    const ENDLESS: &str = "echo begun >&2; exec sleep 600";

    struct Site {
        dir: tempfile::TempDir,
        logs: LogStore,
        tests: LinkTests,
    }

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (gangs, records_dir) = (dir.path().join("gangs"), dir.path().join("workers"));
            fs::create_dir(&records_dir).unwrap();
            let logs = LogStore::default();
            let tests = LinkTests {
                running: JoinSet::new(),
                stop: CancellationToken::new(),
                log: Arc::new(logs.open("link-test", None)),
                gang_files: Files::open(gangs, None).unwrap(),
                records_dir,
                boot_id: Some("b1".to_owned()),
            };
            Self { dir, logs, tests }
        }

        fn begin(&mut self, script: &str) {
            self.tests.begin(planned(0), &launcher(self.dir.path(), script)).unwrap();
        }

        /// Names in its directories.
        fn on_disk(&self) -> Vec<String> {
            let names = |dir: &Path| {
                let entries = fs::read_dir(dir).unwrap();
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
            };
            [names(&self.dir.path().join("gangs")), names(&self.tests.records_dir)].concat()
        }

        /// The process that is on record.
        fn recorded(&self) -> u32 {
            let records = record::read_all(&self.tests.records_dir).unwrap();
            let [(_, Some(record))] = records.as_slice() else { panic!("{records:?}") };
            assert_eq!((record.job_id, record.boot_id.as_deref()), (link_test::NO_JOB, Some("b1")));
            record.pid
        }
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let waited = timeout(LIMIT, async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        });
        assert!(waited.await.is_ok(), "waited in vain: {what}");
    }

    #[tokio::test]
    async fn one_that_ends_by_itself_leaves_nothing() {
        let mut site = Site::new();
        site.begin("exit 0");
        let tested = timeout(LIMIT, site.tests.next()).await.unwrap().unwrap();
        assert_eq!((tested.request_id, tested.outcome()), (9, v1::LinkTestOutcome::NotMade));
        assert_eq!(site.on_disk(), [""; 0]);
        assert_eq!(site.tests.next().await, None, "it is told once");
    }

    #[tokio::test]
    async fn one_that_is_ended_is_not_answered_and_leaves_nothing() {
        let mut site = Site::new();
        site.begin(ENDLESS);
        assert_eq!(site.on_disk(), ["j0-e9-r1", "j0-e9-r1.json"]);
        let pid = site.recorded();
        site.tests.end("a test says so").await;
        assert_eq!(sys::process_start(pid), None, "its process is gone");
        assert_eq!(site.on_disk(), [""; 0]);
        assert_eq!(site.tests.next().await, None);
        // The next may begin at once, and under the same number.
        site.begin("exit 0");
        assert!(timeout(LIMIT, site.tests.next()).await.unwrap().is_some());
    }

    /// Its answer may wait already when the session breaks.
    #[tokio::test]
    async fn what_has_come_to_its_end_unheard_is_not_told_later() {
        let mut site = Site::new();
        site.begin("exit 0");
        let files = site.dir.path().join("gangs");
        until("it has ended", || fs::read_dir(&files).unwrap().count() == 0).await;
        site.tests.end("a test says so").await;
        assert_eq!(site.tests.next().await, None);
    }

    #[tokio::test]
    async fn one_whose_task_is_dropped_leaves_nothing_either() {
        let mut site = Site::new();
        site.begin(ENDLESS);
        let pid = site.recorded();
        site.tests.running.abort_all();
        assert_eq!(timeout(LIMIT, site.tests.next()).await.unwrap(), None);
        assert_eq!(site.on_disk(), [""; 0]);
        until("its process is gone", || sys::process_start(pid).is_none()).await;
    }

    #[tokio::test]
    async fn one_that_cannot_begin_leaves_nothing() {
        let mut site = Site::new();
        fs::remove_dir(&site.tests.records_dir).unwrap();
        let refused = site.tests.begin(planned(0), &launcher(site.dir.path(), ENDLESS)).unwrap_err();
        assert!(refused.starts_with("its process cannot be written down: "), "{refused}");
        assert_eq!(fs::read_dir(site.dir.path().join("gangs")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn all_write_the_same_log() {
        let mut site = Site::new();
        let ended_worker = site.logs.open("j7/e1/r0", Some(7));
        ended_worker.push("last words");
        drop(ended_worker);
        for _ in 0..40 {
            site.begin("echo tried >&2");
            assert!(timeout(LIMIT, site.tests.next()).await.unwrap().is_some());
        }
        let said =
            |filter| site.logs.tail(filter, 100).iter().map(|line| line.text.clone()).collect::<Vec<_>>();
        assert_eq!(said(Filter::Job(7)), ["last words"], "it was not pushed out");
        assert_eq!(said(Filter::Agent), vec!["tried"; 40]);
    }
}
