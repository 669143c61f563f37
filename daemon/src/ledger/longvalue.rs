//! Values longer than the store takes, cut into parts.
//!
//! Part 0 holds the length and the CRC-32 of the whole; parts 1… hold the bytes, [`PART_BYTES`] each. A value that only
//! grows at its end — a checkpoint — is put again by writing its last part and part 0: parts that stayed the same are
//! not written.

use super::{
    codec::{BadValue, seal, unseal},
    kv::Batch,
};

/// Bytes in a part. Smaller parts cost more keys, larger ones more rewriting; it must be below
/// [`VALUE_BYTES_MAX`](super::kv::VALUE_BYTES_MAX).
const PART_BYTES: usize = 4096;

/// What is stored of a long value: enough to know which parts must be written again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Stored {
    part_sums: Vec<u32>,
    pub(crate) bytes: usize,
}

/// Puts `payload` below `prefix`, where `old` is now.
pub(crate) fn put(batch: &mut Batch, prefix: &[u8], payload: &[u8], old: &Stored) -> Stored {
    let mut header = (payload.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    put_part(batch, prefix, 0, &header);
    let mut part_sums = Vec::with_capacity(payload.len().div_ceil(PART_BYTES));
    for (index, part) in payload.chunks(PART_BYTES).enumerate() {
        // The length stands for itself: a sum over fewer bytes may be equal by chance only.
        let sum = crc32fast::hash(part) ^ part.len() as u32;
        if old.part_sums.get(index) != Some(&sum) {
            put_part(batch, prefix, index + 1, part);
        }
        part_sums.push(sum);
    }
    for index in part_sums.len()..old.part_sums.len() {
        batch.remove(part_key(prefix, index + 1));
    }
    Stored { part_sums, bytes: payload.len() }
}

/// Removes what is stored below `prefix`.
pub(crate) fn remove(batch: &mut Batch, prefix: &[u8], old: &Stored) {
    for index in 0..=old.part_sums.len() {
        batch.remove(part_key(prefix, index));
    }
}

fn put_part(batch: &mut Batch, prefix: &[u8], index: usize, bytes: &[u8]) {
    let key = part_key(prefix, index);
    let value = seal(&key, bytes);
    batch.put(key, value);
}

fn part_key(prefix: &[u8], index: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(prefix.len() + 2);
    key.extend_from_slice(prefix);
    key.extend_from_slice(&u16::try_from(index).unwrap_or(u16::MAX).to_be_bytes());
    key
}

/// Puts a long value together from its parts, in the order of a scan.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    prefix: Vec<u8>,
    header: Option<(u64, u32)>,
    payload: Vec<u8>,
    part_sums: Vec<u32>,
    bad: bool,
}

/// A long value as it was found.
#[derive(Debug)]
pub(crate) struct Joined {
    /// The key without the part's number.
    pub(crate) prefix: Vec<u8>,
    /// The bytes, unless a part is missing or damaged.
    pub(crate) payload: Result<Vec<u8>, BadValue>,
    /// Which parts there are; for a bad value, as many as were seen.
    pub(crate) stored: Stored,
}

impl Joiner {
    /// Takes the next part; answers with the value before it when this part begins another one.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Option<Joined> {
        let (prefix, index) = key.split_at(key.len().saturating_sub(2));
        let finished = (self.prefix != prefix).then(|| self.finish()).flatten();
        if self.prefix.is_empty() {
            prefix.clone_into(&mut self.prefix);
        }
        let index = index.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        let expected = if self.header.is_some() || self.bad { self.part_sums.len() + 1 } else { 0 };
        match unseal(key, value) {
            Ok(part) if index == expected && index == 0 => match read_header(part) {
                Some(header) => self.header = Some(header),
                None => self.bad = true,
            },
            Ok(part) if index == expected => {
                self.part_sums.push(crc32fast::hash(part) ^ part.len() as u32);
                self.payload.extend_from_slice(part);
            }
            _ => {
                self.bad = true;
                // Every index seen has to be removed with the value.
                self.part_sums.resize(index.max(self.part_sums.len()), 0);
            }
        }
        finished
    }

    /// The last value, when there is one.
    pub(crate) fn finish(&mut self) -> Option<Joined> {
        let Self { prefix, header, payload, part_sums, bad } = std::mem::take(self);
        if prefix.is_empty() {
            return None;
        }
        let whole = !bad && header == Some((payload.len() as u64, crc32fast::hash(&payload)));
        let bytes = payload.len();
        Some(Joined {
            prefix,
            payload: if whole { Ok(payload) } else { Err(BadValue) },
            stored: Stored { part_sums, bytes },
        })
    }
}

