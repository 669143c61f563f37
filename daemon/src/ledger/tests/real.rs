//! The same promises with sled, real files and real signals.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{finished, incident, job_record};
use crate::{
    intake::{Intake, Limits, Staged},
    ledger::{
        self, Batch, Core, Error, EventFilter, Handle, InputReader, Kv, Options, OsDisk, Replay, Request,
        SledKv, open,
    },
    model::{
        Checkpoint, EventDraft, JobId, JobRecord, JobState, LearnedModel, LinkKind, LinkRecord, NodeRecord,
        Quarantine, RowIx, Severity,
    },
};

fn options(dir: &Path) -> Options {
    Options { state_dir: dir.to_owned(), disk_reserve_bytes: 1 << 20, ..Options::default() }
}

fn stage(dir: &Path, rows_total: u32) -> Staged {
    let mut intake = Intake::begin(dir, Limits { disk_reserve_bytes: 1 << 20, ..Limits::default() }).unwrap();
    for row in 0..rows_total {
        let line = format!(
            "{{\"custom_id\":\"row-{row}\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{{\"prompt\":\"p {row}\"}}}}\n"
        );
        intake.push(line.as_bytes()).unwrap();
    }
    intake.finish().unwrap()
}

/// Answers in a job's files: row to the line it is in.
fn answers(dir: &Path, job: u64) -> BTreeMap<u32, String> {
    let mut found = BTreeMap::new();
    for file in ["results", "errors"] {
        let text = fs::read_to_string(dir.join(format!("jobs/j{job}/{file}.jsonl"))).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            let row: u32 = value["id"].as_str().unwrap().rsplit('_').next().unwrap().parse().unwrap();
            assert_eq!(value["custom_id"], format!("row-{row}"));
            assert_eq!(value["response"]["status_code"] == 200, file == "results");
            assert!(found.insert(row, line.to_owned()).is_none(), "row {row} has two answers");
        }
    }
    found
}

async fn closed(handle: &Handle) {
    handle.shutdown().await.unwrap();
}

type RealCore = Core<OsDisk, SledKv>;

fn real_core(dir: &Path) -> RealCore {
    let limits = ledger::Limits { disk_reserve_bytes: 1 << 20, max_events: 100 };
    Core::open(OsDisk::new(dir), SledKv::new(dir, 1 << 20), limits, 1_700_000_000_000).unwrap().0
}

fn done(core: &mut RealCore, request: Request) {
    core.run(vec![request], 1_700_000_000_000).remove(0).unwrap();
}

#[test]
fn no_file_of_a_job_that_is_over_stays_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut core = real_core(dir.path());
    for job in 1..=2 {
        let staged = stage(dir.path(), 10);
        let staging = staged.directory_name();
        done(&mut core, Request::CreateJob { staging, record: job_record(job, 10) });
        done(&mut core, Request::Commit((0..10).map(|row| finished(job, row, 200, 1)).collect()));
    }
    let of_both = core.disk.open_files();
    assert!(of_both >= 2 * 3, "input, index and results of each: {of_both}");
    let completed = JobRecord { state: JobState::Completed, ..job_record(1, 10) };
    done(&mut core, Request::PutJob(completed.clone()));
    let of_one = core.disk.open_files();
    assert!((3..=of_both / 2).contains(&of_one), "{of_one} of {of_both}");
    // A row that comes late is looked up and dropped, a record that comes late is taken.
    done(&mut core, Request::Commit(vec![finished(1, 3, 200, 2)]));
    done(&mut core, Request::PutJob(JobRecord { rows_requeued: 7, ..completed }));
    assert_eq!(core.disk.open_files(), of_one);
    core.close().unwrap();

    let core = real_core(dir.path());
    assert_eq!(core.disk.open_files(), 0, "what was read at start is closed");
    core.close().unwrap();
    let replay = reopened(dir.path());
    assert_eq!((replay.jobs[0].record.state, replay.jobs[0].record.rows_requeued), (JobState::Completed, 7));
    assert_eq!(answers(dir.path(), 1).len(), 10);
}

