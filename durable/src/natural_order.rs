//! Names in the order a person expects: `step-9` before `step-10`.

use std::cmp::Ordering;

/// Compares names so that runs of digits count as numbers.
///
/// Names that differ only in leading zeros are put in byte order, so that the order is total.
pub fn natural_cmp(left: &str, right: &str) -> Ordering {
    let (mut a, mut b) = (left.as_bytes(), right.as_bytes());
    while let (Some(&x), Some(&y)) = (a.first(), b.first()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (number_a, rest_a) = split_number(a);
            let (number_b, rest_b) = split_number(b);
            (a, b) = (rest_a, rest_b);
            number_a.len().cmp(&number_b.len()).then(number_a.cmp(number_b))
        } else {
            (a, b) = (&a[1..], &b[1..]);
            x.cmp(&y)
        };
        if order.is_ne() {
            return order;
        }
    }
    a.len().cmp(&b.len()).then(left.cmp(right))
}

/// The digits at the front without their leading zeros, and what follows them.
fn split_number(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len());
    let (digits, rest) = bytes.split_at(end);
    let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
    (&digits[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_count() {
        let ordered = [
            "2026-11-24",
            "2026-11-24T10",
            "2027-01-02",
            "step-",
            "step-0",
            "step-9",
            "step-010",
            "step-10a",
            "step-99999999999999999999998",
            "step-99999999999999999999999",
        ];
        for pair in ordered.windows(2) {
            assert_eq!(natural_cmp(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(natural_cmp(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
    }

    proptest! {
        #[test]
        fn numbers_compare_as_numbers(a: u64, b: u64, width in 0_usize..25) {
            let order = natural_cmp(&format!("s-{a:0width$}"), &format!("s-{b}"));
            if a != b { prop_assert_eq!(order, a.cmp(&b)); }
        }

        #[test]
        fn is_a_total_order(a in "[0-9a-c]{0,6}", b in "[0-9a-c]{0,6}", c in "[0-9a-c]{0,6}") {
            prop_assert_eq!(natural_cmp(&a, &b), natural_cmp(&b, &a).reverse());
            prop_assert_eq!(natural_cmp(&a, &b).is_eq(), a == b);
            if natural_cmp(&a, &b).is_lt() && natural_cmp(&b, &c).is_lt() {
                prop_assert!(natural_cmp(&a, &c).is_lt());
            }
        }
    }
}
