//! Types of stored numbers, as safetensors names them.

/// What the numbers of a tensor are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dtype {
    /// Eight bytes.
    F64,
    /// Four bytes.
    F32,
    /// Two bytes, IEEE.
    F16,
    /// Two bytes, brain floating point.
    Bf16,
    /// One byte (e4m3 or e5m2). mlx-lm turns it into bf16 when it loads.
    F8,
    /// Packed or plain integers; quantised weights are `U32`.
    Integer,
}

impl Dtype {
    /// From the header's word; unknown words count as integers: their bytes are taken as stored.
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            word if word.starts_with("F8") => Self::F8,
            _ => Self::Integer,
        }
    }

    /// Bytes of one number when activations have this type; `None` where they cannot.
    #[must_use]
    pub fn activation_bytes(self) -> Option<u64> {
        match self {
            Self::F64 | Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            Self::F8 | Self::Integer => None,
        }
    }
}