fn read_header(part: &[u8]) -> Option<(u64, u32)> {
    let (bytes, rest) = part.split_first_chunk::<8>()?;
    let sum = rest.first_chunk::<4>().filter(|_| rest.len() == 4)?;
    Some((u64::from_le_bytes(*bytes), u32::from_le_bytes(*sum)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn apply(store: &mut BTreeMap<Vec<u8>, Vec<u8>>, batch: Batch) {
        for (key, value) in batch.writes {
            match value {
                Some(value) => store.insert(key, value),
                None => store.remove(&key),
            };
        }
    }

    fn read(store: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<Joined> {
        let mut joiner = Joiner::default();
        let mut found: Vec<_> = store.iter().filter_map(|(key, value)| joiner.push(key, value)).collect();
        found.extend(joiner.finish());
        found
    }

    #[test]
    fn a_value_that_grows_is_written_at_its_end_only() {
        let mut batch = Batch::default();
        let first = put(&mut batch, b"k", &[7; 3 * PART_BYTES + 10], &Stored::default());
        assert_eq!(batch.writes.len(), 5, "a header and four parts");
        let mut batch = Batch::default();
        put(&mut batch, b"k", &[7; 3 * PART_BYTES + 20], &first);
        assert_eq!(batch.writes.len(), 2, "the header and the last part");
    }

    proptest! {
        #[test]
        fn values_come_back_whatever_was_there_before(
            lengths in prop::collection::vec(0_usize..3 * PART_BYTES, 1..6),
            other in 0_usize..PART_BYTES,
        ) {
            let mut store = BTreeMap::new();
            let mut stored = [Stored::default(), Stored::default()];
            for (n, length) in lengths.iter().enumerate() {
                let mut batch = Batch::default();
                stored[0] = put(&mut batch, b"k1", &vec![n as u8; *length], &stored[0]);
                stored[1] = put(&mut batch, b"k2", &vec![n as u8; other], &stored[1]);
                apply(&mut store, batch);
                let found = read(&store);
                prop_assert_eq!(found.len(), 2);
                prop_assert_eq!(found[0].payload.as_ref(), Ok(&vec![n as u8; *length]));
                prop_assert_eq!(&found[0].stored, &stored[0]);
                prop_assert_eq!(found[1].payload.as_ref(), Ok(&vec![n as u8; other]));
            }
            let mut batch = Batch::default();
            remove(&mut batch, b"k1", &stored[0]);
            remove(&mut batch, b"k2", &stored[1]);
            apply(&mut store, batch);
            prop_assert!(store.is_empty());
        }

        #[test]
        fn a_missing_part_is_noticed_and_the_rest_can_be_removed(length in 1_usize..4 * PART_BYTES, missing in any::<usize>()) {
            let mut store = BTreeMap::new();
            let mut batch = Batch::default();
            put(&mut batch, b"k", &vec![5; length], &Stored::default());
            apply(&mut store, batch);
            let key = store.keys().nth(missing % store.len()).cloned().unwrap_or_default();
            store.remove(&key);
            let found = read(&store);
            prop_assert_eq!(found[0].payload.as_ref(), Err(&BadValue));
            let mut batch = Batch::default();
            remove(&mut batch, &found[0].prefix, &found[0].stored);
            apply(&mut store, batch);
            prop_assert!(store.is_empty());
        }
    }
}
