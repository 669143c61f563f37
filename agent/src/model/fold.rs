//! Makes the list of tensors small, and a name for exactly this list.

use std::collections::BTreeMap;

use nightshift_proto::v1::ModelTensor;

use super::header::Tensor;

/// The name with every expert's number replaced by a star: `a.experts.17.b` becomes `a.experts.*.b`.
#[must_use]
pub fn without_expert(name: &str) -> String {
    let mut folded = String::with_capacity(name.len());
    let mut behind_experts = false;
    for (index, part) in name.split('.').enumerate() {
        if index > 0 {
            folded.push('.');
        }
        let number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        folded.push_str(if behind_experts && number { "*" } else { part });
        behind_experts = part == "experts";
    }
    folded
}

/// Tensors that differ only in the number of their expert as one, their bytes added up; in order of name, then of type.
#[must_use]
pub fn fold(tensors: &BTreeMap<String, Tensor>) -> Vec<ModelTensor> {
    let mut sums: BTreeMap<(String, &str), u64> = BTreeMap::new();
    for (name, tensor) in tensors {
        // Each lies inside a file, so that the sum of half a million of them fits; a forged one must not panic.
        let sum = sums.entry((without_expert(name), &tensor.dtype)).or_default();
        *sum = sum.saturating_add(tensor.bytes());
    }
    sums.into_iter()
        .map(|((name, dtype), bytes)| ModelTensor { name, dtype: dtype.to_owned(), bytes })
        .collect()
}

/// Names what was found: equal where configuration and tensors are, and different, for all that happens by itself, where
/// they are not.
///
/// FNV-1a of 64 bits, twice from different beginnings. It tells versions, quantisations and half-copied directories of a
/// handful of models apart, which takes no more than that two different ones do not come out alike by chance (one in 2^64
/// for a single lane already). It is no protection against a forger, and nothing rests on it that would need one: whoever
/// can change a model's files can change its answers anyway. Written out here because the standard library's hash may
/// change between versions, and the fingerprint is kept by controllers.
#[must_use]
pub fn fingerprint(tensors: &BTreeMap<String, Tensor>, config: &[u8]) -> String {
    let mut lanes = Lanes([0xcbf2_9ce4_8422_2325, 0x6c62_272e_07bb_0142]);
    for (name, tensor) in tensors {
        lanes.part(name.as_bytes());
        lanes.part(tensor.dtype.as_bytes());
        lanes.number(tensor.shape.len() as u64);
        tensor.shape.iter().for_each(|size| lanes.number(*size));
        lanes.number(tensor.offsets.0);
        lanes.number(tensor.offsets.1);
    }
    lanes.part(config);
    let [one, two] = lanes.0;
    format!("{one:016x}{two:016x}")
}

struct Lanes([u64; 2]);

impl Lanes {
    /// The length goes in first, so that where one part ends and the next begins counts too.
    fn part(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.bytes(bytes);
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for lane in &mut self.0 {
            *lane = bytes
                .iter()
                .fold(*lane, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: &str, bytes: u64) -> Tensor {
        Tensor { dtype: dtype.into(), shape: vec![bytes], offsets: (0, bytes) }
    }

    #[test]
    fn only_the_number_of_an_expert_is_folded() {
        for (name, folded) in [
            ("model.layers.3.mlp.experts.17.up_proj.weight", "model.layers.3.mlp.experts.*.up_proj.weight"),
            ("experts.1.experts.2", "experts.*.experts.*"),
            (
                "model.layers.3.mlp.shared_experts.up_proj.weight",
                "model.layers.3.mlp.shared_experts.up_proj.weight",
            ),
            ("a.experts.gate.1", "a.experts.gate.1"),
            ("a.experts.1a", "a.experts.1a"),
            ("", ""),
            (".experts..7", ".experts..7"),
        ] {
            assert_eq!(without_expert(name), folded);
        }
    }

    #[test]
    fn experts_are_added_up_by_type() {
        let tensors = BTreeMap::from([
            ("l.0.experts.0.w".to_owned(), tensor("U8", 3)),
            ("l.0.experts.1.w".to_owned(), tensor("U8", 4)),
            ("l.0.experts.2.w".to_owned(), tensor("F4", 5)),
            ("l.1.experts.0.w".to_owned(), tensor("U8", u64::MAX)),
            ("l.1.experts.1.w".to_owned(), tensor("U8", 9)),
        ]);
        let folded: Vec<_> = fold(&tensors)
            .into_iter()
            .map(|one| format!("{} {} {}", one.name, one.dtype, one.bytes))
            .collect();
        assert_eq!(
            folded,
            ["l.0.experts.*.w F4 5", "l.0.experts.*.w U8 7", "l.1.experts.*.w U8 18446744073709551615"]
        );
    }

    #[test]
    fn the_fingerprint_stays_what_it_is_and_tells_changes() {
        let one = BTreeMap::from([("a".to_owned(), tensor("U8", 3))]);
        let base = fingerprint(&one, b"{}");
        // A golden value: controllers keep it.
        assert_eq!(base, GOLDEN);
        let others = [
            fingerprint(&one, b"{ }"),
            fingerprint(&BTreeMap::from([("b".to_owned(), tensor("U8", 3))]), b"{}"),
            fingerprint(&BTreeMap::from([("a".to_owned(), tensor("I8", 3))]), b"{}"),
            fingerprint(&BTreeMap::from([("a".to_owned(), tensor("U8", 4))]), b"{}"),
            fingerprint(
                &BTreeMap::from([("a".to_owned(), Tensor { shape: vec![1, 3], ..tensor("U8", 3) })]),
                b"{}",
            ),
            fingerprint(&BTreeMap::new(), b"{}"),
        ];
        for (index, other) in others.iter().enumerate() {
            assert!(*other != base && !others[..index].contains(other), "{index}");
        }
    }

    const GOLDEN: &str = "d1cd71fed37a7d2f87127b645210f612";
}