fn reopened(dir: &Path) -> Replay {
    let (handle, replay) = open(options(dir)).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(closed(&handle));
    replay
}

#[tokio::test]
async fn everything_put_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, replay) = open(options(dir.path())).unwrap();
    assert_eq!((replay.jobs.len(), replay.next_job), (0, JobId(1)));
    handle.create_job(stage(dir.path(), 50), job_record(1, 0)).await.unwrap();
    let reader = InputReader::open(&handle.job_dir(JobId(1)), 50).unwrap();
    assert!(reader.read(RowIx(49)).unwrap().ends_with(b"\"prompt\":\"p 49\"}}"));
    let commits = (0..40).map(|row| {
        let handle = handle.clone();
        let status = if row % 7 == 0 { 400 } else { 200 };
        tokio::spawn(async move { handle.commit(vec![finished(1, row, status, 5)]).await })
    });
    for commit in commits.collect::<Vec<_>>() {
        assert_eq!(commit.await.unwrap().unwrap().jobs[0].duplicates, 0);
    }
    let checkpoint =
        Checkpoint { tokens: (0..3_000).collect(), logprobs_json: b"[]".to_vec(), by_fallback: false };
    handle.put_checkpoints(JobId(1), vec![(RowIx(45), checkpoint.clone())]).await.unwrap();
    let node = NodeRecord {
        id: "a".into(),
        draining: true,
        last_seen_unix_ms: 3,
        boot_id: "b".into(),
        gpu_faults_unix_ms: vec![7],
        quarantine: Some(Quarantine { until_unix_ms: 9, reason: "GPU".into() }),
        links: vec![LinkRecord { tried_unix_ms: 5, ..LinkRecord::new("b".into(), LinkKind::Rdma) }],
        restarts: Vec::new(),
    };
    handle.put_node(node.clone()).await.unwrap();
    let learned =
        |number: u64| LearnedModel { updated_unix_ms: number, ..LearnedModel::new(&number.to_string()) };
    for number in 0..130 {
        handle.put_model(learned(number)).await.unwrap();
    }
    for id in 1..=502 {
        handle.put_incident(incident(id, 2, 20_000)).await.unwrap();
    }
    handle.put_incident(incident(502, 3, 0)).await.unwrap();
    let event = EventDraft {
        severity: Severity::Info,
        kind: "k".into(),
        node: None,
        job: Some(JobId(1)),
        message: "m".into(),
    };
    handle.append_events(vec![event.clone(); 2], 9).await.unwrap();
    let mut record = job_record(1, 50);
    record.state = JobState::Paused;
    handle.put_job(record.clone()).await.unwrap();
    closed(&handle).await;
    assert!(matches!(handle.put_job(record.clone()).await, Err(Error::Closed)));

    let (handle, replay) = open(options(dir.path())).unwrap();
    assert_eq!(replay.repairs, Vec::<String>::new());
    let job = &replay.jobs[0];
    assert_eq!((&job.record, job.done.len(), replay.next_job), (&record, 40, JobId(2)));
    assert_eq!((job.rows_succeeded, job.rows_failed), (34, 6));
    assert_eq!(job.results_bytes, fs::metadata(dir.path().join("jobs/j1/results.jsonl")).unwrap().len());
    assert_eq!(job.checkpoints.get(&RowIx(45)), Some(&checkpoint));
    assert_eq!(replay.nodes, [node]);
    let newest: Vec<LearnedModel> = (2..130).rev().map(learned).collect();
    assert_eq!(replay.models, newest, "the newest 128");
    let ids: Vec<u64> = replay.incidents.iter().map(|incident| incident.id).collect();
    assert_eq!(ids, (3..=502).collect::<Vec<_>>(), "the newest 500, the oldest first");
    assert_eq!(replay.incidents[499], incident(502, 3, 0), "as it stood last");
    let kept = replay.incidents[0].evidence.len();
    assert!((15..25).contains(&kept), "{kept} lines: as much of the evidence as there is room for");
    let events = handle.read_events(EventFilter::default()).await.unwrap();
    assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(answers(dir.path(), 1).len(), 40);
    assert!(handle.free_bytes().unwrap() > 0);
    closed(&handle).await;
}

