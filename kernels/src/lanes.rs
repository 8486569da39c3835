//! Tokens as lanes: activations transposed, so that a vector holds one column of many tokens.
//!
//! Ternary weights make a bound on every sum easy: it never exceeds the token's `Σ |x|`. So the largest such sum of 32
//! tokens is kept for every 16 columns, and int16 sums are widened as late as these allow: after 256 columns at worst
//! (all ±127), after three times as many on activations of a normal distribution.

use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::kernel::Prepared;
use crate::ops;
use crate::team::{SharedMut, Team};

/// Tokens that lie beside each other. Their number is padded to a multiple of it.
pub const LANES: usize = 32;

/// A column of 32 tokens.
pub type Column = [i8; LANES];

/// Columns that are transposed at once.
const BLOCK: usize = 16;

/// Transposes `x`, and bounds its sums in `sums`, one per 32 tokens and 16 columns. All columns of 32 tokens follow
/// each other, then come those of the next 32. Tokens and columns (to a multiple of `multiple`, itself one of 16) are padded with zeros.
pub fn fill(team: &Team, x: &QuantizedActivations, multiple: usize, out: &mut Prepared) {
    /// Blocks that a worker takes at once.
    const GRAIN: usize = 32;
    let n_blocks = x.k.next_multiple_of(multiple) / BLOCK;
    (out.m, out.stride) = (x.m, n_blocks * BLOCK * LANES);
    let n = n_blocks * x.m.div_ceil(LANES);
    out.bytes.ensure_len(n * BLOCK * LANES);
    out.sums.resize(n, 0);
    let (bytes, sums) = (SharedMut::new(out.bytes.as_i8_mut()), SharedMut::new(&mut out.sums));
    team.split(n, GRAIN, |blocks| {
        // SAFETY: a range of blocks is handed out once, and has bytes and bounds of its own.
        let (bytes, sums) = unsafe {
            (bytes.slice(blocks.start * BLOCK * LANES..blocks.end * BLOCK * LANES), sums.slice(blocks.clone()))
        };
        let bytes: &mut [[Column; BLOCK]] = bytes.as_chunks_mut().0.as_chunks_mut().0;
        for ((i, bytes), bound) in blocks.zip(bytes).zip(sums) {
            let first_column = (i % n_blocks * BLOCK).min(x.k);
            let here = first_column..x.k.min(first_column + BLOCK);
            let mut rows = [[0; BLOCK]; LANES];
            let first = i / n_blocks * LANES;
            for (token, values) in (first..x.m.min(first + LANES)).zip(&mut rows) {
                let row = &x.row(token)[here.clone()];
                match row.first_chunk() {
                    Some(row) => *values = *row,
                    None => values[..row.len()].copy_from_slice(row),
                }
            }
            *bound = ops::transpose_tokens(&rows, bytes);
        }
    });
}

/// The columns of tokens `32 chunk .. 32 chunk + 32`.
pub fn of(x: &Prepared, chunk: usize) -> &[Column] {
    x.bytes.as_i8()[chunk * x.stride..][..x.stride].as_chunks().0
}

/// The largest `Σ |x|` of tokens `32 chunk .. 32 chunk + 32` in columns `width index .. width index + width`, or a little more; `width` is
/// a multiple of 16.
pub fn bound(x: &Prepared, chunk: usize, width: usize, index: usize) -> i32 {
    let n = x.stride / (BLOCK * LANES);
    x.sums[chunk * n..][..n][index * width / BLOCK..][..width / BLOCK].iter().sum()
}

/// Cuts the columns of 32 tokens into blocks, counted in 16 columns, whose sums fit into int16.
pub fn blocks(x: &Prepared, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    let n = x.stride / (BLOCK * LANES);
    let bounds = &x.sums[chunk * n..][..n];
    let mut end = 0;
    std::iter::from_fn(move || {
        let (start, mut total) = (end, 0);
        while end < n && total + bounds[end] <= i32::from(i16::MAX) {
            total += bounds[end];
            end += 1;
        }
        (start < end).then_some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{activations, legal};

    #[test]
    fn tokens_become_lanes() {
        let team = Team::alone();
        for (m, k) in [(1, 1), (15, 17), (32, 16), (33, 33), (70, 5)] {
            let x = activations(m, k, |token, column| legal(token * 37 + column * 5));
            let mut out = Prepared::default();
            fill(&team, &activations(m + 40, k + 40, |_, _| 1), 16, &mut out);
            fill(&team, &x, 16, &mut out);
            for token in 0..m.next_multiple_of(LANES) {
                let columns = of(&out, token / LANES);
                assert_eq!(columns.len(), k.next_multiple_of(16));
                for (column, values) in columns.iter().enumerate() {
                    let expected = if token < m && column < k { x.row(token)[column] } else { 0 };
                    assert_eq!(values[token % LANES], expected, "{m} x {k}: token {token}, column {column}");
                }
            }
        }
    }

    #[test]
    fn blocks_are_as_long_as_int16_allows() {
        let lengths = |value: fn(usize, usize) -> i8| {
            let mut out = Prepared::default();
            fill(&Team::alone(), &activations(33, 16 * 40, value), 16, &mut out);
            [0, 1].map(|chunk| blocks(&out, chunk).map(|block| block.len()).collect::<Vec<_>>())
        };
        assert_eq!(lengths(|_, _| -127), [[16, 16, 8], [16, 16, 8]]);
        // 16·51 = 816, of which 40 make 32,640; a token that is larger by 4 in each 16 columns ends that.
        assert_eq!(lengths(|_, _| 51), [[40], [40]]);
        assert_eq!(
            lengths(|token, k| if token == 31 { 51 + i8::from(k % 4 == 0) } else { -51 }),
            [vec![39, 1], vec![40]]
        );
    }
}
