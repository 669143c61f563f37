//! Checkpoints of unfinished rows: put, bounded, read back.

use std::{collections::BTreeMap, ops::ControlFlow};

use super::{
    codec::key::{self, Stream},
    core::{Core, Group},
    disk::Disk,
    error::Error,
    job::{Job, StoredCheckpoint, checkpoint_bytes},
    kv::{Batch, Kv},
    longvalue::{self, Joined, Joiner, Stored},
};
use crate::model::{Checkpoint, JobId, RowIx};

/// Bytes a row's checkpoint may take: half a million tokens with their share of logprobs. A longer one is not kept; the
/// one before it stays and is as good a place to go on from.
const CHECKPOINT_BYTES_MAX: usize = 4 << 20;

/// Bytes all checkpoints together may take: a thousand rows in flight with 8,000 tokens each. They are read into memory
/// at start, where 200 MB are allowed for everything.
const CHECKPOINTS_BYTES_MAX: usize = 32 << 20;

impl<D: Disk, K: Kv> Core<D, K> {
    /// Remembers how far rows are. What is over a bound is left out: the checkpoint before it stays.
    pub(crate) fn put_checkpoints(
        &mut self,
        id: JobId,
        checkpoints: &[(RowIx, Checkpoint)],
        group: &mut Group,
    ) -> Result<(), Error> {
        self.check_room("", 0, self.limits.disk_reserve_bytes)?;
        let mut total_bytes = self.checkpoint_bytes;
        let job = self.job_mut(id)?;
        let is_over = job.state.record.state.is_over();
        for (row, checkpoint) in checkpoints {
            if is_over || row.0 >= job.state.record.rows_total || job.done.contains(*row) {
                continue;
            }
            let streams = encode_checkpoint(checkpoint);
            let old = job.checkpoints.get(row).cloned().unwrap_or_default();
            let bytes = streams[0].len() + streams[1].len();
            let others_bytes = total_bytes - checkpoint_bytes(&old);
            if bytes > CHECKPOINT_BYTES_MAX || others_bytes + bytes > CHECKPOINTS_BYTES_MAX {
                tracing::debug!(job = %id, %row, bytes, "a checkpoint over the bound is not kept");
                continue;
            }
            total_bytes = others_bytes + bytes;
            job.checkpoints.insert(*row, put_checkpoint(&mut group.batch, id, *row, &streams, &old));
        }
        self.checkpoint_bytes = total_bytes;
        Ok(())
    }

    /// Reads all checkpoints. Those of rows that wait for an answer are kept, the others go.
    pub(crate) fn load_checkpoints(
        &mut self,
        batch: &mut Batch,
    ) -> Result<Vec<(JobId, RowIx, Checkpoint)>, Error> {
        let mut joiner = Joiner::default();
        let mut loader = Loader { jobs: &mut self.jobs, batch, tokens: None, loaded: Vec::new(), bytes: 0 };
        let scanned = self.kv.scan(key::CHECKPOINTS, false, &mut |key, value| {
            if let Some(joined) = joiner.push(key, value) {
                loader.take(joined);
            }
            ControlFlow::Continue(())
        });
        if let Some(joined) = joiner.finish() {
            loader.take(joined);
        }
        loader.pair(None);
        let (loaded, bytes) = (loader.loaded, loader.bytes);
        self.checkpoint_bytes = bytes;
        scanned.map_err(|error| self.store_failed("read", error))?;
        Ok(loaded)
    }
}

/// Pairs the halves of checkpoints as a scan brings them.
struct Loader<'a> {
    jobs: &'a mut BTreeMap<JobId, Job>,
    batch: &'a mut Batch,
    tokens: Option<(JobId, RowIx, Joined)>,
    loaded: Vec<(JobId, RowIx, Checkpoint)>,
    bytes: usize,
}