#[tokio::test]
async fn a_submission_that_does_not_become_a_job_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, _) = open(options(dir.path())).unwrap();
    drop(stage(dir.path(), 5));
    handle.create_job(stage(dir.path(), 5), job_record(1, 5)).await.unwrap();
    let again = handle.create_job(stage(dir.path(), 5), job_record(1, 5)).await;
    assert!(matches!(again, Err(Error::JobExists { .. })));
    let names: Vec<_> =
        fs::read_dir(dir.path().join("jobs")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["j1"]);
    closed(&handle).await;
}

#[test]
fn a_second_controller_is_refused_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (_handle, _) = open(options(dir.path())).unwrap();
    let error = open(options(dir.path())).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot open the ledger in {}/ledger", dir.path().display()));
    assert!(
        !fs::read_dir(dir.path()).unwrap().any(|e| e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("broken"))
    );
}

/// A directory with job 1 of 1,000 rows, of which 900 are done.
fn with_rows() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (handle, _) = open(options(dir.path())).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        handle.create_job(stage(dir.path(), 1_000), job_record(1, 1_000)).await.unwrap();
        for group in 0..9 {
            let rows = (group * 100..group * 100 + 100).map(|row| finished(1, row, 200, 7)).collect();
            handle.commit(rows).await.unwrap();
        }
        closed(&handle).await;
    });
    dir
}

#[test]
fn an_unfinished_snapshot_is_removed() {
    let dir = with_rows();
    fs::write(dir.path().join("ledger/snap.00000000000FFFFF.generating"), b"torn").unwrap();
    let replay = reopened(dir.path());
    assert_eq!(
        replay.repairs,
        [
            "the ledger held snap.00000000000FFFFF.generating, an unfinished snapshot left by a crash: removed, nothing \
             is lost by it"
        ]
    );
    assert_eq!(replay.jobs[0].done.len(), 900);
}

#[test]
fn whatever_happens_to_the_files_of_the_store_no_answer_is_lost() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("deleted", |ledger| fs::remove_dir_all(ledger).unwrap()),
        ("emptied", |ledger| fs::write(ledger.join("db"), b"").unwrap()),
        ("cut short", |ledger| {
            let log = fs::OpenOptions::new().write(true).open(ledger.join("db")).unwrap();
            log.set_len(log.metadata().unwrap().len() / 3).unwrap();
        }),
        ("flipped", |ledger| {
            let mut log = fs::read(ledger.join("db")).unwrap();
            (0..log.len()).step_by(97).for_each(|at| log[at] ^= 0x10);
            fs::write(ledger.join("db"), log).unwrap();
        }),
        ("configuration flipped", |ledger| fs::write(ledger.join("conf"), b"not a configuration").unwrap()),
        ("snapshot damaged", |ledger| {
            for entry in fs::read_dir(ledger).unwrap().map(Result::unwrap) {
                if entry.file_name().to_string_lossy().starts_with("snap.") {
                    fs::write(entry.path(), b"short").unwrap();
                }
            }
        }),
    ];
    for (damage, apply) in damages {
        let dir = with_rows();
        reopened(dir.path());
        apply(&dir.path().join("ledger"));
        let replay = reopened(dir.path());
        assert_eq!(replay.jobs.len(), 1, "{damage}: {:?}", replay.repairs);
        assert_eq!(replay.jobs[0].done.len(), 900, "{damage}: {:?}", replay.repairs);
        assert_eq!(replay.next_job, JobId(2));
        assert_eq!(answers(dir.path(), 1).len(), 900);
        assert_eq!(reopened(dir.path()).repairs, Vec::<String>::new(), "{damage}");
    }
}

