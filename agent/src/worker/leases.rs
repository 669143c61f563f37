//! The rows a worker holds, with their tokens as far as its checkpoints tell.
//!
//! A row is held from the moment the controller sends it until its answer is in the spool, or it is cancelled, or
//! handed back, or the worker has ended. Checkpoints are joined here, so that after a reconnection the controller can
//! have them whole.

use std::collections::BTreeMap;

use bytes::Bytes;
use nightshift_proto::v1;
use serde_json::value::RawValue;

use super::protocol::{CheckpointRow, RowOrder};

/// Log-probabilities can be a kilobyte a token. Past this much of them for one worker, rows stop being checkpointed
/// further, which costs only tokens generated again after a crash.
const MAX_LOGPROBS_BYTES: usize = 256 * 1024 * 1024;

/// What a token counts in a message: five bytes at most as a varint.
const TOKEN_BYTES: usize = 5;

/// How a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    /// Its answer is on its way into the spool.
    Answered,
    /// Handed back; only its last checkpoint still matters.
    Returned,
}

#[derive(Debug)]
struct Lease {
    attempt: u32,
    started: bool,
    state: State,
    tokens: Vec<u32>,
    logprobs: Option<Vec<Box<RawValue>>>,
    /// How many of `tokens` the controller has been sent in this session.
    sent: usize,
    /// No more checkpoints are joined: a bound was reached.
    frozen: bool,
}

/// What became of a row that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is new here.
    New,
    /// This attempt is here already.
    Known,
    /// It takes the place of an older attempt, which is to be cancelled.
    Newer,
}

/// All rows of one worker.
#[derive(Debug, Default)]
pub struct Leases {
    rows: BTreeMap<u32, Lease>,
    logprobs_bytes: usize,
}

impl Leases {
    /// Takes a row in. Tokens to resume from that do not fit their log-probabilities are left out, so that the row
    /// starts afresh rather than with half of its answer.
    pub fn take(&mut self, row: &v1::Row) -> Taken {
        let taken = match self.rows.get(&row.row) {
            Some(lease) if lease.state == State::Held && lease.attempt == row.attempt => return Taken::Known,
            Some(lease) if lease.state != State::Returned => Taken::Newer,
            _ => Taken::New,
        };
        self.forget(row.row);
        let logprobs: Option<Vec<Box<RawValue>>> = (!row.resume_logprobs_json.is_empty())
            .then(|| serde_json::from_slice(&row.resume_logprobs_json).unwrap_or_default());
        let fits = logprobs.as_ref().is_none_or(|entries| entries.len() == row.resume_tokens.len());
        let (tokens, logprobs) =
            if fits { (row.resume_tokens.clone(), logprobs) } else { (Vec::new(), None) };
        self.logprobs_bytes += size(logprobs.as_deref());
        let lease = Lease {
            attempt: row.attempt,
            started: false,
            state: State::Held,
            // The controller has these.
            sent: tokens.len(),
            tokens,
            logprobs,
            frozen: false,
        };
        self.rows.insert(row.row, lease);
        taken
    }

    /// What to tell the worker of a row taken in.
    #[must_use]
    pub fn order<'a>(&'a self, row: u32, request: &'a RawValue) -> Option<RowOrder<'a>> {
        let lease = self.rows.get(&row)?;
        Some(RowOrder {
            row,
            attempt: lease.attempt,
            request,
            tokens: &lease.tokens,
            logprobs: lease.logprobs.as_deref(),
        })
    }

    /// Gives rows up; returns those that were held.
    pub fn cancel(&mut self, rows: &[u32]) -> Vec<u32> {
        let held = |row: &&u32| self.rows.get(row).is_some_and(|lease| lease.state == State::Held);
        let held: Vec<u32> = rows.iter().filter(held).copied().collect();
        held.iter().for_each(|row| self.forget(*row));
        held
    }

    /// Generation of these rows has begun.
    pub fn start(&mut self, rows: &[u32]) {
        for row in rows {
            if let Some(lease) = self.rows.get_mut(row) {
                lease.started = true;
            }
        }
    }

    /// These rows are handed back.
    pub fn hand_back(&mut self, rows: &[u32]) {
        for row in rows {
            if let Some(lease) = self.rows.get_mut(row).filter(|lease| lease.state == State::Held) {
                lease.state = State::Returned;
            }
        }
    }

