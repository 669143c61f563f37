//! From a name to a report: finds the directory, reads configuration, index and headers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use nightshift_proto::v1::ModelReport;
use prost::Message as _;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    fold,
    header::{self, MAX_TENSORS, Tensor},
    hub::{Location, Place},
};
use crate::supervisor::start::outside;

/// Published configurations have a few kB; some list the bits of every layer.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// The index has a line a tensor: 90,000 make 8 MB.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// The largest published models have some 200.
const MAX_FILES: usize = 4_096;

/// Headers of all files together: half a million tensors at 500 bytes.
const MAX_HEADERS_BYTES: u64 = 256 << 20;

/// Much below what a message may have, since reports of several nodes may be under way at once.
const MAX_REPORT_BYTES: usize = 4 << 20;

/// Longest name that is repeated in a sentence.
const SHOWN_NAME_BYTES: usize = 200;

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Without a problem.
    pub report: ModelReport,
    /// Weight files.
    pub files: usize,
    /// Before experts were folded.
    pub tensors: usize,
}

/// Why there is no report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Problem {
    /// One sentence.
    pub sentence: String,
    /// A worker would fetch what is missing.
    pub not_here_yet: bool,
}

impl Problem {
    fn new(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), not_here_yet: false }
    }
}

/// The report on a model, or what is wrong with it. Blocks on the disk.
#[must_use]
pub fn inspect(name: &str, roots: &[PathBuf], place: &Place) -> ModelReport {
    match find(name, roots, place) {
        Ok(found) => found.report,
        Err(problem) => ModelReport {
            model: name.to_owned(),
            problem: problem.sentence,
            not_here_yet: problem.not_here_yet,
            ..ModelReport::default()
        },
    }
}

/// As [`inspect`], with what the report does not say.
///
/// # Errors
/// [`Problem`].
pub fn find(name: &str, roots: &[PathBuf], place: &Place) -> Result<Found, Problem> {
    if name.is_empty() {
        return Err(Problem::new("no model is named"));
    }
    if let Some(problem) = outside(Path::new(name), roots) {
        return Err(Problem::new(problem));
    }
    let from_hub = |problem: Missing| match problem {
        Missing::File(sentence) => Problem { sentence: not_whole(name, &sentence), not_here_yet: true },
        Missing::Sense(sentence) => Problem::new(sentence),
    };
    match place.locate(name) {
        Location::Nowhere(sentence) => Err(Problem::new(sentence)),
        Location::NotHere => Err(Problem {
            sentence: format!(
                "the model {name} is no directory on this node and not in its cache of the model hub yet"
            ),
            not_here_yet: true,
        }),
        Location::Directory(dir) => {
            may_be_read(name, &dir, place).and_then(|()| read(name, &dir).map_err(Problem::from))
        }
        Location::Cached(dir) => {
            may_be_read(name, &dir, place).and_then(|()| read(name, &dir).map_err(from_hub))
        }
    }
}

/// That this process can read a model does not mean that workers can.
fn may_be_read(name: &str, dir: &Path, place: &Place) -> Result<(), Problem> {
    place
        .closed(dir)
        .map_or(Ok(()), |why| Err(Problem::new(format!("workers cannot read the model {name}: {why}"))))
}

fn not_whole(name: &str, sentence: &str) -> String {
    format!("the model {name} is not whole yet in this node's cache of the model hub: {sentence}")
}

/// Why a directory gives no report: a file is not there, which a worker would fetch from the hub, or one is wrong.
#[derive(Debug)]
enum Missing {
    File(String),
    Sense(String),
}

impl From<Missing> for Problem {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::File(sentence) | Missing::Sense(sentence) => Self::new(sentence),
        }
    }
}

