//! The header of a safetensors file: eight bytes of length, little-endian, then a JSON object of that length, then the
//! tensors' bytes, of which nothing is read here.
//!
//! Promises: no more is taken than the limits below; no bytes whatever make it panic; what it returns lies inside the file,
//! and no two tensors share a byte.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read},
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// safetensors' own limit of a header.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Tensors of a model; the largest published have some 90,000.
pub const MAX_TENSORS: usize = 500_000;

/// Dimensions of a tensor: weights have six at most, and a list that goes on is no shape.
const MAX_DIMENSIONS: usize = 32;

/// Longest name of a tensor or of a type. Published names have a hundred bytes; half a million of these fit in memory.
const MAX_NAME_BYTES: usize = 512;

const LENGTH_BYTES: u64 = 8;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// As safetensors writes it.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// First byte and end, counted from the end of the header.
    pub offsets: (u64, u64),
}

impl Tensor {
    /// In the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.offsets.1 - self.offsets.0
    }
}

/// What a file is wrong with, worded to follow its name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system does not give its bytes.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It ends before what its header promises.
    #[error("is cut off: its header promises {promised} bytes, it has {has}: was the download finished?")]
    CutOff {
        /// Length, header and tensors.
        promised: u64,
        /// The file's size.
        has: u64,
    },
    /// It has no length and header.
    #[error("is no safetensors file: {0}")]
    Malformed(String),
}

fn malformed(problem: impl Into<String>) -> Error {
    Error::Malformed(problem.into())
}

/// Tensors by name, from a file of this size. Nothing behind the header is read. `most_tensors` and `most_bytes` are what
/// is left of the model's limits.
///
/// # Errors
/// [`Error`].
pub fn read(
    file: &mut impl Read,
    file_bytes: u64,
    most_tensors: usize,
    most_bytes: u64,
) -> Result<(BTreeMap<String, Tensor>, u64), Error> {
    if file_bytes < LENGTH_BYTES {
        return Err(Error::CutOff { promised: LENGTH_BYTES, has: file_bytes });
    }
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let header_bytes = u64::from_le_bytes(length);
    // Checked before the size of the file: a length of this kind is not one.
    if header_bytes > MAX_HEADER_BYTES {
        return Err(malformed(format!(
            "its header would have {header_bytes} bytes, and {MAX_HEADER_BYTES} are allowed"
        )));
    }
    if header_bytes > most_bytes {
        return Err(malformed("the headers of the model are too large together"));
    }
    let body = LENGTH_BYTES + header_bytes;
    if body > file_bytes {
        return Err(Error::CutOff { promised: body, has: file_bytes });
    }
    let mut text = vec![0; usize::try_from(header_bytes).map_err(|_| malformed("its header is too large"))?];
    file.read_exact(&mut text)?;
    let tensors = parse(&text, most_tensors)?;
    let end = check_offsets(&tensors)?;
    let promised = body.checked_add(end).ok_or_else(|| malformed("its offsets are beyond any file"))?;
    if promised > file_bytes {
        return Err(Error::CutOff { promised, has: file_bytes });
    }
    Ok((tensors, header_bytes))
}

fn parse(text: &[u8], most_tensors: usize) -> Result<BTreeMap<String, Tensor>, Error> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let tensors = reader
        .deserialize_map(Header { most_tensors })
        .and_then(|tensors| reader.end().map(|()| tensors))
        .map_err(|error| malformed(format!("its header is not what it should be ({error})")))?;
    for (name, tensor) in &tensors {
        check_size(name, tensor)?;
    }
    Ok(tensors)
}

/// No tensor inside another or beyond its own end. Returns where the last one ends.
fn check_offsets(tensors: &BTreeMap<String, Tensor>) -> Result<u64, Error> {
    let mut spans: Vec<(u64, u64, &str)> =
        tensors.iter().map(|(name, tensor)| (tensor.offsets.0, tensor.offsets.1, name.as_str())).collect();
    spans.sort_unstable();
    let mut end = 0;
    for (first, last, name) in spans {
        if first < end {
            return Err(malformed(format!("the bytes of {name} begin inside of another tensor's")));
        }
        end = last;
    }
    Ok(end)
}

/// Offsets in order, and as many bytes as type and shape say, where the type is known.
fn check_size(name: &str, tensor: &Tensor) -> Result<(), Error> {
    let (first, end) = tensor.offsets;
    if end < first {
        return Err(malformed(format!("{name} ends at byte {end}, before it begins at {first}")));
    }
    let Some(bits) = bits_of(&tensor.dtype) else { return Ok(()) };
    let values = tensor.shape.iter().try_fold(1_u128, |product, size| product.checked_mul(u128::from(*size)));
    let fits = values
        .and_then(|values| values.checked_mul(bits))
        .is_some_and(|bits| bits.div_ceil(8) == u128::from(end - first));
    if fits {
        return Ok(());
    }
    Err(malformed(format!(
        "{name} has {} bytes, which a {} of shape {:?} has not",
        end - first,
        tensor.dtype,
        tensor.shape
    )))
}

/// Of one value; `None` for a type of a later version of safetensors.
fn bits_of(dtype: &str) -> Option<u128> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        _ => return None,
    })
}

struct Header {
    most_tensors: usize,
}

