//! A set of rows as a bitmap: a million finished rows take 125 kB.

use super::ids::RowIx;

/// A set of row numbers below a fixed bound.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RowSet {
    words: Vec<u64>,
    rows_total: u32,
    len: u32,
}

impl RowSet {
    /// The empty set of rows below `rows_total`.
    #[must_use]
    pub fn new(rows_total: u32) -> Self {
        Self { words: vec![0; rows_total.div_ceil(64) as usize], rows_total, len: 0 }
    }

    /// Adds a row; false when it was there already or is out of bounds.
    pub fn insert(&mut self, row: RowIx) -> bool {
        if row.0 >= self.rows_total {
            return false;
        }
        let (word, bit) = (row.0 as usize / 64, 1_u64 << (row.0 % 64));
        let fresh = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += u32::from(fresh);
        fresh
    }

    /// Takes a row out; false when it was not there.
    pub fn remove(&mut self, row: RowIx) -> bool {
        if !self.contains(row) {
            return false;
        }
        self.words[row.0 as usize / 64] &= !(1 << (row.0 % 64));
        self.len -= 1;
        true
    }

    /// Whether the row is in the set.
    #[must_use]
    pub fn contains(&self, row: RowIx) -> bool {
        row.0 < self.rows_total && self.words[row.0 as usize / 64] & (1 << (row.0 % 64)) != 0
    }

    /// How many rows are in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no row is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bound: rows are below it.
    #[must_use]
    pub fn rows_total(&self) -> u32 {
        self.rows_total
    }

    /// Whether every row is in the set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == self.rows_total
    }

    /// The first row at or after `from` that is not in the set.
    #[must_use]
    pub fn next_absent(&self, from: RowIx) -> Option<RowIx> {
        let mut row = from.0;
        while row < self.rows_total {
            let word = self.words[row as usize / 64] | ((1_u64 << (row % 64)) - 1);
            if word != u64::MAX {
                let found = row / 64 * 64 + word.trailing_ones();
                return (found < self.rows_total).then_some(RowIx(found));
            }
            row = (row / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(
            total in 0_u32..300,
            rows in prop::collection::vec((0_u32..320, any::<bool>()), 0..200),
        ) {
            let mut set = RowSet::new(total);
            let mut model = BTreeSet::new();
            for (row, add) in rows {
                if add {
                    prop_assert_eq!(set.insert(RowIx(row)), row < total && model.insert(row));
                } else {
                    prop_assert_eq!(set.remove(RowIx(row)), model.remove(&row));
                }
            }
            prop_assert_eq!(set.len() as usize, model.len());
            prop_assert_eq!(set.is_full(), model.len() == total as usize);
            for row in 0..total {
                prop_assert_eq!(set.contains(RowIx(row)), model.contains(&row));
                let next = (row..total).find(|r| !model.contains(r)).map(RowIx);
                prop_assert_eq!(set.next_absent(RowIx(row)), next);
            }
        }
    }
}
