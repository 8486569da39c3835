//! Tables of partial sums: what a lookup kernel prepares. For every group of activations there are 16 entries, one per
//! code of the layout: `Σ trit · x` over the group, so that a nibble of weights costs one lookup.
//!
//! An entry needs more than 8 bits (at most 127 per column of a group), and a byte shuffle looks up bytes. So an exact
//! table is two tables of bytes (`H = 2`): the low and the high half of the entry, looked up with the same index. (On AVX2 a kernel
//! has one table of bytes, and looks up twice what does not fit.)
//!
//! A lossy table (`H = 1`, the `_0` kernels of arXiv 2502.11880) is one table of bytes `q + 128`, with
//! `q = round(127 / s · entry)` and `s` the largest entry of the token. A sum is then `s / 127 · Σ q`, rounded.
//!
//! How wrong is that? A `q` is off by at most 1/2, so every entry by at most `s / 127 / 2`, and the last rounding adds at
//! most 1/2. A group of `G` columns has entries up to `127 G`, so `s <= 127 G`, and with `p` groups the error is at most
//! `G / 2 · p + 1/2`. It is a whole number, so it is at most `G / 2 · p` rounded up.

use crate::activation::QuantizedActivations;
use crate::kernel::{Exactness, Prepared};

/// The table of a group: its halves (2) or its requantised bytes (1).
pub type Table<const H: usize> = [[u8; 16]; H];

/// What a table of one byte an entry stores for 0.
pub const BIAS: u8 = 128;

/// How exact sums over tables of `h` bytes an entry and groups of `group` columns are. See the module.
pub const fn exactness(group: usize, h: usize) -> Exactness {
    match h {
        1 => Exactness::Bounded { per_group: group as f32 / 2.0, group },
        _ => Exactness::Exact,
    }
}

/// Makes the tables of all groups of all tokens; columns are padded with zeros to a multiple of `multiple`, itself one
/// of `G`. `sums` becomes the largest entry of each token, where the tables are lossy.
pub fn fill<const G: usize, const H: usize>(
    codes: &[[i8; G]; 16],
    x: &QuantizedActivations,
    multiple: usize,
    out: &mut Prepared,
) {
    let mut weights = [[0; 16]; G];
    for (code, trits) in codes.iter().enumerate() {
        for (weights, &trit) in weights.iter_mut().zip(trits) {
            weights[code] = i16::from(trit);
        }
    }
    (out.m, out.stride) = (x.m, x.k.next_multiple_of(multiple) / G * size_of::<Table<H>>());
    out.bytes.ensure_len(out.m * out.stride);
    out.sums.clear();
    out.sums.resize(out.m, 1);
    for (token, bytes) in out.bytes.chunks_exact_mut(out.stride.max(1)).enumerate() {
        let tables = bytes.as_chunks_mut::<16>().0.as_chunks_mut::<H>().0;
        let (full, rest) = x.row(token).as_chunks::<G>();
        let (mut last, none) = ([0; G], [0; G]);
        last[..rest.len()].copy_from_slice(rest);
        let groups = full.iter().chain([&last]).chain(std::iter::repeat(&none));
        if H == 2 {
            for (table, x) in tables.iter_mut().zip(groups) {
                let entries = entries(&weights, x);
                for (half, bytes) in table.iter_mut().enumerate() {
                    *bytes = entries.map(|entry| (entry >> (8 * half)) as u8);
                }
            }
        } else {
            let absolute = |x: &[i8; G]| x.iter().map(|x| i32::from(x.unsigned_abs())).sum();
            let largest = full.iter().chain([&last]).map(absolute).max().unwrap_or(0).max(1);
            out.sums[token] = largest;
            let factor = 127.0 / largest as f32;
            for (table, x) in tables.iter_mut().zip(groups) {
                table[0] = entries(&weights, x).map(|entry| requantized(entry, factor));
            }
        }
    }
}

