//! A ring through all nodes of a small graph.

/// Steps of the search: any ring of eight nodes is found in far fewer, and a network in which everybody reaches
/// everybody needs one step a node, however many there are.
const MOST_STEPS: usize = 50_000;

/// The nodes `0..count` in an order in which each is joined with the next and the last with the first; two nodes are a
/// ring when they are joined. The same graph gives the same order.
pub(super) fn find_ring(count: usize, joined: impl Fn(usize, usize) -> bool) -> Option<Vec<usize>> {
    match count {
        0 | 1 => return None,
        2 => return joined(0, 1).then(|| vec![0, 1]),
        _ => {}
    }
    let mut order = vec![0];
    let mut tried = vec![0_usize];
    let mut taken = vec![false; count];
    taken[0] = true;
    for _ in 0..MOST_STEPS {
        let last = *order.last()?;
        if order.len() == count && joined(last, 0) {
            return Some(order);
        }
        let from = *tried.last()?;
        let next =
            (from..count).find(|next| !taken[*next] && joined(last, *next)).filter(|_| order.len() < count);
        if let Some(next) = next {
            *tried.last_mut()? = next + 1;
            order.push(next);
            tried.push(0);
            taken[next] = true;
        } else {
            tried.pop();
            taken[order.pop()?] = false;
            if order.is_empty() {
                return None;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(usize, usize)]) -> impl Fn(usize, usize) -> bool {
        move |a, b| edges.contains(&(a, b)) || edges.contains(&(b, a))
    }

    #[test]
    fn rings_are_found_where_there_are_some() {
        assert_eq!(find_ring(2, graph(&[(0, 1)])), Some(vec![0, 1]));
        assert_eq!(find_ring(2, graph(&[])), None);
        assert_eq!(find_ring(3, graph(&[(0, 1), (1, 2)])), None, "a chain");
        assert_eq!(find_ring(4, graph(&[(0, 2), (2, 1), (1, 3), (3, 0)])), Some(vec![0, 2, 1, 3]));
        assert_eq!(find_ring(4, graph(&[(0, 1), (1, 2), (2, 0), (2, 3)])), None, "3 hangs on one thread");
        assert_eq!(find_ring(1, |_, _| true), None);
        assert_eq!(find_ring(64, |_, _| true), Some((0..64).collect()));
    }

    proptest::proptest! {
        #[test]
        fn what_is_found_is_a_ring(count in 2_usize..8, edges in proptest::collection::vec(proptest::bool::ANY, 64)) {
            let joined = |a: usize, b: usize| edges[a.min(b) * 8 + a.max(b)];
            if let Some(ring) = find_ring(count, joined) {
                let mut sorted = ring.clone();
                sorted.sort_unstable();
                proptest::prop_assert_eq!(sorted, (0..count).collect::<Vec<_>>());
                for (index, node) in ring.iter().enumerate() {
                    proptest::prop_assert!(joined(*node, ring[(index + 1) % count]));
                }
            }
        }
    }
}