impl Loader<'_> {
    fn take(&mut self, joined: Joined) {
        match parse_key(&joined.prefix) {
            Some((job, row, Stream::Tokens)) => {
                self.pair(None);
                self.tokens = Some((job, row, joined));
            }
            Some((job, row, Stream::Logprobs)) => {
                if self.tokens.as_ref().is_none_or(|(of_job, of_row, _)| (*of_job, *of_row) != (job, row)) {
                    self.pair(None);
                    longvalue::remove(self.batch, &joined.prefix, &joined.stored);
                } else {
                    self.pair(Some(joined));
                }
            }
            None => longvalue::remove(self.batch, &joined.prefix, &joined.stored),
        }
    }

    /// The tokens seen last have these logprobs.
    fn pair(&mut self, logprobs: Option<Joined>) {
        let Some((id, row, tokens)) = self.tokens.take() else { return };
        let (logprobs_json, logprobs_stored) = match logprobs {
            Some(joined) => (joined.payload, joined.stored),
            None => (Ok(Vec::new()), Stored::default()),
        };
        let stored = [tokens.stored, logprobs_stored];
        let checkpoint = match (tokens.payload, logprobs_json) {
            (Ok(tokens), Ok(logprobs)) => decode_checkpoint(&tokens, logprobs),
            _ => None,
        };
        let wanted = self.jobs.get_mut(&id).filter(|job| {
            let record = &job.state.record;
            !record.state.is_over() && row.0 < record.rows_total && !job.done.contains(row)
        });
        if let (Some(job), Some(checkpoint)) = (wanted, checkpoint) {
            self.bytes += checkpoint_bytes(&stored);
            job.checkpoints.insert(row, stored);
            self.loaded.push((id, row, checkpoint));
        } else {
            longvalue::remove(self.batch, &tokens.prefix, &stored[0]);
            longvalue::remove(self.batch, &key::checkpoint(id, row, Stream::Logprobs), &stored[1]);
        }
    }
}

fn parse_key(prefix: &[u8]) -> Option<(JobId, RowIx, Stream)> {
    let (job, rest) = key::parse_number(prefix)?;
    let (row, stream) = rest.split_first_chunk::<4>()?;
    let stream = match stream {
        [0] => Stream::Tokens,
        [1] => Stream::Logprobs,
        _ => return None,
    };
    Some((JobId(job), RowIx(u32::from_be_bytes(*row)), stream))
}

fn put_checkpoint(
    batch: &mut Batch,
    job: JobId,
    row: RowIx,
    streams: &[Vec<u8>; 2],
    old: &StoredCheckpoint,
) -> StoredCheckpoint {
    let [tokens, logprobs] = [Stream::Tokens, Stream::Logprobs].map(|s| key::checkpoint(job, row, s));
    let no_logprobs = streams[1].is_empty() && old[1] == Stored::default();
    [
        longvalue::put(batch, &tokens, &streams[0], &old[0]),
        if no_logprobs { Stored::default() } else { longvalue::put(batch, &logprobs, &streams[1], &old[1]) },
    ]
}

/// Tokens (after the CRC-32 of the logprobs, so that the two halves are known to belong together; every bit of it turned
/// where the tokens are the fallback model's) and logprobs. Both only grow at their ends, so that little is written each time.
fn encode_checkpoint(checkpoint: &Checkpoint) -> [Vec<u8>; 2] {
    let mut tokens = Vec::with_capacity(4 + checkpoint.tokens.len() * 4);
    let sum = crc32fast::hash(&checkpoint.logprobs_json);
    tokens.extend_from_slice(&if checkpoint.by_fallback { !sum } else { sum }.to_le_bytes());
    checkpoint.tokens.iter().for_each(|token| tokens.extend_from_slice(&token.to_le_bytes()));
    [tokens, checkpoint.logprobs_json.clone()]
}

/// The checkpoint of two stored halves, when they belong together.
fn decode_checkpoint(tokens: &[u8], logprobs: Vec<u8>) -> Option<Checkpoint> {
    let (sum, tokens) = tokens.split_first_chunk::<4>()?;
    let (tokens, []) = tokens.as_chunks::<4>() else { return None };
    let (found, expected) = (u32::from_le_bytes(*sum), crc32fast::hash(&logprobs));
    (found == expected || found == !expected).then(|| Checkpoint {
        tokens: tokens.iter().map(|token| u32::from_le_bytes(*token)).collect(),
        logprobs_json: logprobs,
        by_fallback: found == !expected,
    })
}