fn entries<const G: usize>(weights: &[[i16; 16]; G], x: &[i8; G]) -> [i16; 16] {
    let mut entries = [0; 16];
    for (weights, &x) in weights.iter().zip(x) {
        for (entry, weight) in entries.iter_mut().zip(weights) {
            *entry += weight * i16::from(x);
        }
    }
    entries
}

/// `round(entry · factor) + BIAS`, for results in -127..=127.
fn requantized(entry: i16, factor: f32) -> u8 {
    /// Added to a small float, it leaves the nearest integer in the low bits; unlike `round`, this vectorises without
    /// SSE4.1.
    const ROUND: f32 = (3 << 22) as f32;
    ((f32::from(entry) * factor + ROUND).to_bits() as u8).wrapping_add(BIAS)
}

/// The tables of a token, group after group.
pub fn of<const H: usize>(x: &Prepared, token: usize) -> &[Table<H>] {
    x.bytes[token * x.stride..][..x.stride].as_chunks().0.as_chunks().0
}

/// The entry of code `code`: exact, or `q`.
pub fn entry<const H: usize>(table: &Table<H>, code: u8) -> i32 {
    let at = usize::from(code & 15);
    match H {
        1 => i32::from(table[0][at]) - i32::from(BIAS),
        _ => i32::from(i16::from_le_bytes([table[0][at], table[1][at]])),
    }
}

/// Turns the sums of `q` of every token into sums: times `s / 127`, rounded to the nearest. Exact sums stay as they are.
pub fn rescale<const H: usize>(x: &Prepared, acc: &mut [i32]) {
    if H == 1 && x.m > 0 {
        let n_rows = acc.len() / x.m;
        for (acc, &largest) in acc.chunks_exact_mut(n_rows.max(1)).zip(&x.sums) {
            // 32 fractional bits: wrong by less than 1/8 for every sum below 2^30.
            let factor = ((i64::from(largest) << 33) / 127 + 1) >> 1;
            acc.iter_mut().for_each(|sum| *sum = ((i64::from(*sum) * factor + (1 << 31)) >> 32) as i32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{tl1, tl2};
    use crate::verify::activations;

    #[test]
    fn exact_tables_are_the_entries_in_two_halves() {
        let mut out = Prepared::default();
        fill::<2, 2>(
            &tl1::CODES,
            &activations(2, 3, |token, column| [[127, 127, -5], [1, -2, 3]][token][column]),
            4,
            &mut out,
        );
        assert_eq!(out.stride, 64);
        // Code 8 is (+1, +1), code 0 (-1, -1), code 5 (+1, 0): 254 = 0x00FE, -254 = 0xFF02.
        let tables = of::<2>(&out, 0);
        assert_eq!([0, 4, 5, 8].map(|code| entry(&tables[0], code)), [-254, 0, 127, 254]);
        assert_eq!((tables[0][0][8], tables[0][1][8], tables[0][0][0], tables[0][1][0]), (0xFE, 0x00, 0x02, 0xFF));
        assert_eq!([0, 5, 7].map(|code| entry(&tables[1], code)), [5, -5, 0], "the missing column is 0");
        assert_eq!([0, 5, 7].map(|code| entry(&of::<2>(&out, 1)[0], code)), [1, 1, -2]);
    }

    #[test]
    fn lossy_tables_are_the_nearest_of_255_steps() {
        let mut out = Prepared::default();
        fill::<3, 1>(&tl2::CODES, &activations(1, 5, |_, column| [100, -100, 50, 30, 7][column]), 24, &mut out);
        assert_eq!((out.stride, out.sums[0]), (8 * 16, 250));
        // Code 13 is (+1, +1, +1), code 2 is (-1, +1, 0): 50 and -200, in steps of 250 / 127.
        let tables = of::<1>(&out, 0);
        assert_eq!([0, 1, 2, 13].map(|code| entry(&tables[0], code)), [0, 51, -102, 25]);
        assert_eq!([1, 4].map(|code| entry(&tables[1], code)), [15, 19]);
        let mut acc = [-102, 25, 51, 0];
        rescale::<1>(&out, &mut acc);
        assert_eq!(acc, [-201, 49, 100, 0]);
    }
}
