//! What the bytes in the store mean: envelopes, numbers, the records of finished rows.
//!
//! Every value stands in an envelope: one byte format version, CRC-32 (little endian) over the key and the payload, the
//! payload. The key is part of the sum, so that a value under the wrong key is noticed too.

use super::kv::VALUE_BYTES_MAX;

/// Version of the envelope and of every payload in it.
const VALUE_VERSION: u8 = 1;

/// Bytes an envelope adds.
pub(crate) const ENVELOPE_BYTES: usize = 5;

/// Why a value cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadValue;

/// Puts a payload into its envelope.
pub(crate) fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(ENVELOPE_BYTES + payload.len());
    value.push(VALUE_VERSION);
    value.extend_from_slice(&crc(key, payload).to_le_bytes());
    value.extend_from_slice(payload);
    value
}

/// Takes a payload out of its envelope.
pub(crate) fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], BadValue> {
    let (envelope, payload) = value.split_at_checked(ENVELOPE_BYTES).ok_or(BadValue)?;
    let sum = crc(key, payload).to_le_bytes();
    if envelope[0] == VALUE_VERSION && envelope[1..] == sum { Ok(payload) } else { Err(BadValue) }
}

fn crc(key: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize()
}

/// Keys: a letter for the kind, then numbers in big endian so that they sort.
pub(crate) mod key {
    use crate::model::{JobId, NodeId, RowIx};

    /// The format version of the whole ledger. Written last when a ledger is made or rebuilt: its absence means that
    /// this was never finished.
    pub(crate) const FORMAT: &[u8] = b"F";
    /// The highest job number ever given out.
    pub(crate) const LAST_JOB: &[u8] = b"L";
    /// No event has a number above this one.
    pub(crate) const EVENT_CEILING: &[u8] = b"E";
    pub(crate) const JOBS: &[u8] = b"j";
    pub(crate) const NODES: &[u8] = b"n";
    pub(crate) const MODELS: &[u8] = b"m";
    pub(crate) const INCIDENTS: &[u8] = b"i";
    pub(crate) const ROWS: &[u8] = b"r";
    pub(crate) const CHECKPOINTS: &[u8] = b"c";
    pub(crate) const EVENTS: &[u8] = b"e";

    /// Prefix of a job's parts.
    pub(crate) fn job(job: JobId) -> Vec<u8> {
        numbered(JOBS, job.0)
    }

    pub(crate) fn node(node: &NodeId) -> Vec<u8> {
        [NODES, node.as_str().as_bytes()].concat()
    }

    /// By the fingerprint of its files.
    pub(crate) fn model(fingerprint: &str) -> Vec<u8> {
        [MODELS, fingerprint.as_bytes()].concat()
    }

    /// An incident.
    pub(crate) fn incident(id: u64) -> Vec<u8> {
        numbered(INCIDENTS, id)
    }

    /// Prefix of a job's row records.
    pub(crate) fn rows(job: JobId) -> Vec<u8> {
        numbered(ROWS, job.0)
    }

    /// A job's `index`-th row record.
    pub(crate) fn row_record(job: JobId, index: u64) -> Vec<u8> {
        let mut key = rows(job);
        key.extend_from_slice(&index.to_be_bytes());
        key
    }

    /// Which half of a checkpoint.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum Stream {
        Tokens = 0,
        Logprobs = 1,
    }

    /// Prefix of the parts of one half of a row's checkpoint.
    pub(crate) fn checkpoint(job: JobId, row: RowIx, stream: Stream) -> Vec<u8> {
        let mut key = numbered(CHECKPOINTS, job.0);
        key.extend_from_slice(&row.0.to_be_bytes());
        key.push(stream as u8);
        key
    }

    pub(crate) fn event(seq: u64) -> Vec<u8> {
        numbered(EVENTS, seq)
    }

    fn numbered(kind: &[u8], number: u64) -> Vec<u8> {
        let mut key = Vec::with_capacity(24);
        key.extend_from_slice(kind);
        key.extend_from_slice(&number.to_be_bytes());
        key
    }

    /// The number after the letter of the kind, and what follows it.
    pub(crate) fn parse_number(key: &[u8]) -> Option<(u64, &[u8])> {
        let (number, rest) = key.get(1..)?.split_first_chunk::<8>()?;
        Some((u64::from_be_bytes(*number), rest))
    }
}

/// A finished row as the ledger remembers it. Where its line is follows from the lines before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RowEntry {
    pub(crate) row: u32,
    /// 200: its line is in the results, otherwise in the errors.
    pub(crate) status_code: u16,
    /// Bytes of its line with the line break.
    pub(crate) line_bytes: u32,
    /// CRC-32 of its line with the line break.
    pub(crate) line_crc: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    /// Answered by the job's fallback model.
    pub(crate) by_fallback: bool,
}

/// Beside the status: the row was answered by the fallback model.
const BY_FALLBACK: u32 = 1 << 16;

impl RowEntry {
    pub(crate) fn is_success(&self) -> bool {
        self.status_code == 200
    }
}

/// Rows recorded one after the other, and where their first lines begin.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RowRecord {
    pub(crate) results_start: u64,
    pub(crate) errors_start: u64,
    pub(crate) rows: Vec<RowEntry>,
}