fn read(name: &str, dir: &Path) -> Result<Found, Missing> {
    let config_json = read_config(dir)?;
    let files = weight_files(dir)?;
    check_index(dir)?;
    if files.is_empty() {
        return Err(Missing::File(format!("the directory {} holds no model*.safetensors", dir.display())));
    }
    let tensors = read_headers(dir, &files)?;
    let report = ModelReport {
        model: name.to_owned(),
        directory: dir.display().to_string(),
        tensors: fold::fold(&tensors),
        fingerprint: fold::fingerprint(&tensors, &config_json),
        config_json,
        ..ModelReport::default()
    };
    let size = report.encoded_len();
    if size >= MAX_REPORT_BYTES {
        return Err(Missing::Sense(format!(
            "the report on {} would have {size} bytes, and less than {MAX_REPORT_BYTES} are sent",
            dir.display()
        )));
    }
    Ok(Found { report, files: files.len(), tensors: tensors.len() })
}

fn read_config(dir: &Path) -> Result<Vec<u8>, Missing> {
    let path = dir.join("config.json");
    let text = match read_bounded(&path, MAX_CONFIG_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let sentence = format!("the directory {} holds no config.json, so no model", dir.display());
            return Err(Missing::File(sentence));
        }
        read => {
            read.map_err(|error| Missing::Sense(format!("{} cannot be read: {error}", path.display())))?
        }
    };
    serde_json::from_slice::<Map<String, Value>>(&text)
        .map_err(|error| Missing::Sense(format!("{} is no JSON object: {error}", path.display())))?;
    Ok(text)
}

/// Names of the files that mlx-lm loads, in order.
fn weight_files(dir: &Path) -> Result<BTreeSet<String>, Missing> {
    let unreadable =
        |error: io::Error| Missing::Sense(format!("the directory {} cannot be read: {error}", dir.display()));
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("model") && name.ends_with(".safetensors") {
            files.insert(name.to_owned());
        }
        if files.len() > MAX_FILES {
            return Err(Missing::Sense(format!(
                "{} holds more than {MAX_FILES} weight files",
                dir.display()
            )));
        }
    }
    Ok(files)
}

/// Every file the index names must be there.
fn check_index(dir: &Path) -> Result<(), Missing> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }

    let path = dir.join("model.safetensors.index.json");
    let text = match read_bounded(&path, MAX_INDEX_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => {
            read.map_err(|error| Missing::Sense(format!("{} cannot be read: {error}", path.display())))?
        }
    };
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| Missing::Sense(format!("{} is no index of weights: {error}", path.display())))?;
    let named: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    let plain = |name: &str| !name.contains('/') && name != "..";
    let missing: Vec<&str> =
        named.iter().filter(|name| !plain(name) || !dir.join(name).exists()).copied().collect();
    let Some(first) = missing.first().map(|name| crate::util::clip(name, SHOWN_NAME_BYTES)) else {
        return Ok(());
    };
    Err(Missing::File(format!(
        "{first} is missing, and {} of {} weight files that {} names: was the download finished?",
        match missing.len() {
            1 => "no other".to_owned(),
            count => format!("{} more", count - 1),
        },
        named.len(),
        path.display()
    )))
}

fn read_headers(dir: &Path, files: &BTreeSet<String>) -> Result<BTreeMap<String, Tensor>, Missing> {
    let mut all = BTreeMap::new();
    let mut left_bytes = MAX_HEADERS_BYTES;
    for name in files {
        let read = open(&dir.join(name))
            .map_err(header::Error::from)
            .and_then(|(mut file, size)| header::read(&mut file, size, MAX_TENSORS - all.len(), left_bytes));
        let (tensors, used) = match read {
            Ok(read) => read,
            // A link of the hub's cache to what was never fetched.
            Err(header::Error::Read(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Missing::File(format!("{name} leads nowhere: was the download finished?")));
            }
            Err(error) => return Err(Missing::Sense(format!("{name} {error}"))),
        };
        left_bytes -= used;
        for (tensor, value) in tensors {
            if all.contains_key(&tensor) {
                let shown = crate::util::clip(&tensor, SHOWN_NAME_BYTES);
                return Err(Missing::Sense(format!(
                    "{name} holds {shown}, which another file of {} holds too",
                    dir.display()
                )));
            }
            all.insert(tensor, value);
        }
    }
    Ok(all)
}