    /// Joins a checkpoint. One of a row or attempt that is not held is left aside: it crossed a cancellation.
    ///
    /// # Errors
    /// A sentence when it does not join what is here. The row stays as it was.
    pub fn join(&mut self, part: CheckpointRow) -> Result<(), String> {
        let Some(lease) = self.rows.get_mut(&part.row) else { return Ok(()) };
        if lease.attempt != part.attempt || lease.state != State::Held || lease.frozen {
            return Ok(());
        }
        let offset = part.offset as usize;
        if offset > lease.tokens.len() {
            return Err(format!(
                "a checkpoint of row {} begins at token {offset}, and only {} are known",
                part.row,
                lease.tokens.len()
            ));
        }
        let (before, added) = (size(lease.logprobs.as_deref()), size(part.logprobs.as_deref()));
        if added > 0 && self.logprobs_bytes + added > MAX_LOGPROBS_BYTES {
            lease.frozen = true;
            return Ok(());
        }
        match (&mut lease.logprobs, part.logprobs) {
            (Some(known), Some(new)) => {
                known.truncate(offset);
                known.extend(new);
            }
            (known @ None, Some(new)) if offset == 0 => *known = Some(new),
            (None, None) => {}
            // The worker leaves tokens without entries out of the answer, and so does this side.
            (_, None) if offset == 0 && part.tokens.is_empty() => lease.logprobs = None,
            _ => {
                return Err(format!("a checkpoint of row {} and its log-probabilities do not fit", part.row));
            }
        }
        // A whole checkpoint from 0 usually repeats what is known: only from the first difference on is it news.
        let same =
            lease.tokens[offset..].iter().zip(&part.tokens).take_while(|(old, new)| old == new).count();
        let shorter = offset + part.tokens.len() < lease.tokens.len();
        if same < part.tokens.len().min(lease.tokens.len() - offset) || shorter {
            lease.sent = lease.sent.min(offset + same);
        }
        lease.tokens.truncate(offset);
        lease.tokens.extend(part.tokens);
        let after = size(lease.logprobs.as_deref());
        self.logprobs_bytes = (self.logprobs_bytes + after).saturating_sub(before);
        Ok(())
    }

    /// An answer has come. Whether it is of a row and attempt held; it stays held until [`Self::spooled`].
    pub fn answer(&mut self, row: u32, attempt: u32) -> bool {
        match self.rows.get_mut(&row) {
            Some(lease) if lease.attempt == attempt && lease.state == State::Held => {
                lease.state = State::Answered;
                true
            }
            _ => false,
        }
    }

    /// The answer is in the spool: nothing more to keep.
    pub fn spooled(&mut self, row: u32, attempt: u32) {
        if self.rows.get(&row).is_some_and(|lease| lease.attempt == attempt && lease.state == State::Answered)
        {
            self.forget(row);
        }
    }

    /// The rows held now.
    #[must_use]
    pub fn held(&self) -> Vec<v1::HeldRow> {
        let held = |(row, lease): (&u32, &Lease)| {
            (lease.state != State::Returned).then(|| v1::HeldRow {
                row: *row,
                attempt: lease.attempt,
                tokens: wire_len(lease.tokens.len()),
                started: lease.started,
            })
        };
        self.rows.iter().filter_map(held).collect()
    }

    /// The rows being generated.
    #[must_use]
    pub fn started(&self) -> Vec<u32> {
        let started =
            |(row, lease): (&u32, &Lease)| (lease.state == State::Held && lease.started).then_some(*row);
        self.rows.iter().filter_map(started).collect()
    }

    /// Forgets what was sent: there is a new session.
    pub fn nothing_sent(&mut self) {
        self.rows.values_mut().for_each(|lease| lease.sent = 0);
    }