/// Rows in a record at most: with every number at its longest (29 bytes) it still is below [`VALUE_BYTES_MAX`].
pub(crate) const RECORD_ROWS_MAX: usize = 200;

const _: () = assert!(RECORD_ROWS_MAX * 29 + 32 + ENVELOPE_BYTES <= VALUE_BYTES_MAX);

impl RowRecord {
    /// Where the lines after its last rows begin: in the results and in the errors.
    pub(crate) fn end(&self) -> (u64, u64) {
        self.rows.iter().fold((self.results_start, self.errors_start), |(results, errors), row| {
            let bytes = u64::from(row.line_bytes);
            if row.is_success() { (results + bytes, errors) } else { (results, errors + bytes) }
        })
    }

    /// A typical row takes 14 bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24 + self.rows.len() * 16);
        bytes.extend_from_slice(&self.results_start.to_le_bytes());
        bytes.extend_from_slice(&self.errors_start.to_le_bytes());
        put_varint(&mut bytes, self.rows.len() as u64);
        for row in &self.rows {
            put_varint(&mut bytes, u64::from(row.row));
            let flag = if row.by_fallback { BY_FALLBACK } else { 0 };
            put_varint(&mut bytes, u64::from(u32::from(row.status_code) | flag));
            put_varint(&mut bytes, u64::from(row.line_bytes));
            bytes.extend_from_slice(&row.line_crc.to_le_bytes());
            put_varint(&mut bytes, u64::from(row.prompt_tokens));
            put_varint(&mut bytes, u64::from(row.completion_tokens));
        }
        bytes
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, BadValue> {
        let input = &mut bytes;
        let results_start = u64::from_le_bytes(take(input)?);
        let errors_start = u64::from_le_bytes(take(input)?);
        let count = take_varint(input)?;
        if count > RECORD_ROWS_MAX as u64 {
            return Err(BadValue);
        }
        let mut rows = Vec::with_capacity(RECORD_ROWS_MAX.min(count as usize));
        for _ in 0..count {
            let row = take_narrow(input)?;
            let status: u32 = take_narrow(input)?;
            rows.push(RowEntry {
                row,
                status_code: u16::try_from(status & !BY_FALLBACK).map_err(|_| BadValue)?,
                by_fallback: status & BY_FALLBACK != 0,
                line_bytes: take_narrow(input)?,
                line_crc: u32::from_le_bytes(take(input)?),
                prompt_tokens: take_narrow(input)?,
                completion_tokens: take_narrow(input)?,
            });
        }
        if input.is_empty() { Ok(Self { results_start, errors_start, rows }) } else { Err(BadValue) }
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], BadValue> {
    let (taken, rest) = input.split_first_chunk::<N>().ok_or(BadValue)?;
    *input = rest;
    Ok(*taken)
}

fn take_varint(input: &mut &[u8]) -> Result<u64, BadValue> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let [byte] = take(input)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(BadValue)
}

fn take_narrow<T: TryFrom<u64>>(input: &mut &[u8]) -> Result<T, BadValue> {
    take_varint(input)?.try_into().map_err(|_| BadValue)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = RowEntry> {
        (any::<u32>(), any::<u16>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<bool>())
            .prop_map(
                |(row, status_code, line_bytes, line_crc, prompt_tokens, completion_tokens, by_fallback)| {
                    RowEntry {
                        row,
                        status_code,
                        line_bytes,
                        line_crc,
                        prompt_tokens,
                        completion_tokens,
                        by_fallback,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were(
            results_start in any::<u64>(),
            errors_start in any::<u64>(),
            rows in prop::collection::vec(entry(), 0..=RECORD_ROWS_MAX),
        ) {
            let record = RowRecord { results_start, errors_start, rows };
            let bytes = record.encode();
            prop_assert!(bytes.len() + ENVELOPE_BYTES <= VALUE_BYTES_MAX);
            prop_assert_eq!(RowRecord::decode(&bytes), Ok(record));
        }

        #[test]
        fn rubbish_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RowRecord::decode(&bytes);
            prop_assert!(unseal(b"key", &bytes).is_err());
        }

        #[test]
        fn a_changed_bit_or_another_key_is_noticed(payload in prop::collection::vec(any::<u8>(), 0..50), bit in any::<usize>()) {
            let mut value = seal(b"key", &payload);
            prop_assert_eq!(unseal(b"key", &value), Ok(payload.as_slice()));
            prop_assert_eq!(unseal(b"kez", &value), Err(BadValue));
            let bit = bit % (value.len() * 8);
            value[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(unseal(b"key", &value), Err(BadValue));
        }
    }

    #[test]
    fn keys_sort_as_their_numbers_do() {
        use crate::model::JobId;
        assert!(key::row_record(JobId(1), 255) < key::row_record(JobId(1), 256));
        assert!(key::row_record(JobId(1), u64::MAX) < key::row_record(JobId(2), 0));
        assert_eq!(
            key::parse_number(&key::row_record(JobId(7), 3)),
            Some((7, &[0, 0, 0, 0, 0, 0, 0, 3][..]))
        );
        assert_eq!(key::parse_number(b"j"), None);
    }
}
