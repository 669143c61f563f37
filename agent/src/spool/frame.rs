//! A record on disk: magic, length, CRC-32 of length and payload, payload.
//!
//! The magic lets a reader find the next record behind damage; the CRC makes sure that it is one.

/// `NSr1`.
const MAGIC: [u8; 4] = *b"NSr1";

/// Before the payload.
pub const HEADER_BYTES: usize = 12;

/// The largest payload: a message to the controller is no larger, and a worker's answer is cut off well below it.
pub const MAX_PAYLOAD_BYTES: usize = nightshift_proto::MAX_MESSAGE_BYTES;

/// What stands at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// A record: its payload.
    Record(&'a [u8]),
    /// The bytes end before a record does.
    Short,
    /// No record.
    Damaged,
}

/// Appends a record.
pub fn put(payload: &[u8], to: &mut Vec<u8>) {
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    to.extend_from_slice(&MAGIC);
    to.extend_from_slice(&len);
    to.extend_from_slice(&crc(len, payload).to_le_bytes());
    to.extend_from_slice(payload);
}

/// Reads the record at the beginning of `bytes`.
#[must_use]
pub fn get(bytes: &[u8]) -> Found<'_> {
    let Some(len) = payload_len(bytes) else {
        let so_far = bytes.len().min(MAGIC.len());
        return if bytes.len() < HEADER_BYTES && bytes[..so_far] == MAGIC[..so_far] {
            Found::Short
        } else {
            Found::Damaged
        };
    };
    let Some(payload) = bytes.get(HEADER_BYTES..HEADER_BYTES + len) else { return Found::Short };
    let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    if crc(word(4), payload) == u32::from_le_bytes(word(8)) { Found::Record(payload) } else { Found::Damaged }
}

/// The payload's length, if a whole and sensible header is at the beginning of `bytes`.
#[must_use]
pub fn payload_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..HEADER_BYTES)?;
    let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
    (header[..4] == MAGIC && len <= MAX_PAYLOAD_BYTES).then_some(len)
}

/// Where the next whole record begins, at `from` or behind.
#[must_use]
pub fn find(bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len().saturating_sub(HEADER_BYTES))
        .find(|at| bytes[*at] == MAGIC[0] && matches!(get(&bytes[*at..]), Found::Record(_)))
}

fn crc(len: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_comes_back_and_any_cut_is_short(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut bytes = Vec::new();
            put(&payload, &mut bytes);
            for cut in 0..bytes.len() {
                prop_assert_eq!(get(&bytes[..cut]), Found::Short);
            }
            prop_assert_eq!(get(&bytes), Found::Record(&payload[..]));
        }

        #[test]
        fn a_flipped_bit_is_seen(payload in proptest::collection::vec(any::<u8>(), 0..50), bit in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            put(&payload, &mut bytes);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(get(&bytes), Found::Record(_)));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), from in 0..80_usize) {
            let _ = (get(&bytes), find(&bytes, from));
        }
    }

    #[test]
    fn the_next_record_behind_damage_is_found() {
        let mut bytes = b"rubbishNSr1rubbish".to_vec();
        let at = bytes.len();
        put(b"payload", &mut bytes);
        assert_eq!(find(&bytes, 0), Some(at));
        assert_eq!(find(&bytes, at + 1), None);
    }
}