    /// Tokens the controller does not have, at most some `max_bytes` of them, which count as sent from here on.
    pub fn news(&mut self, max_bytes: usize) -> Vec<v1::RowCheckpoint> {
        let mut room = max_bytes;
        let mut parts = Vec::new();
        for (row, lease) in &mut self.rows {
            if lease.state == State::Answered || lease.sent >= lease.tokens.len() {
                continue;
            }
            if room == 0 {
                break;
            }
            let from = lease.sent;
            let mut end = from;
            while end < lease.tokens.len() && room > 0 {
                let entry = lease.logprobs.as_ref().and_then(|entries| entries.get(end));
                room = room.saturating_sub(TOKEN_BYTES + entry.map_or(0, |entry| entry.get().len() + 1));
                end += 1;
            }
            parts.push(v1::RowCheckpoint {
                row: *row,
                attempt: lease.attempt,
                offset: wire_len(from),
                tokens: lease.tokens[from..end].to_vec(),
                logprobs_json: lease
                    .logprobs
                    .as_ref()
                    .map(|entries| join_json(&entries[from..end]))
                    .unwrap_or_default(),
            });
            lease.sent = end;
        }
        parts
    }

    /// Whether [`Self::news`] would give any.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.rows.values().any(|lease| lease.state != State::Answered && lease.sent < lease.tokens.len())
    }

    fn forget(&mut self, row: u32) {
        if let Some(lease) = self.rows.remove(&row) {
            self.logprobs_bytes = self.logprobs_bytes.saturating_sub(size(lease.logprobs.as_deref()));
        }
    }
}

fn size(entries: Option<&[Box<RawValue>]>) -> usize {
    entries.unwrap_or_default().iter().map(|entry| entry.get().len()).sum()
}

fn wire_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The JSON array of these entries.
fn join_json(entries: &[Box<RawValue>]) -> Vec<u8> {
    let mut json = Vec::with_capacity(entries.iter().map(|entry| entry.get().len() + 1).sum::<usize>() + 2);
    json.push(b'[');
    for (n, entry) in entries.iter().enumerate() {
        if n > 0 {
            json.push(b',');
        }
        json.extend_from_slice(entry.get().as_bytes());
    }
    json.push(b']');
    json
}

