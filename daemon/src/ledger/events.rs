//! Events: numbered, bounded in number, never numbered twice.

use std::ops::ControlFlow;

use super::{
    codec::{key, seal, unseal},
    core::{Core, EventFilter, Group},
    disk::Disk,
    error::Error,
    kv::{Batch, Kv, VALUE_BYTES_MAX},
};
use crate::model::{EventDraft, EventRecord, clipped};

/// Numbers are reserved so many at a time. Events are not flushed one by one; after a crash the numbers of those that
/// were lost must not come again, so numbering goes on above what was reserved.
const NUMBERS_RESERVED: u64 = 100;

/// Events removed with one append at most, so that a lowered bound does not make one huge batch.
const REMOVED_AT_ONCE_MAX: u64 = 256;

/// Which event numbers there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct EventLog {
    /// The oldest event kept is this one or a later one.
    pub(crate) first: u64,
    /// The number the next event gets.
    pub(crate) next: u64,
    /// Numbers up to this one are reserved.
    pub(crate) ceiling: u64,
}

impl EventLog {
    /// At an orderly end: the next start goes on without a gap.
    pub(crate) fn settle(&mut self, batch: &mut Batch) {
        if self.ceiling + 1 != self.next {
            self.ceiling = self.next - 1;
            put_ceiling(batch, self.ceiling);
        }
    }
}

pub(crate) fn put_ceiling(batch: &mut Batch, ceiling: u64) {
    batch.put(key::EVENT_CEILING.to_vec(), seal(key::EVENT_CEILING, &ceiling.to_le_bytes()));
}

impl<D: Disk, K: Kv> Core<D, K> {
    /// Numbers events and keeps them; the oldest go when there are too many.
    pub(crate) fn append_events(
        &mut self,
        drafts: Vec<EventDraft>,
        unix_ms: u64,
        group: &mut Group,
    ) -> Result<Vec<EventRecord>, Error> {
        self.check_room_for_record()?;
        let log = &mut self.events;
        let records: Vec<_> = drafts
            .into_iter()
            .zip(log.next..)
            .map(|(event, seq)| {
                let (record, value) = fitting(EventRecord { seq, unix_ms, event });
                group.batch.put(key::event(seq), value);
                record
            })
            .collect();
        log.next += records.len() as u64;
        if log.next > log.ceiling + 1 {
            log.ceiling = log.next + NUMBERS_RESERVED;
            put_ceiling(&mut group.batch, log.ceiling);
            group.needs_flush = true;
        }
        let keep_from = log.next.saturating_sub(self.limits.max_events).max(log.first);
        let removed_to = keep_from.min(log.first + REMOVED_AT_ONCE_MAX);
        (log.first..removed_to).for_each(|seq| group.batch.remove(key::event(seq)));
        log.first = removed_to;
        Ok(records)
    }

    /// Events that pass the filter, oldest first.
    pub(crate) fn read_events(&mut self, filter: &EventFilter) -> Result<Vec<EventRecord>, Error> {
        let mut found = Vec::new();
        let scanned = self.kv.scan(key::EVENTS, true, &mut |key, value| {
            let Some(record) = read(key, value) else { return ControlFlow::Continue(()) };
            if found.len() >= filter.tail || filter.after_seq.is_some_and(|seq| record.seq <= seq) {
                return ControlFlow::Break(());
            }
            let passes = filter.node.as_ref().is_none_or(|node| record.event.node.as_ref() == Some(node))
                && filter.job.is_none_or(|job| record.event.job == Some(job));
            if passes {
                found.push(record);
            }
            ControlFlow::Continue(())
        });
        scanned.map_err(|error| self.store_failed("read", error))?;
        found.reverse();
        Ok(found)
    }
}

fn read(key: &[u8], value: &[u8]) -> Option<EventRecord> {
    serde_json::from_slice(unseal(key, value).ok()?).ok()
}

/// The event in a form that fits into the store: too long a message loses its end.
fn fitting(mut record: EventRecord) -> (EventRecord, Vec<u8>) {
    let key = key::event(record.seq);
    loop {
        let value = seal(&key, &serde_json::to_vec(&record).unwrap_or_default());
        if value.len() <= VALUE_BYTES_MAX {
            return (record, value);
        }
        let event = &mut record.event;
        match event.message.len().max(event.kind.len()) {
            // Only a name nobody gives a node is left to be the reason.
            0..=8 => event.node = None,
            bytes if bytes == event.message.len() => halve(&mut event.message),
            _ => halve(&mut event.kind),
        }
    }
}

fn halve(text: &mut String) {
    let keep = clipped(text, text.len() / 2).len();
    text.truncate(keep);
    text.push('…');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Severity;

    #[test]
    fn an_event_that_is_too_long_loses_its_end_and_nothing_else() {
        let event = EventDraft {
            severity: Severity::Error,
            kind: "worker-exited".into(),
            node: Some("a".into()),
            job: None,
            message: "ä\u{1}".repeat(10_000),
        };
        let (record, value) = fitting(EventRecord { seq: 7, unix_ms: 1, event });
        assert!(value.len() <= VALUE_BYTES_MAX);
        assert!(record.event.message.starts_with("ä\u{1}ä") && record.event.message.ends_with('…'));
        assert_eq!(read(&key::event(7), &value), Some(record));

        let event = EventDraft {
            severity: Severity::Info,
            kind: "k".repeat(10_000),
            node: Some("n".repeat(10_000).as_str().into()),
            job: None,
            message: String::new(),
        };
        let (record, value) = fitting(EventRecord { seq: 8, unix_ms: 1, event });
        assert!(value.len() <= VALUE_BYTES_MAX && record.event.node.is_none());
    }
}
