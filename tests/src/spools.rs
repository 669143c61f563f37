//! The agents' spools as files: which rows their workers have finished, whatever the controller knows of it.
//!
//! A spool keeps acknowledged results until a segment is large enough to be given up, which the small jobs of tests do
//! not come to: at a job's end each row that was generated is there, and one that was generated twice is there twice.

use std::{collections::BTreeMap, fs, path::Path};

/// The numbers of the job's rows in each agent's spool, in the order of their results. `agents` is the directory with the
/// agents' state directories.
///
/// # Panics
/// When an agent has no spool.
#[must_use]
pub fn rows(agents: &Path, job_id: u64) -> BTreeMap<String, Vec<u64>> {
    let nodes = fs::read_dir(agents).expect("the agents have a directory").flatten();
    nodes
        .map(|node| {
            let name = node.file_name().to_string_lossy().into_owned();
            let spool = fs::read_dir(node.path().join("spool")).expect("an agent has a spool");
            let mut segments: Vec<_> = spool.flatten().map(|entry| entry.path()).collect();
            segments.retain(|path| path.extension().is_some_and(|end| end == "seg"));
            segments.sort();
            let segments = segments.iter().filter_map(|path| fs::read(path).ok());
            (name, segments.flat_map(|segment| rows_of(&segment, job_id)).collect())
        })
        .collect()
}

/// The numbers of the job's rows in results, of a spool or of a results file: a result's body begins with its id, which names
/// job and row.
#[must_use]
pub fn rows_of(segment: &[u8], job_id: u64) -> Vec<u64> {
    let text = String::from_utf8_lossy(segment);
    let starts = format!("cmpl-j{job_id}-");
    let numbers = text.split(&starts).skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        // The id is whole: a result that is being written has no quote yet.
        rest[end..].starts_with('"').then(|| rest[..end].parse().ok())?
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirs::TestDir;

    #[test]
    fn rows_are_found_between_other_bytes() {
        let dir = TestDir::new("spools");
        let spool = dir.sub("n1/spool");
        let first =
            b"\x0a\xff\x01{\"id\":\"chatcmpl-j1-17\",}\0\0{\"id\":\"cmpl-j12-1\"}{\"id\":\"cmpl-j1-3\"}"
                .as_slice();
        fs::write(spool.join("001.seg"), first).unwrap();
        fs::write(spool.join("002.seg"), b"{\"id\":\"chatcmpl-j1-17\"}{\"id\":\"chatcmpl-j1-1").unwrap();
        fs::write(spool.join("state.json"), "{}").unwrap();
        assert_eq!(rows(dir.path(), 1), BTreeMap::from([("n1".to_owned(), vec![17, 3, 17])]));
    }
}