/// The pattern that locks sled up within seconds when segments change without a flush between them: see `sled_kv.rs`.
/// The more the machine has to do besides, the surer.
#[test]
#[ignore = "a minute of churn, to be run by hand in a release build"]
fn checkpoints_coming_and_going_do_not_lock_the_store_up() {
    let dir = tempfile::tempdir().unwrap();
    let (ended, end) = std::sync::mpsc::sync_channel(1);
    let path = dir.path().to_owned();
    std::thread::spawn(move || {
        let mut kv = SledKv::new(&path, 16 << 20);
        kv.open().unwrap();
        for night in 0_u64..150 {
            for (round, chunk) in (0..8_u8).flat_map(|round| (0..8).map(move |chunk| (round, chunk))) {
                let mut batch = Batch::default();
                for row in 0..16 {
                    let key = [b"c", (night * 128 + chunk * 16 + row).to_be_bytes().as_slice(), &[round / 4]]
                        .concat();
                    batch.put(key, vec![round; 1_000 * (usize::from(round) % 4 + 1)]);
                }
                kv.apply(batch).unwrap();
            }
            for row in 0..128 {
                let mut batch = Batch::default();
                for part in 0..2 {
                    batch.remove([b"c", (night * 128 + row).to_be_bytes().as_slice(), &[part]].concat());
                }
                batch.put([b"r", night.to_be_bytes().as_slice()].concat(), vec![7; row as usize * 15]);
                kv.apply(batch).unwrap();
                kv.flush().unwrap();
            }
            ended.send(false).unwrap();
        }
        ended.send(true).unwrap();
    });
    while !end.recv_timeout(Duration::from_secs(60)).expect("the store is locked up") {}
}

const CHILD_DIR: &str = "NIGHTSHIFT_TEST_LEDGER_DIR";

/// Commits rows of job 1 until it is killed, and says on standard output which ones were acknowledged.
#[test]
#[ignore = "started and killed by a_killed_process_loses_nothing_it_acknowledged"]
fn commits_until_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let dir = Path::new(&dir);
    let (handle, replay) = open(options(dir)).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        if replay.jobs.is_empty() {
            handle.create_job(stage(dir, 200_000), job_record(1, 0)).await.unwrap();
            writeln!(std::io::stdout(), "created").unwrap();
        }
        let mut next = replay.jobs.first().map_or(0, |job| job.done.len());
        let mut writers = Vec::new();
        // Rows still on their way when the process ended come again, as agents send them again.
        next = next.saturating_sub(500);
        for writer in 0..4_u32 {
            let handle = handle.clone();
            writers.push(tokio::spawn(async move {
                for group in 0.. {
                    let first = next + (group * 4 + writer) * 9;
                    let rows = (first..first + 9).filter(|row| *row < 200_000);
                    let rows: Vec<_> =
                        rows.map(|row| finished(1, row, if row % 5 == 0 { 500 } else { 200 }, 3)).collect();
                    handle
                        .put_checkpoints(JobId(1), vec![(RowIx(199_999), Checkpoint::default())])
                        .await
                        .unwrap();
                    handle.commit(rows).await.unwrap();
                    writeln!(std::io::stdout(), "acked {first}").unwrap();
                }
            }));
        }
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[test]
fn a_killed_process_loses_nothing_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut was_created = false;
    for round in 0_u64..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "ledger::tests::real::commits_until_killed"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        // The child dies after some progress, at a moment it does not choose.
        let wanted = acknowledged.len() + 20 + round as usize * 37;
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut note = |line: &str| {
            was_created |= line.ends_with("created");
            if let Some((_, first)) = line.split_once("acked ") {
                acknowledged.insert(first.parse::<u32>().unwrap(), ());
            }
            acknowledged.len()
        };
        for line in output.by_ref() {
            if note(&line.unwrap()) >= wanted {
                break;
            }
            assert!(Instant::now() < deadline, "the child makes no progress");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in output.map_while(Result::ok) {
            note(&line);
        }

        let replay = reopened(dir.path());
        assert!(was_created);
        let answers = answers(dir.path(), 1);
        assert_eq!(answers.len() as u32, replay.jobs[0].done.len());
        for first in acknowledged.keys() {
            for row in (*first..first + 9).filter(|row| *row < 200_000) {
                assert!(answers.contains_key(&row), "round {round}: the acknowledged row {row} is gone");
                assert!(replay.jobs[0].done.contains(RowIx(row)));
            }
        }
        assert_eq!(reopened(dir.path()).repairs, Vec::<String>::new());
    }
}
