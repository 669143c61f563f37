//! The spool's promises, against crashes at every point.

use std::{collections::BTreeMap, fs::OpenOptions};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn options(dir: &Path) -> Options {
    Options { dir: dir.to_owned(), max_bytes: 1 << 30, segment_bytes: 200, boot_id: Some("b1".into()) }
}

fn result(row: u32) -> RowResult {
    RowResult { row, status_code: 200, body: Bytes::from(format!("{{\"row\":{row}}}")), ..Default::default() }
}

fn append(store: &mut Store, rows: std::ops::Range<u32>) {
    store.append(&mut rows.map(result).collect::<Vec<_>>()).unwrap();
}

/// Number and row of everything that waits, read in small pieces.
fn waiting(store: &Store, after: u64) -> Vec<(u64, u32)> {
    let (mut cursor, mut all) = (Cursor::after(after), Vec::new());
    loop {
        let (results, next) = store.read(cursor, 3, 100).unwrap();
        if results.is_empty() {
            return all;
        }
        all.extend(results.iter().map(|result| (result.spool_seq, result.row)));
        cursor = next;
    }
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    segment::numbers(dir).unwrap().into_iter().map(|first| segment::path(dir, first)).collect()
}

#[test]
fn numbers_go_on_over_restarts_and_acknowledged_results_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    assert_eq!((store.last_seq(), store.waiting()), (0, 0));
    append(&mut store, 0..20);
    store.ack(15).unwrap();
    assert_eq!(store.waiting(), 5);
    store.close().unwrap();

    let mut store = Store::open(options(dir.path())).unwrap();
    assert_eq!(waiting(&store, 0), [(16, 15), (17, 16), (18, 17), (19, 18), (20, 19)]);
    append(&mut store, 20..21);
    assert_eq!(store.last_seq(), 21);
    store.ack(999).unwrap();
    assert_eq!((store.acked(), store.waiting()), (21, 0));
    store.close().unwrap();
    assert_eq!(Store::open(options(dir.path())).unwrap().last_seq(), 21);
}

#[test]
fn whole_segments_go_as_they_are_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    (0..40).for_each(|row| append(&mut store, row..row + 1));
    let before = segment_files(dir.path()).len();
    assert!(before > 3, "{before}");
    store.ack(39).unwrap();
    assert_eq!(segment_files(dir.path()).len(), 1);
    assert_eq!(waiting(&store, 0), [(40, 39)]);
}

#[test]
fn a_full_spool_refuses_and_an_acknowledgement_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(Options { max_bytes: 500, ..options(dir.path()) }).unwrap();
    let mut appended = 0;
    while store.append(&mut [result(appended)]).is_ok() {
        appended += 1;
    }
    assert!(store.bytes() <= 500 && appended > 5);
    assert!(matches!(store.append(&mut [result(99)]), Err(Error::Full { .. })));
    store.ack(u64::from(appended)).unwrap();
    store.append(&mut [result(99)]).unwrap();
    assert_eq!(waiting(&store, 0), [(u64::from(appended) + 1, 99)]);

    store.ack(u64::MAX).unwrap();
    let large = RowResult { body: vec![b' '; 10_000].into(), ..Default::default() };
    store.append(&mut [large]).expect("with nothing waiting even the largest has room");
}

#[test]
fn results_larger_than_a_read_come_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    let body = Bytes::from(vec![b'x'; usize::try_from(segment::READ_BYTES).unwrap() * 2]);
    store
        .append(&mut [result(1), RowResult { row: 2, body: body.clone(), ..Default::default() }, result(3)])
        .unwrap();
    let (first, cursor) = store.read(Cursor::after(0), 10, 100).unwrap();
    assert_eq!(first.len(), 1, "the limit in bytes");
    let (second, cursor) = store.read(cursor, 10, 100).unwrap();
    assert_eq!((second.len(), &second[0].body), (1, &body), "one at least, however large");
    assert_eq!(store.read(cursor, 10, 100).unwrap().0[0].row, 3);
}

#[test]
fn a_torn_end_is_cut_off_and_appending_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    append(&mut store, 0..3);
    drop(store);
    let newest = segment_files(dir.path()).pop().unwrap();
    let len = fs::metadata(&newest).unwrap().len();
    OpenOptions::new().write(true).open(&newest).unwrap().set_len(len - 3).unwrap();

    let mut store = Store::open(options(dir.path())).unwrap();
    assert_eq!(waiting(&store, 0), [(1, 0), (2, 1)]);
    append(&mut store, 7..8);
    assert_eq!(waiting(&store, 0), [(1, 0), (2, 1), (3, 7)]);
}

#[test]
fn damage_in_the_middle_costs_only_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(Options { segment_bytes: 1 << 20, ..options(dir.path()) }).unwrap();
    append(&mut store, 0..5);
    drop(store);
    let file = segment_files(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let second = frame::find(&bytes, 1).unwrap();
    bytes[second + 5] ^= 0xff;
    fs::write(&file, bytes).unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    assert_eq!(waiting(&store, 0), [(1, 0), (3, 2), (4, 3), (5, 4)]);
    assert_eq!(store.last_seq(), 5);
}

#[test]
fn a_power_cut_never_makes_a_number_come_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    append(&mut store, 0..10);
    drop(store);
    // The machine died before anything reached the disk but the state, which is synced.
    segment_files(dir.path()).iter().for_each(|file| fs::remove_file(file).unwrap());
    let store = Store::open(Options { boot_id: Some("b2".into()), ..options(dir.path()) }).unwrap();
    assert!(store.last_seq() >= 10, "{}", store.last_seq());
    assert_eq!(store.waiting(), 0);
}