/// A plain file and its size. Others, a pipe above all, could keep the reader for ever.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file"));
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let (file, size) = open(path)?;
    let mut text = Vec::new();
    // One byte more than allowed, because the file may grow meanwhile.
    let read = if size > limit { limit + 1 } else { file.take(limit + 1).read_to_end(&mut text)? as u64 };
    if read > limit {
        return Err(io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const CONFIG: &str = r#"{"model_type":"llama"}"#;

    /// A weight file whose tensors are a hole: (name, dtype, bytes a value, values).
    fn write(dir: &Path, name: &str, tensors: &[(&str, &str, u64, u64)]) {
        let (mut parts, mut offset) = (Vec::new(), 0);
        for (tensor, dtype, width, values) in tensors {
            let end = offset + width * values;
            parts.push(format!(
                r#""{tensor}":{{"dtype":"{dtype}","shape":[{values}],"data_offsets":[{offset},{end}]}}"#
            ));
            offset = end;
        }
        let header = format!("{{{}}}", parts.join(","));
        let mut file = File::create(dir.join(name)).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len(8 + header.len() as u64 + offset).unwrap();
    }

    fn model(dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("config.json"), CONFIG).unwrap();
        let terabyte = 1 << 39;
        write(dir, "model-00001-of-00002.safetensors", &[("model.embed_tokens.weight", "BF16", 2, terabyte)]);
        let two =
            [("model.layers.0.mlp.experts.0.w", "U8", 1, 5), ("model.layers.0.mlp.experts.1.w", "U8", 1, 6)];
        write(dir, "model-00002-of-00002.safetensors", &two);
        let map = r#"{"metadata":{},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
        fs::write(dir.join("model.safetensors.index.json"), map).unwrap();
        fs::write(dir.join("consolidated.safetensors"), "not looked at").unwrap();
    }

    fn here() -> Place {
        Place { base: "/".into(), ..Place::default() }
    }

    fn problem(dir: &Path) -> String {
        let report = inspect(dir.to_str().unwrap(), &[], &here());
        assert!(report.tensors.is_empty() && report.fingerprint.is_empty() && !report.not_here_yet);
        report.problem
    }

    #[test]
    fn a_directory_of_a_terabyte_is_reported_without_its_weights() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("m");
        model(&dir);
        let name = dir.to_str().unwrap();
        let found = find(name, &[], &here()).unwrap();
        assert_eq!((found.files, found.tensors), (2, 3));
        let report = found.report;
        assert_eq!((report.model.as_str(), report.directory.as_str()), (name, name));
        assert_eq!((report.config_json.as_slice(), report.problem.as_str()), (CONFIG.as_bytes(), ""));
        let tensors: Vec<_> = report.tensors.iter().map(|one| (one.name.as_str(), one.bytes)).collect();
        assert_eq!(tensors, [("model.embed_tokens.weight", 1 << 40), ("model.layers.0.mlp.experts.*.w", 11)]);

        let twin = dir.with_file_name("twin");
        model(&twin);
        assert_eq!(inspect(twin.to_str().unwrap(), &[], &here()).fingerprint, report.fingerprint);
        fs::write(twin.join("config.json"), r#"{"model_type":"qwen3"}"#).unwrap();
        assert_ne!(inspect(twin.to_str().unwrap(), &[], &here()).fingerprint, report.fingerprint);
    }

    #[test]
    fn what_is_missing_or_cut_off_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("m");
        model(&dir);
        let second = dir.join("model-00002-of-00002.safetensors");
        let whole = fs::metadata(&second).unwrap().len();
        File::options().write(true).open(&second).unwrap().set_len(whole - 1).unwrap();
        assert_eq!(
            problem(&dir),
            format!(
                "model-00002-of-00002.safetensors is cut off: its header promises {whole} bytes, it has {}: was the download finished?",
                whole - 1
            )
        );
        fs::remove_file(&second).unwrap();
        let index = dir.join("model.safetensors.index.json");
        assert_eq!(
            problem(&dir),
            format!(
                "model-00002-of-00002.safetensors is missing, and no other of 2 weight files that {} names: was the download finished?",
                index.display()
            )
        );
        fs::remove_file(dir.join("model-00001-of-00002.safetensors")).unwrap();
        assert!(problem(&dir).starts_with("model-00001-of-00002.safetensors is missing, and 1 more of 2"));
        fs::remove_file(&index).unwrap();
        assert!(problem(&dir).ends_with("holds no model*.safetensors"));
        fs::remove_file(dir.join("config.json")).unwrap();
        assert!(problem(&dir).ends_with("holds no config.json, so no model"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("m");
        model(&dir);
        let config = dir.join("config.json");
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        for bad in ["[1]", "", "{\"a\":", deep.as_str()] {
            fs::write(&config, bad).unwrap();
            assert!(problem(&dir).contains("config.json is no JSON object"), "{bad}");
        }
        File::create(&config).unwrap().set_len(MAX_CONFIG_BYTES + 1).unwrap();
        assert!(problem(&dir).ends_with("it has more than 4194304 bytes"));
        fs::write(&config, format!("{{\"a\":\"{}\"}}", "x".repeat((4 << 20) - 20))).unwrap();
        assert!(problem(&dir).contains("and less than 4194304 are sent"), "{}", problem(&dir));
        fs::write(&config, CONFIG).unwrap();

        let third = dir.join("model-3.safetensors");
        fs::create_dir(&third).unwrap();
        assert_eq!(problem(&dir), "model-3.safetensors cannot be read: it is no plain file");
        fs::remove_dir(&third).unwrap();
        write(&dir, "model-3.safetensors", &[("model.layers.0.mlp.experts.1.w", "U8", 1, 6)]);
        assert!(
            problem(&dir)
                .starts_with("model-3.safetensors holds model.layers.0.mlp.experts.1.w, which another")
        );
        fs::write(&third, "GGUF, not safetensors").unwrap();
        assert!(
            problem(&dir).starts_with("model-3.safetensors is no safetensors file: its header would have")
        );
        fs::remove_file(&third).unwrap();
        fs::write(dir.join("model.safetensors.index.json"), "{}").unwrap();
        assert!(problem(&dir).contains("is no index of weights: missing field `weight_map`"));
        fs::write(dir.join("model.safetensors.index.json"), r#"{"weight_map":{"a":"../m/config.json"}}"#)
            .unwrap();
        assert!(problem(&dir).starts_with("../m/config.json is missing"));
        assert!(problem(&dir.join("absent")).starts_with("there is no model directory "));
        assert_eq!(inspect("", &[], &here()).problem, "no model is named");
    }

    #[test]
    fn a_name_of_the_hub_is_found_or_not_here_yet() {
        let home = tempfile::tempdir().unwrap();
        let place = Place { home: Some(home.path().to_owned()), ..here() };
        let absent = inspect("org/m", &[], &place);
        assert!(absent.not_here_yet);
        assert_eq!(
            absent.problem,
            "the model org/m is no directory on this node and not in its cache of the model hub yet"
        );
        let repository = home.path().join(".cache/huggingface/hub/models--org--m");
        let snapshot = repository.join("snapshots/12ab");
        model(&snapshot);
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "12ab\n").unwrap();
        let report = inspect("org/m", &[], &place);
        assert_eq!((report.problem.as_str(), report.directory.as_str()), ("", snapshot.to_str().unwrap()));
        // As the cache has it: files are links to blobs, and one was not fetched.
        let file = snapshot.join("model-00002-of-00002.safetensors");
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("../../blobs/absent", &file).unwrap();
        let partly = inspect("org/m", &[], &place);
        assert!(partly.not_here_yet && partly.problem.contains("is not whole yet"), "{partly:?}");
        fs::write(snapshot.join("config.json"), "[]").unwrap();
        assert!(!inspect("org/m", &[], &place).not_here_yet);
    }

    #[test]
    fn models_are_confined_as_for_starts() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("models"), dir.path().join("other"));
        model(&root.join("m"));
        model(&other);
        std::os::unix::fs::symlink(&other, root.join("link")).unwrap();
        let at =
            |path: PathBuf| inspect(path.to_str().unwrap(), std::slice::from_ref(&root), &here()).problem;
        assert_eq!(at(root.join("m")), "");
        for path in [root.join("link"), other, "org/m".into()] {
            assert!(at(path).contains("is not a model directory under model_roots ("));
        }
    }
}