/// A row's request, checked to be one line of JSON: what breaks the line protocol must not reach a worker.
///
/// # Errors
/// What is wrong with it.
pub fn check_request(request: &Bytes) -> Result<&RawValue, String> {
    if request.contains(&b'\n') {
        return Err("it is more than one line".to_owned());
    }
    serde_json::from_slice(request).map_err(|error| format!("it is not JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(row: u32, attempt: u32, resume: &[u32]) -> v1::Row {
        v1::Row { row, attempt, resume_tokens: resume.to_vec(), ..Default::default() }
    }

    fn part(row: u32, offset: u32, tokens: &[u32]) -> CheckpointRow {
        CheckpointRow { row, attempt: 1, offset, tokens: tokens.to_vec(), logprobs: None }
    }

    fn raw(texts: &[&str]) -> Vec<Box<RawValue>> {
        texts.iter().map(|text| RawValue::from_string((*text).to_owned()).unwrap()).collect()
    }

    fn sent(leases: &mut Leases) -> Vec<(u32, u32, Vec<u32>)> {
        leases.news(1000).into_iter().map(|part| (part.row, part.offset, part.tokens)).collect()
    }

    #[test]
    fn only_news_are_sent_and_all_of_it_in_a_new_session() {
        let mut leases = Leases::default();
        leases.take(&row(1, 1, &[7, 8]));
        assert_eq!(sent(&mut leases), [], "the controller has what it sent");
        leases.join(part(1, 2, &[9])).unwrap();
        assert_eq!(sent(&mut leases), [(1, 2, vec![9])]);
        leases.join(part(1, 0, &[7, 8, 9])).unwrap();
        assert_eq!(sent(&mut leases), [], "a whole checkpoint that repeats what is known is no news");
        leases.join(part(1, 0, &[7, 8, 9, 10])).unwrap();
        assert_eq!(sent(&mut leases), [(1, 3, vec![10])]);
        leases.nothing_sent();
        assert_eq!(sent(&mut leases), [(1, 0, vec![7, 8, 9, 10])]);
        assert_eq!(leases.held()[0].tokens, 4);
    }

    #[test]
    fn a_gap_is_an_error_and_changes_nothing() {
        let mut leases = Leases::default();
        leases.take(&row(1, 1, &[]));
        assert!(
            leases.join(part(1, 3, &[9])).unwrap_err().contains("begins at token 3, and only 0 are known")
        );
        assert_eq!(leases.held()[0].tokens, 0);
    }

    #[test]
    fn a_worker_that_takes_tokens_back_is_followed() {
        let mut leases = Leases::default();
        leases.take(&row(1, 1, &[1, 2, 3, 4]));
        leases.join(part(1, 2, &[30, 40, 50])).unwrap();
        assert_eq!(sent(&mut leases), [(1, 2, vec![30, 40, 50])]);
    }

    #[test]
    fn logprobs_stay_beside_their_tokens_however_they_are_cut() {
        let mut leases = Leases::default();
        leases.take(&v1::Row {
            row: 1,
            attempt: 1,
            resume_tokens: vec![7],
            resume_logprobs_json: b"[{\"a\":1}]".to_vec(),
            ..Default::default()
        });
        leases.join(CheckpointRow { logprobs: Some(raw(&["2", "[3]"])), ..part(1, 1, &[8, 9]) }).unwrap();
        leases.nothing_sent();
        let parts = [leases.news(7), leases.news(7), leases.news(1000)].concat();
        let cut: Vec<_> = parts
            .iter()
            .map(|part| {
                (part.offset, part.tokens.len(), String::from_utf8(part.logprobs_json.clone()).unwrap())
            })
            .collect();
        assert_eq!(cut, [(0, 1, "[{\"a\":1}]".into()), (1, 1, "[2]".into()), (2, 1, "[[3]]".into())]);
        assert!(leases.join(part(1, 3, &[10])).is_err(), "entries must not go missing");
    }

    #[test]
    fn resume_tokens_without_their_logprobs_are_left_out() {
        let mut leases = Leases::default();
        let torn = v1::Row { resume_logprobs_json: b"[1]".to_vec(), ..row(1, 1, &[7, 8]) };
        leases.take(&torn);
        assert_eq!(leases.held()[0].tokens, 0);
    }

    #[test]
    fn an_answer_is_held_until_it_is_spooled_and_counts_once() {
        let mut leases = Leases::default();
        leases.take(&row(1, 2, &[]));
        assert!(!leases.answer(1, 1), "of an older attempt");
        assert!(leases.answer(1, 2));
        assert!(!leases.answer(1, 2));
        assert_eq!(leases.held().len(), 1);
        leases.spooled(1, 2);
        assert_eq!(leases.held().len(), 0);
        assert!(!leases.answer(1, 2));
    }

    #[test]
    fn a_cancelled_row_is_gone_and_a_returned_one_keeps_its_tokens_only() {
        let mut leases = Leases::default();
        leases.take(&row(1, 1, &[]));
        leases.take(&row(2, 1, &[]));
        leases.join(part(2, 0, &[5])).unwrap();
        assert_eq!(leases.cancel(&[1, 9]), [1]);
        leases.hand_back(&[2]);
        assert_eq!(leases.held(), []);
        assert_eq!(sent(&mut leases), [(2, 0, vec![5])]);
    }

    #[test]
    fn attempts_are_told_apart() {
        let mut leases = Leases::default();
        assert_eq!(leases.take(&row(1, 1, &[])), Taken::New);
        assert_eq!(leases.take(&row(1, 1, &[])), Taken::Known);
        assert_eq!(leases.take(&row(1, 2, &[])), Taken::Newer);
        leases.join(part(1, 0, &[5])).unwrap();
        assert_eq!(leases.held()[0].tokens, 0, "a checkpoint of the old attempt crossed");
    }

    proptest! {
        #[test]
        fn what_was_sent_always_joins_to_what_is_known(
            parts in proptest::collection::vec((0..12_u32, proptest::collection::vec(0..3_u32, 0..6), 1..40_usize), 1..30)
        ) {
            let mut leases = Leases::default();
            leases.take(&row(1, 1, &[]));
            let mut controller: Vec<u32> = Vec::new();
            for (offset, tokens, room) in parts {
                let _ = leases.join(part(1, offset, &tokens));
                for part in leases.news(room) {
                    prop_assert!(part.offset as usize <= controller.len());
                    controller.truncate(part.offset as usize);
                    controller.extend(part.tokens);
                }
            }
            for part in leases.news(10_000) {
                controller.truncate(part.offset as usize);
                controller.extend(part.tokens);
            }
            let known = leases.held()[0].tokens as usize;
            prop_assert_eq!(&controller[..known.min(controller.len())], &leases.rows[&1].tokens[..]);
        }
    }
}