impl<'de> Visitor<'de> for Header {
    type Value = BTreeMap<String, Tensor>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if name.len() > MAX_NAME_BYTES {
                return Err(A::Error::custom("a tensor's name is too long"));
            }
            if tensors.len() >= self.most_tensors {
                return Err(A::Error::custom(format!("the model has more than {MAX_TENSORS} tensors")));
            }
            let entry: Entry = map.next_value()?;
            if entry.dtype.len() > MAX_NAME_BYTES {
                return Err(A::Error::custom("a type's name is too long"));
            }
            let tensor = Tensor { dtype: entry.dtype, shape: entry.shape.0, offsets: entry.data_offsets };
            if tensors.insert(name, tensor).is_some() {
                return Err(A::Error::custom("a tensor is named twice"));
            }
        }
        Ok(tensors)
    }
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;

        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(size) = list.next_element()? {
                    if shape.len() == MAX_DIMENSIONS {
                        return Err(A::Error::custom("a shape has too many dimensions"));
                    }
                    shape.push(size);
                }
                Ok(Shape(shape))
            }
        }

        deserializer.deserialize_seq(Dimensions)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{"__metadata__":{"format":"mlx"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;

    /// Length and header, and how long the whole file is said to be.
    fn file(header: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header].concat()
    }

    fn read_all(bytes: &[u8], file_bytes: u64) -> Result<BTreeMap<String, Tensor>, String> {
        read(&mut &bytes[..], file_bytes, MAX_TENSORS, MAX_HEADER_BYTES)
            .map(|(tensors, _)| tensors)
            .map_err(|error| error.to_string())
    }

    fn says(header: &str) -> String {
        read_all(&file(header.as_bytes()), 1 << 50).unwrap_err()
    }

    #[test]
    fn a_header_is_read_and_nothing_behind_it() {
        // The reader has no byte more than the header: reading on would be an error.
        let tensors = read_all(&file(GOOD.as_bytes()), 8 + GOOD.len() as u64 + 16).unwrap();
        assert_eq!(tensors.len(), 2);
        assert_eq!((tensors["b"].bytes(), tensors["b"].shape.as_slice()), (12, [2, 3].as_slice()));
    }

    #[test]
    fn a_file_that_ends_early_says_by_how_much() {
        let whole = 8 + GOOD.len() as u64 + 16;
        for has in [whole - 1, 8 + GOOD.len() as u64] {
            assert_eq!(
                read_all(&file(GOOD.as_bytes()), has).unwrap_err(),
                format!(
                    "is cut off: its header promises {whole} bytes, it has {has}: was the download finished?"
                )
            );
        }
        assert!(read_all(&file(GOOD.as_bytes())[..20], 20).unwrap_err().starts_with("is cut off"));
        assert!(read_all(b"", 0).unwrap_err().starts_with("is cut off"));
    }

    #[test]
    fn each_fault_is_named() {
        for (header, expected) in [
            ("[]", "an object of tensors"),
            (r#"{"a":{"dtype":"U8","shape":[4]}}"#, "missing field `data_offsets`"),
            (
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}"#,
                "ends at byte 0, before it begins at 4",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,5]}}"#,
                "a has 5 bytes, which a U8 of shape [4] has not",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                "the bytes of b begin inside of another tensor's",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
                "named twice",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[18446744073709551615,18446744073709551615,18446744073709551615],"data_offsets":[0,4]}}"#,
                "has not",
            ),
            (r#"{"a":{"dtype":"?","shape":[],"data_offsets":[0,18446744073709551615]}}"#, "beyond any file"),
            (
                &format!(r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(50)),
                "too many dimensions",
            ),
            (&format!("{}{}", r#"{"a":"#, "[".repeat(100_000)), "not what it should be"),
        ] {
            let error = says(header);
            assert!(error.contains(expected), "{error}");
        }
        let huge = (MAX_HEADER_BYTES + 1).to_le_bytes();
        assert!(read_all(&huge, u64::MAX).unwrap_err().contains("100000000 are allowed"));
        assert!(read_all(&u64::MAX.to_le_bytes(), u64::MAX).unwrap_err().contains("are allowed"));
    }

    #[test]
    fn limits_of_the_whole_model_hold() {
        let bytes = file(GOOD.as_bytes());
        let with = |tensors, most| read(&mut &bytes[..], 1 << 40, tensors, most).unwrap_err().to_string();
        assert!(with(1, 1 << 20).contains("more than 500000 tensors"));
        assert!(with(9, 10).contains("too large together"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in any::<u64>()) {
            let _ = read_all(&bytes, size);
            let _ = read_all(&file(&bytes), size);
        }

        #[test]
        fn no_changed_header_panics_or_reaches_beyond_the_file(
            at in any::<prop::sample::Index>(),
            cut in 0..30_usize,
            put in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..20),
                "[0-9\\[\\]{},:\"a]{0,20}".prop_map(String::into_bytes),
            ],
            size in 0..400_u64,
        ) {
            let at = at.index(GOOD.len());
            let bytes = GOOD.as_bytes();
            let changed = [&bytes[..at], &put, &bytes[(at + cut).min(bytes.len())..]].concat();
            if let Ok(tensors) = read_all(&file(&changed), size) {
                let end = 8 + changed.len() as u64 + tensors.values().map(|tensor| tensor.offsets.1).max().unwrap_or(0);
                prop_assert!(end <= size);
                prop_assert!(tensors.values().map(Tensor::bytes).sum::<u64>() <= size);
            }
        }
    }
}