#[test]
fn the_death_of_the_agent_alone_leaves_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    append(&mut store, 0..10);
    drop(store);
    assert_eq!(Store::open(options(dir.path())).unwrap().last_seq(), 10);
}

#[test]
fn a_lost_state_file_costs_only_the_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    append(&mut store, 0..3);
    store.ack(1).unwrap();
    store.close().unwrap();
    fs::write(dir.path().join("state.json"), "{").unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    assert_eq!(waiting(&store, 0).len(), 3);
}

#[test]
fn another_ledger_begins_with_an_empty_spool_and_the_next_number() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, place) = (dir.path().join("spool"), dir.path().join("aside"));
    fs::create_dir(&place).unwrap();
    let mut store = Store::open(options(&spool)).unwrap();
    append(&mut store, 0..3);
    store.ack(1).unwrap();
    store.set_aside(&place).unwrap();
    assert_eq!((store.waiting(), store.last_seq()), (0, 3));
    append(&mut store, 7..8);
    assert_eq!(waiting(&store, 0), [(4, 7)]);
    assert_eq!(waiting(&Store::open(options(&place.join("spool"))).unwrap(), 1), [(2, 1), (3, 2)]);

    store.ack(4).unwrap();
    fs::remove_dir_all(place.join("spool")).unwrap();
    store.set_aside(&place).unwrap();
    assert!(!place.join("spool").exists(), "nothing waited");
    drop(store);
    assert_eq!(Store::open(options(&spool)).unwrap().last_seq(), 4);
}

#[derive(Debug, Clone)]
enum Do {
    Append(u32),
    Ack(u64),
    Sync,
    /// The agent dies: the kernel keeps everything.
    Kill,
    /// The machine dies: of what was not synced only this many bytes of the newest segment are there.
    PowerCut(u64),
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Do>> {
    let step = prop_oneof![
        6 => (1..5_u32).prop_map(Do::Append),
        3 => (0..60_u64).prop_map(Do::Ack),
        2 => Just(Do::Sync),
        1 => Just(Do::Kill),
        1 => (0..300_u64).prop_map(Do::PowerCut),
        1 => Just(Do::Close),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    // Each step may wait for a disk.
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// After any history: what waits is what was appended, not acknowledged, and not lost unsynced in a power cut; in
    /// order; and no number ever stands for two results.
    #[test]
    fn nothing_is_lost_but_what_a_power_cut_may_take(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let mut boot = 1;
        let open = |boot: u32| Store::open(Options { boot_id: Some(format!("b{boot}")), ..options(dir.path()) }).unwrap();
        let mut store = open(boot);
        let mut rows = 0;
        let mut given: BTreeMap<u64, u32> = BTreeMap::new();
        let (mut live, mut synced) = (BTreeMap::new(), BTreeMap::new());
        let mut acked = 0;
        for step in steps {
            match step {
                Do::Append(count) => {
                    let mut batch: Vec<_> = (rows..rows + count).map(result).collect();
                    rows += count;
                    store.append(&mut batch).unwrap();
                    for result in batch {
                        prop_assert_eq!(given.insert(result.spool_seq, result.row), None, "a number came twice");
                        live.insert(result.spool_seq, result.row);
                    }
                }
                Do::Ack(back) => {
                    let through = store.last_seq().saturating_sub(back);
                    store.ack(through).unwrap();
                    acked = acked.max(through);
                }
                Do::Sync => {
                    store.sync().unwrap();
                    synced = live.clone();
                }
                Do::Kill => {
                    drop(store);
                    store = open(boot);
                }
                Do::Close => {
                    store.close().unwrap();
                    synced = live.clone();
                    store = open(boot);
                }
                Do::PowerCut(left) => {
                    let unsynced = store.unsynced.clone();
                    let synced_len = |first: u64| {
                        let bytes = fs::read(segment::path(dir.path(), first)).unwrap();
                        let mut at = 0;
                        while let Found::Record(payload) = frame::get(&bytes[at..]) {
                            if !synced.contains_key(&RowResult::decode(payload).unwrap().spool_seq) { break; }
                            at += frame::HEADER_BYTES + payload.len();
                        }
                        at as u64
                    };
                    let cuts: Vec<_> = unsynced.iter().map(|first| (*first, synced_len(*first) + left)).collect();
                    drop(store);
                    for (first, len) in cuts {
                        let file = OpenOptions::new().write(true).open(segment::path(dir.path(), first)).unwrap();
                        if len < file.metadata().unwrap().len() { file.set_len(len).unwrap(); }
                    }
                    boot += 1;
                    store = open(boot);
                    let there: BTreeMap<u64, u32> = waiting(&store, 0).into_iter().collect();
                    for (seq, row) in synced.iter().filter(|(seq, _)| **seq > acked) {
                        prop_assert_eq!(there.get(seq), Some(row), "a synced result is gone");
                    }
                    live.retain(|seq, _| *seq <= acked || there.contains_key(seq));
                    synced = live.clone();
                }
            }
            // After a restart some acknowledged results may be offered again; everything else must be exact.
            let there = waiting(&store, 0);
            prop_assert!(there.is_sorted());
            let owed: Vec<_> = live.iter().filter(|(seq, _)| **seq > acked).map(|(seq, row)| (*seq, *row)).collect();
            let offered: Vec<_> = there.iter().copied().filter(|(seq, _)| *seq > acked).collect();
            prop_assert_eq!(offered, owed);
            for (seq, row) in there {
                prop_assert_eq!(given.get(&seq), Some(&row));
            }
        }
    }
}
