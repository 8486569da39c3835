//! Balanced ternary: `g` trits as the number `Σ trit · 3^i`, between `-(3^g - 1) / 2` and `(3^g - 1) / 2`. Changing all signs
//! changes the number's sign, so a table of half the numbers is enough.

/// The number of some trits, the first one lowest.
pub const fn number(trits: &[i8]) -> i32 {
    let (mut number, mut i) = (0, trits.len());
    while i > 0 {
        i -= 1;
        number = 3 * number + trits[i] as i32;
    }
    number
}

/// The `G` trits of a number.
pub const fn trits<const G: usize>(mut number: i32) -> [i8; G] {
    let (mut trits, mut i) = ([0; G], 0);
    while i < G {
        trits[i] = ((number + 1).rem_euclid(3) - 1) as i8;
        number = (number - trits[i] as i32) / 3;
        i += 1;
    }
    trits
}

/// The trits of the 16 codes of a nibble, code `i` being the number `i + first`; zeros from code `n` on.
pub const fn codes<const G: usize>(first: i32, n: usize) -> [[i8; G]; 16] {
    let (mut codes, mut i) = ([[0; G]; 16], 0);
    while i < n {
        codes[i] = trits(i as i32 + first);
        i += 1;
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trits_undo_number() {
        assert_eq!(number(&[-1, 1]), 2);
        assert_eq!(trits(-4), [-1, -1]);
        for n in -40..=40 {
            assert_eq!(number(&trits::<4>(n)), n);
            assert_eq!(trits::<4>(-n), trits::<4>(n).map(|trit| -trit));
        }
    }
}
